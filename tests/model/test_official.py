"""Released checkpoints: golden values of the official model, strictness, the converter."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from official_state import (
    CORTEX_BLOCKS,
    IMAGE_SIZE,
    ITERATIONS,
    KINDS,
    LATENTS,
    PROJECTED,
    WIDTH,
    make_pixel_values,
    make_state,
)
from safetensors import safe_open

from sf_llava.__main__ import main
from sf_llava.model import SparseFormerModel
from sf_llava.model.official import convert_official, load_official

ROOT = Path(__file__).resolve().parents[2]


GOLDEN = ROOT / "tests" / "golden"


def read_golden(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 (not a dict)


@pytest.fixture
def state():
    return make_state()


@pytest.fixture
def checkpoint(state, tmp_path):
    torch.save(state, tmp_path / "official.pth")
    return tmp_path / "official.pth"


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    return ((value.double() - expected.double()).norm() / expected.double().norm()).item()


def check_outputs(model: SparseFormerModel, pixel_values: torch.Tensor, expected: dict[str, torch.Tensor], tolerance):
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        output = model(pixel_values.to(dtype), output_hidden_states=True)
    embedding = output.logits if model.config.num_classes else output.image_embeds
    assert relative_error(embedding, expected["embedding"]) < tolerance
    assert relative_error(model.norm(output.last_hidden_state), expected["final_tokens_after_norm"]) < tolerance
    assert relative_error(output.rois[:, -1], expected["final_rois"]) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 1e-3)])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_agree_with_the_official_model(kind, dtype, tolerance):
    expected, _ = read_golden(GOLDEN / f"{kind}.safetensors")
    check_outputs(convert_official(make_state(kind), IMAGE_SIZE).to(dtype), make_pixel_values(), expected, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 1e-3)])
def test_outputs_agree_with_the_official_model_on_numbers_drawn_elsewhere(golden_dir, dtype, tolerance):
    expected, metadata = read_golden(golden_dir / "official_clip_tiny.io.safetensors")
    model = load_official(golden_dir / "official_clip_tiny.pth", int(metadata["image_size"])).to(dtype)
    check_outputs(model, expected["pixel_values"], expected, tolerance)
    check_outputs(
        model, expected["pixel_values"], expected | {"final_rois": expected["rois_after_focusing"]}, tolerance
    )


def test_the_tiny_state_has_the_layout_of_one_saved_elsewhere(golden_dir, state):
    saved = torch.load(golden_dir / "official_clip_tiny.pth", weights_only=True)
    assert {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in saved.items()}


def test_sizes_are_read_from_the_tensors(checkpoint):
    config = load_official(checkpoint).config
    assert config.num_focusing_iterations == ITERATIONS
    assert config.num_latents == LATENTS
    assert config.hidden_size == WIDTH
    assert config.num_hidden_layers == CORTEX_BLOCKS
    assert config.projection_dim == PROJECTED
    assert config.hidden_act == "quick_gelu"


def test_a_projection_with_bias_is_augregs_classifier(state):
    state["proj.bias"] = torch.zeros(len(state["proj.weight"]))
    model = convert_official(state)
    assert (model.config.num_classes, model.config.projection_dim, model.config.hidden_act) == (32, 0, "gelu")
    assert model(torch.zeros(1, 3, 64, 64)).logits.shape == (1, 32)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_loading_is_strict(state, damage):
    if damage == "missing":
        del state["layers.4.mlp.fc1.bias"]
    elif damage == "unexpected":
        state["layers.0.adaptive_mixing.m_beta"] = torch.zeros(64)
    else:
        state["norm.bias"] = torch.zeros(3)
    shape = r"norm.bias \(3,\) instead of \(128,\)"
    named = {"missing": "mlp.fc1.bias", "unexpected": "m_beta", "shape": shape}[damage]
    with pytest.raises(ValueError, match=named):
        convert_official(state)


def test_the_script_writes_a_directory_that_from_pretrained_loads(state, tmp_path):
    expected, _ = read_golden(GOLDEN / "clip.safetensors")
    wrapped = tmp_path / "wrapped.pth"
    torch.save({"model": state}, wrapped)
    command = [sys.executable, ROOT / "scripts/convert.py", "official", wrapped, tmp_path / "out", "--image-size", "64"]
    subprocess.run(command, check=True, capture_output=True)
    model = SparseFormerModel.from_pretrained(tmp_path / "out").eval()
    assert relative_error(model(make_pixel_values()).image_embeds, expected["embedding"]) < 1e-3


@pytest.mark.parametrize("case", ["truncated", "absent"])
def test_a_bad_file_is_one_sentence(checkpoint, tmp_path, case, monkeypatch, capsys):
    path = tmp_path / "file.pth"
    if case == "truncated":
        path.write_bytes(checkpoint.read_bytes()[:5000])
    monkeypatch.setattr(sys, "argv", ["sf-llava", "convert", "official", str(path), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and len(said.strip().splitlines()) == 1
    assert {"truncated": "truncated", "absent": "no checkpoint file"}[case] in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_a_prefix_before_every_key_changes_nothing(checkpoint, state, tmp_path, prefix):
    torch.save({prefix + key: value for key, value in state.items()}, tmp_path / "ddp.pth")
    found = load_official(tmp_path / "ddp.pth").state_dict()
    expected = load_official(checkpoint).state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_prefix_before_most_keys_is_named(state, tmp_path):
    averaged = {"module." + key: value for key, value in state.items()} | {"n_averaged": torch.tensor(3)}
    torch.save(averaged, tmp_path / "ema.pth")
    with pytest.raises(
        ValueError, match=r"there is module.feat_extractor.conv1.weight: save the file without the prefix 'module.'"
    ):
        load_official(tmp_path / "ema.pth")


LIES = {
    "a number for a vector": {"norm.weight": torch.tensor(1.0)},
    "no offsets": {"layers.0.roi_offset_bias": torch.zeros(0)},
    "a vector for a matrix": {"layers.0.stage_embedding.weight": torch.zeros(4)},
    "more latents than numbers": {"initial_roi.weight": torch.zeros(1).expand(10**11, 4)},
    "a wide norm": {"norm.weight": torch.zeros(10**7)},
    "no heads": {"norm.weight": torch.zeros(63)},
    "one point": {"layers.0.roi_offset_bias": torch.zeros(2)},
    "few parameters": {"layers.0.adaptive_mixing.parameter_generator.2.weight": torch.zeros(3, 16)},
    "layer 100,000": {"layers.100000.x": torch.zeros(1)},
    "30,000 layers": {f"layers.{layer}.x": torch.zeros(1) for layer in range(3, 30_000)},
    "a number beyond all": {f"layers.{'9' * 30}.x": torch.zeros(1)},
    "integers": {"norm.weight": torch.ones(128, dtype=torch.int64)},
    "NaN": {"norm.weight": torch.full((128,), float("nan"))},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_one_sentence_within_seconds(state, tmp_path, lie):
    torch.save(state | LIES[lie], tmp_path / "lie.pth")
    began = time.process_time()
    with pytest.raises(ValueError, match=r"lie.pth"):
        load_official(tmp_path / "lie.pth")
    assert time.process_time() - began < 10


def test_half_precision_becomes_float32(state, tmp_path):
    torch.save({key: value.half() for key, value in state.items()}, tmp_path / "half.pth")
    assert {value.dtype for value in load_official(tmp_path / "half.pth").state_dict().values()} == {torch.float32}


def test_an_image_size_of_zero_is_refused(state):
    with pytest.raises(ValueError, match="image_size must be a positive whole number up to 16,384, not 0"):
        convert_official(state, 0)
