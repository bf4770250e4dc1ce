"""An exported file computes what the model does, at any batch, in the runtimes themselves; or it is not written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from llava_fixtures import make_processor
from PIL import Image
from tiny import save_images
from tiny_encoder import write_encoder
from tiny_llava import make_encoder, make_llava
from transformers import AutoImageProcessor, CLIPImageProcessor

from sf_llava import swap
from sf_llava.commands.export import main
from sf_llava.data import open_images
from sf_llava.export import formats, run
from sf_llava.export.features import ImageFeatures
from sf_llava.extras import EXTRAS
from sf_llava.model.loading import load_encoder

onnxruntime = pytest.importorskip("onnxruntime", reason="runs ONNX files")
openvino = pytest.importorskip("openvino", reason="runs OpenVINO files")
pytest.importorskip("onnxscript", minversion="0.6", reason="exports to ONNX; older ones do not know this torch")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An encoder, a folder of pictures, and the encoder's penultimate latents as ONNX by the command."""
    folder = tmp_path_factory.mktemp("export")
    write_encoder(folder / "encoder", num_hidden_layers=2, num_focusing_iterations=2, hidden_size=128)
    save_images(folder / "images", 5, size=70)
    images = f"folder:{folder / 'images'}"
    main(["onnx", str(folder / "encoder"), str(folder / "onnx"), "--layer", "-2", "--images", images])
    return folder


@pytest.fixture(scope="module")
def expected(world):
    """Pixels of 32 pictures by the saved processor, and what the model gives for them."""
    generator = np.random.default_rng(3)
    pictures = [Image.fromarray(generator.integers(0, 256, (50, 90, 3), np.uint8)) for _ in range(32)]
    pixels = AutoImageProcessor.from_pretrained(world / "onnx")(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        tokens = load_encoder(world / "encoder")(pixels, output_hidden_states=-2).hidden_states[-2][:, 1:]
    return pixels, tokens


def by_onnxruntime(folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["image_features"], {"pixel_values": pixels.numpy()})[0])


def by_openvino(folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(compiled({"pixel_values": pixels.numpy()})["image_features"].copy())


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3, 32])
def test_runtimes_compute_what_the_model_does(world, expected, tmp_path_factory, batch):
    folder = world / "openvino"
    if not folder.exists():
        folder.mkdir()
        formats.convert(world / "onnx" / "model.onnx", "openvino", folder, int8=False)
    pixels, tokens = expected[0][:batch], expected[1][:batch]
    bound = dict(rtol=0, atol=1e-4 * max(1, tokens.abs().max().item()))
    torch.testing.assert_close(by_onnxruntime(world / "onnx", pixels), tokens, **bound)
    torch.testing.assert_close(by_openvino(folder, pixels), tokens, **bound)
    for kind in formats.FILES:
        opened = formats.open_file(kind, world / kind, threads=1)
        torch.testing.assert_close(opened(pixels), tokens, **bound)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "read"), [("onnx", by_onnxruntime), ("openvino", by_openvino)])
def test_eight_bits_keep_the_direction_of_every_latent(world, expected, tmp_path, kind, read):
    if kind == "openvino":
        pytest.importorskip("nncf", reason="8-bit weights in OpenVINO")
    formats.convert(world / "onnx" / "model.onnx", kind, tmp_path, int8=True)
    pixels, tokens = expected
    cosine = F.cosine_similarity(read(tmp_path, pixels), tokens, dim=-1).min()
    assert cosine > (0.98 if kind == "onnx" else 0.999)  # onnxruntime rounds activations too
    plain = (world / "onnx" / "model.onnx").stat().st_size
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 0.75 * plain


def test_transformers_own_processor_prepares_its_pictures(world):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8))
    ours, theirs = (
        kind.from_pretrained(world / "onnx")(picture, return_tensors="pt")["pixel_values"]
        for kind in (AutoImageProcessor, CLIPImageProcessor)
    )
    assert theirs.shape == (1, 3, 32, 32) and (ours - theirs).abs().mean() < 0.05


