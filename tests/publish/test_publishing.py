"""What a published directory holds, how it loads here, what is refused, and what is uploaded."""

import ast
import json
import sys

import pytest
import torch
import transformers.dynamic_module_utils as dynamic_modules
from PIL import Image
from tiny_llava import make_encoder
from transformers import AutoImageProcessor, AutoModelForImageTextToText, LlavaForConditionalGeneration

from sf_llava import __main__, generate_in_place, load_encoder, load_llava
from sf_llava.commands import publish
from sf_llava.llava.placed import PlacedLlava
from sf_llava.model import SparseFormerModel
from sf_llava.model.image_processor import SparseFormerImageProcessor
from sf_llava.publish import writing
from sf_llava.publish.card import public_name
from sf_llava.weights.digests import changed_files

ALLOWED = {"torch", "transformers", "numpy", "PIL"}


def test_the_code_needs_only_torch_transformers_numpy_and_pillow(published):
    for folder in (published.llava, published.placed, published.encoder):
        files = {path.stem: path.read_text() for path in folder.glob("*.py")}
        assert len(files) > 10
        for text in files.values():
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ImportFrom) and node.level:
                    assert node.level == 1 and (node.module is None or node.module in files)
                elif isinstance(node, (ast.Import, ast.ImportFrom)):
                    names = [node.module] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
                    for name in names:
                        assert name.partition(".")[0] in ALLOWED | sys.stdlib_module_names


def test_it_loads_here_without_its_code_and_is_saved_as_an_ordinary_llava(published, tmp_path):
    model, processor = load_llava(published.llava)
    assert type(model.model.vision_tower) is SparseFormerModel and processor.num_additional_image_tokens == 16
    model.save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    encoder = load_encoder(published.encoder)
    encoder.save_pretrained(tmp_path / "encoder")
    assert "auto_map" not in json.loads((tmp_path / "encoder" / "config.json").read_text())
    assert type(AutoImageProcessor.from_pretrained(published.encoder)) is SparseFormerImageProcessor


