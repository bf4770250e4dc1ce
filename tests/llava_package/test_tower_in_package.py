"""The real llava package with our tower: load, generate, train, its own programs, and out again."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

pytest.importorskip("llava", reason="the llava package is not installed (it runs in its overlay)")

import llava.model.builder as builder
import llava.model.llava_arch as arch
import llava.model.multimodal_encoder.builder as encoder_builder
from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model import LlavaLlamaForCausalLM
from tiny_encoder import write_encoder
from tiny_original import write_original

from sf_llava.llava import SparseFormerVisionTower, install, uninstall
from sf_llava.llava.package.install import main

pytestmark = pytest.mark.llava
PICTURE = Image.effect_noise((50, 41), 90).convert("RGB")


@pytest.fixture
def installed():
    install()
    yield
    uninstall()


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint whose config names our tower."""
    name = write_encoder(tmp_path / "encoder", 63)
    return write_original(tmp_path, with_tower=False, tower_name=name)


def load(path):
    return builder.load_pretrained_model(str(path), None, "llava-tiny", device="cpu")


def ask(tokenizer, model, processor, prompts, pictures):
    """Answer a batch of prompts, padded on the left, in half precision."""
    rows = [tokenizer_image_token(prompt, tokenizer, IMAGE_TOKEN_INDEX) for prompt in prompts]
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    images = process_images(pictures, processor, model.config).half() if pictures else None
    with torch.inference_mode():
        return model.generate(
            ids, attention_mask=mask, images=images, do_sample=False, max_new_tokens=4, min_new_tokens=4, pad_token_id=0
        )


def test_the_package_loads_and_generates_with_our_tower(installed, checkpoint):
    tokenizer, model, processor, _ = load(checkpoint)
    tower = model.get_vision_tower()
    assert type(tower) is SparseFormerVisionTower and tower.is_loaded and tower.num_patches == 63
    assert model.dtype == torch.float16
    model.config.tokenizer_padding_side = "left"
    one, two = "USER: <image>\nWhat is shown?", "USER: <image>\n<image>\nWhich of these?"
    assert model.encode_images(torch.zeros(1, 3, 32, 32).half()).shape == (1, 63, 96)
    assert ask(tokenizer, model, processor, [one], [PICTURE]).shape[0] == 1
    assert ask(tokenizer, model, processor, [two], [PICTURE, PICTURE.rotate(90)]).shape[0] == 1
    assert ask(tokenizer, model, processor, ["USER: The answer?"], []).shape[0] == 1
    together = ask(tokenizer, model, processor, [one, two], [PICTURE] * 3)
    assert together.shape[0] == 2
    assert torch.equal(together[0], ask(tokenizer, model, processor, [one], [PICTURE])[0])


def test_the_package_reads_what_transformers_reads(installed, checkpoint, tmp_path):
    _, model, processor, _ = load(checkpoint)
    tower = model.get_vision_tower()
    pixels = process_images([PICTURE], processor, model.config)
    states = tower.vision_tower(pixels, output_hidden_states=True).hidden_states
    assert torch.equal(tower(pixels), states[-2][:, 1:])


def test_initialising_vision_modules_and_a_training_step(installed, checkpoint, tmp_path):
    model = LlavaLlamaForCausalLM.from_pretrained(checkpoint)
    model.model.vision_tower = model.model.mm_projector = None
    arguments = SimpleNamespace(
        vision_tower=f"sparseformer:{tmp_path / 'encoder'}",
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        pretrain_mm_mlp_adapter=None,
        mm_patch_merge_type="flat",
        mm_projector_type="mlp2x_gelu",
    )
    model.get_model().initialize_vision_modules(arguments)
    tower = model.get_vision_tower()
    assert type(tower) is SparseFormerVisionTower and model.config.mm_hidden_size == 64
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    ids = torch.tensor([[1, 300, IMAGE_TOKEN_INDEX, 301, 302, 303]])
    losses = []
    for _ in range(2):
        loss = model(ids, labels=ids.clone(), images=torch.randn(1, 3, 32, 32, generator=torch.manual_seed(0))).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0] and model.model.mm_projector[0].weight.grad.abs().sum() > 0
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())


def test_an_unfrozen_tower_comes_from_the_packages_own_file(installed, checkpoint):
    config = json.loads((checkpoint / "config.json").read_text()) | {"unfreeze_mm_vision_tower": True}
    (checkpoint / "config.json").write_text(json.dumps(config))
    trained = LlavaLlamaForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        trained.get_vision_tower().vision_tower.cls_token.add_(1)
    trained.save_pretrained(checkpoint, safe_serialization=True)
    _, model, _, _ = load(checkpoint)
    assert not any(value.is_meta for value in model.parameters())
    expected = trained.get_vision_tower().vision_tower.cls_token
    assert torch.equal(model.get_vision_tower().vision_tower.cls_token.float(), expected.half().float())


def test_uninstalling_leaves_the_package_as_it_was(checkpoint):
    places = [(encoder_builder, "build_vision_tower"), (arch, "build_vision_tower"), (builder, "AutoTokenizer")]
    before = [getattr(module, name) for module, name in places]
    install()
    assert arch.build_vision_tower is not before[1]
    install(f"sparseformer:{checkpoint.parent / 'encoder'}")
    uninstall()
    assert [getattr(module, name) for module, name in places] == before
    with pytest.raises((OSError, ValueError), match="sparseformer:"):
        load(checkpoint)


def test_a_tower_that_is_not_ours_is_built_as_before(installed, tmp_path):
    _, model, _, _ = load(write_original(tmp_path))
    assert type(model.get_vision_tower()).__name__ == "CLIPVisionTower"


def test_the_packages_scienceqa_script_runs_with_the_tower_swapped(tmp_path, monkeypatch):
    write_encoder(tmp_path / "encoder")
    path = write_original(tmp_path)
    PICTURE.save(tmp_path / "image.png")
    questions = [
        dict(id="1", image="image.png", conversations=[{"from": "human", "value": "What?\n<image>"}]),
        dict(id="2", conversations=[{"from": "human", "value": "Which?"}]),
    ]
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    seen = []
    forward = SparseFormerVisionTower.forward
    monkeypatch.setattr(
        SparseFormerVisionTower, "forward", lambda self, images: seen.append(1) or forward(self, images)
    )
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)  # the script knows no other device
    main(
        [
            *("--tower", f"sparseformer:{tmp_path / 'encoder'}", "llava.eval.model_vqa_science"),
            *("--model-path", str(path), "--question-file", str(tmp_path / "questions.json")),
            *("--image-folder", str(tmp_path), "--answers-file", str(tmp_path / "answers.jsonl")),
            *("--conv-mode", "llava_v1", "--temperature", "0"),
        ]
    )
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [answer["question_id"] for answer in answers] == ["1", "2"] and len(seen) == 1


def test_the_packages_chat_program_starts_with_the_tower_swapped(tmp_path):
    name = write_encoder(tmp_path / "encoder")
    path = write_original(tmp_path)
    PICTURE.save(tmp_path / "image.png")
    command = [sys.executable, "-m", "sf_llava.llava.package.install", "--tower", name, "llava.serve.cli"]
    command += ["--model-path", str(path), "--image-file", str(tmp_path / "image.png"), "--device", "cpu"]
    command += ["--max-new-tokens", "4", "--temperature", "0", "--conv-mode", "llava_v1"]
    done = subprocess.run(command, input="What is shown?\n\n", capture_output=True, text=True)
    assert done.returncode == 0 and "ASSISTANT" in done.stdout, done.stderr[-2000:]