def test_the_record_says_what_the_file_is(world):
    record = json.loads((world / "onnx" / "export.json").read_text())
    assert record["input"] == {"name": "pixel_values", "shape": ["batch", 3, 32, 32], "dtype": "float32"}
    assert record["output"]["name"] == "image_features" and record["output"]["layers"] == [-2]
    assert record["output"]["shape"] == ["batch", 16, record["encoder"]["config"]["hidden_size"]]
    assert 0 < record["check"]["error"] < 1e-4 and record["check"]["num_images"] == 36
    assert not list(world.glob(".*"))


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("layers", [-2, [-2, -1]])
def test_a_llavas_features_are_what_its_llm_reads(strategy, layers):
    width = 1 if layers == -2 else 2
    llava = make_llava(vision_feature_select_strategy=strategy, vision_feature_layer=layers).eval()
    assert llava.model.multi_modal_projector.linear_1.in_features == width * llava.config.vision_config.hidden_size
    encoder = make_encoder().eval()
    features = ImageFeatures.of_llava(llava, encoder)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    swap(llava, make_processor(), encoder)
    with torch.no_grad():
        read = llava.get_image_features(pixels)
        read = getattr(read, "pooler_output", read)  # transformers 5 wraps it in an output
        assert torch.equal(features(pixels), torch.stack(list(read)))


def test_without_a_layer_the_embedding_is_given():
    encoder = make_encoder().eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = ImageFeatures(encoder)
    assert features.output_name == "image_embeds"
    assert torch.equal(features(pixels), encoder(pixels).image_embeds)


def export(world, output, **changes):
    images = open_images(f"folder:{world / 'images'}")
    return run.export(**(dict(kind="onnx", encoder=world / "encoder", output=output, images=images) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(layer=9), r"`layer` 9: the encoder has hidden states -3 to 2"),
        (dict(layer=-3, llava="mini"), r"`layer` -3: the projector of mini was trained on \[-2\]"),
        (dict(kind="tflite"), "unknown format 'tflite'; known: onnx, openvino"),
        (dict(images=[]), "`images` holds no picture"),
    ],
)
def test_what_cannot_be_exported_is_said_and_nothing_written(world, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        export(world, tmp_path / "out", **changes)
    assert not list(tmp_path.iterdir())


def test_what_is_no_export_is_not_replaced(world, tmp_path):
    (tmp_path / "letter.txt").write_text("dear reader")
    with pytest.raises(ValueError, match="is no export, and is not replaced"):
        export(world, tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear reader"


@pytest.mark.parametrize(("int8", "message"), [(False, "does not compute what the model does"), (True, "8-bit")])
def test_a_file_too_far_from_the_model_is_not_written(world, tmp_path, monkeypatch, int8, message):
    model = ImageFeatures(load_encoder(world / "encoder"))
    monkeypatch.setattr(formats, "write", lambda *arguments: None)
    noise = torch.Generator().manual_seed(0)

    def far(pixels):
        exact = model(pixels)
        return exact + (1.0 if int8 else 1e-3) * torch.randn(exact.shape, generator=noise)

    monkeypatch.setattr(formats, "open_file", lambda *arguments: far)
    with pytest.raises(ValueError, match=message):
        export(world, tmp_path / "out", int8=int8)
    assert not list(tmp_path.iterdir())


def test_a_missing_runtime_is_named_with_its_extra(world, tmp_path, monkeypatch):
    monkeypatch.setattr("sf_llava.extras.is_installed", lambda module: module != "openvino")
    with pytest.raises(ModuleNotFoundError, match=r"needs openvino, .*pip install 'sf_llava\[export\]'"):
        export(world, tmp_path / "out", kind="openvino")
    assert EXTRAS["openvino"] == "export" and not list(tmp_path.iterdir())


def test_a_damaged_file_is_one_sentence(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"model\.onnx cannot be opened: "):
        formats.open_file("onnx", tmp_path)