def test_a_placed_one_loads_here_as_what_reads_in_place_by_itself(run, published, tmp_path):
    model, processor = load_llava(published.placed)
    ordinary, _ = load_llava(published.llava)
    assert type(model) is PlacedLlava and type(ordinary) is LlavaForConditionalGeneration
    pictures = [Image.effect_noise((64, 64), 90 + k).convert("RGB") for k in range(3)]
    prompts = ["USER: <image>\nwhat ? ASSISTANT:", "USER: <image>\n<image>\nwhat is in the ? ASSISTANT:"]
    inputs = processor(images=pictures, text=prompts, padding=True, return_tensors="pt")
    words = dict(do_sample=False, max_new_tokens=5, num_beams=2)
    found = model.generate(**inputs, **words)
    expected = generate_in_place(ordinary, inputs, 64, **words)
    assert torch.equal(found[:, inputs["input_ids"].shape[1] :], expected)
    assert torch.equal(found[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    assert torch.equal(model.generate(inputs["input_ids"], **(dict(inputs) | words | {"input_ids": None})), found)
    text = processor(text="USER: what ? ASSISTANT:", return_tensors="pt")
    assert torch.equal(model(**text).logits, ordinary(**text).logits)
    assert torch.equal(model.generate(**text, **words), ordinary.generate(**text, **words))
    model(**inputs, labels=inputs["input_ids"]).loss.backward()  # as a Trainer calls it
    assert model.model.vision_tower.cortex[0].mlp.fc1.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="give input_ids, and no position_ids"):
        model(pixel_values=inputs["pixel_values"])
    with pytest.raises(ValueError, match="a SparseFormer already: positions need the LLaVA with the tower that"):
        writing.publish_llava(published.llava, run, tmp_path / "again", positions_and_bias=True)


def test_its_code_beside_the_package_leaves_the_package_as_it_was(published, tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_modules, "HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    pixels = torch.randn(33, 3, 64, 64)
    before = load_encoder(published.encoder)(pixels).image_embeds
    other = AutoModelForImageTextToText.from_pretrained(published.llava, trust_remote_code=True)
    assert type(other).__name__ == "SparseFormerLlavaForConditionalGeneration"
    assert type(other.model.vision_tower).__module__.startswith("transformers_modules.")
    assert type(load_llava(published.llava)[0].model.vision_tower) is SparseFormerModel
    assert torch.equal(load_encoder(published.encoder)(pixels).image_embeds, before)


def test_a_lost_tensor_is_told(published, tmp_path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_bytes((published.encoder / "config.json").read_bytes())
    tensors = load_file(published.encoder / "model.safetensors")
    del tensors["cls_token"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 missing: cls_token"):
        load_encoder(tmp_path)


def test_the_card_says_what_was_measured_and_no_folder_of_this_machine(run, published):
    card = (published.llava / "README.md").read_text()
    for part in (
        "license: apache-2.0",
        "| 99.69% | 97.46% |",
        "0.9123",
        "transformers:clip",
        "folder:pictures",
        "7, 3",
    ):
        assert part in card
    assert "in place of 64 patches" in card and "generate_in_place(model, inputs, 64)" in card
    assert "license:" not in (published.encoder / "README.md").read_text()
    for folder in (published.llava, published.encoder):
        assert not changed_files(folder) and (folder / "SHA256SUMS").is_file()
        for path in [*folder.glob("*.json"), folder / "README.md"]:
            assert "/home/me" not in path.read_text() and str(run.parent) not in path.read_text()


def test_without_a_run_nothing_is_claimed(tmp_path):
    make_encoder().save_pretrained(tmp_path / "alone")
    writing.publish_encoder(tmp_path / "alone", tmp_path / "out")
    assert "nothing is claimed" in (tmp_path / "out" / "README.md").read_text()


def test_names_lose_their_folders():
    assert public_name("/data/llava-7b/") == "llava-7b" and public_name("llava-hf/llava-7b") == "llava-hf/llava-7b"
    assert public_name("open_clip:ViT-L-14/openai") == "open_clip:ViT-L-14/openai" and public_name("mini") == "mini"


def test_what_cannot_be_published_is_told_and_leaves_nothing(run, published, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    make_encoder().save_pretrained(tmp_path / "narrow")
    out = tmp_path / "out"
    for llava, encoder, output, message in (
        ("mini", run, tmp_path / "full", "is not empty: name a new directory"),
        ("mini", run, tmp_path / "full" / "mine", "is a file: name a new directory"),
        ("mini", tmp_path, out, f"no encoder at {tmp_path}"),
        (run / "encoder", run, out, "is no LLaVA but has model_type 'sparseformer'"),
        (tmp_path / "nowhere", run, out, "no LLaVA at"),
        ("mini", tmp_path / "narrow", out, "the projector takes 128 channels but the encoder gives 64"),
    ):
        with pytest.raises(ValueError, match=message):
            writing.publish_llava(llava, encoder, output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "narrow"]


class Hub:
    """Stands for huggingface_hub's client, and keeps what it is asked for."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls, self.error = [], error

    def create_repo(self, repo, **how):
        self.calls.append(("create", repo, how))
        return f"hub://{repo}"

    def upload_folder(self, **how):
        if self.error:
            raise self.error
        self.calls.append(("upload", how["repo_id"], how["folder_path"]))


def test_only_push_uploads(run, tmp_path, monkeypatch, capsys):
    hub = Hub()
    monkeypatch.setattr(writing, "HfApi", lambda: hub)
    publish.main([str(run), str(tmp_path / "one")])
    assert not hub.calls
    publish.main([str(run), str(tmp_path / "two"), "--license", "mit", "--push", "me/sf"])
    assert hub.calls == [
        ("create", "me/sf", {"repo_type": "model", "exist_ok": True}),
        ("upload", "me/sf", str(tmp_path / "two")),
    ]
    assert "uploaded: hub://me/sf" in capsys.readouterr().out
    assert 'from_pretrained("me/sf", trust_remote_code=True)' in (tmp_path / "two" / "README.md").read_text()


def test_a_failed_upload_keeps_the_directory_and_says_how_to_go_on(run, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "HfApi", lambda: Hub(OSError("401 Unauthorized")))
    out = str(tmp_path / "out")
    with pytest.raises(RuntimeError, match=rf"not uploaded to me/sf \(401 Unauthorized\).* hf upload me/sf {out}"):
        publish.main([str(run), out, "--license", "mit", "--push", "me/sf"])
    assert load_encoder(out).config.num_latents == 16


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--push", "me/sf"], "--push needs --license"),
        (["--dtype", "fp16"], "--dtype is for a LLaVA"),
        (["--license", "mit", "--push", "sf"], "'sf' is no name of a repository: expected owner/name"),
    ],
)
def test_flags_that_do_not_go_together_are_told_first(run, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.setattr(sys, "argv", ["sf-llava", "publish", str(run), str(tmp_path / "out"), *flags])
    with pytest.raises(SystemExit):
        __main__.main()
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
