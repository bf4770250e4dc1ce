"""Published directories answer without the package exactly as with it: beside it hidden, and in a bare environment."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from sf_llava import generate_in_place, load_encoder, load_llava, swap
from sf_llava.llava.positions import embed_in_place, weigh_latents
from sf_llava.model import SparseFormerModel
from sf_llava.scienceqa.data import ask, open_scienceqa

BARE = Path(__file__).resolve().parents[2] / ".venv-bare" / "bin" / "python"


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Path:
    """A picture and a prompt about it."""
    folder = tmp_path_factory.mktemp("asked")
    questions = open_scienceqa("mini:1")
    questions.load_image(questions.problems[0]).save(folder / "picture.png")
    (folder / "prompt.txt").write_text(f"USER: <image>\n{ask(questions.problems[0])} ASSISTANT:")
    return folder


def answer_elsewhere(python: str | Path, published, asked: Path, folder: Path) -> dict:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("elsewhere.py")
    command = [python, script, published.llava, published.placed, published.encoder, asked, folder / "outputs.pt"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "outputs.pt")


def answer_here(run, asked: Path) -> dict:
    """What the LLaVA says here, swapped in the precision in which it is published."""
    model, processor = load_llava("mini", dtype="fp16")
    swap(model, processor, run)
    model.float()
    inputs = processor(
        images=Image.open(asked / "picture.png"), text=(asked / "prompt.txt").read_text(), return_tensors="pt"
    )
    with torch.inference_mode():
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=8)
        found = {"inputs": dict(inputs), "logits": model(**inputs).logits, "ids": ids, "said": processor.decode(ids[0])}
        new = generate_in_place(model, inputs, 64, do_sample=False, max_new_tokens=8)
        found["placed ids"] = torch.cat([inputs["input_ids"], new], dim=1)
        prompt = embed_in_place(model, inputs, 64)
        with weigh_latents(model, prompt.latents, math.log(64 / 16)):
            found["placed"] = model(inputs_embeds=prompt.inputs_embeds, position_ids=prompt.position_ids).logits
    return found


def check(found: dict, run, published, asked: Path, tolerance: float) -> None:
    here = answer_here(run, asked)
    assert found["inputs"].keys() == here["inputs"].keys()
    assert all(torch.equal(found["inputs"][name], value) for name, value in here["inputs"].items())
    assert torch.equal(found["ids"], here["ids"])
    assert found["said"].split("ASSISTANT:")[1].strip() in here["said"]
    torch.testing.assert_close(found["logits"], here["logits"], rtol=0, atol=tolerance)
    placed = found["placed"]
    assert torch.equal(placed["ids"], here["placed ids"])
    torch.testing.assert_close(placed["logits"], here["placed"], rtol=0, atol=tolerance)
    assert not torch.allclose(placed["logits"], found["logits"], atol=1e-3)
    encoder = SparseFormerModel.from_pretrained(published.encoder).eval()  # as AutoModel reads it elsewhere
    with torch.inference_mode():
        one = encoder(found["pixels"][:1], output_hidden_states=True)
        many = encoder(found["pixels"], output_sampling_points=True)
        cloned = load_encoder(published.encoder)(found["pixels"])
    outputs = {"embeds": one.image_embeds, "hidden": one.hidden_states[-2], "rois": one.rois}
    outputs |= {"many": many.image_embeds, "points": many.sampling_points}
    assert encoder.config.num_latents == found["latents"]
    for name, value in outputs.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance)
    torch.testing.assert_close(found["many"], cloned.image_embeds, rtol=1e-5, atol=1e-5)


def test_they_answer_bit_for_bit_where_the_package_is_hidden(run, published, asked, tmp_path):
    check(answer_elsewhere(sys.executable, published, asked, tmp_path), run, published, asked, tolerance=0)


def test_they_answer_in_a_bare_environment(run, published, asked, tmp_path):
    if not BARE.exists():
        pytest.skip("no environment with torch, transformers and pillow alone (make test-bare builds one)")
    found = answer_elsewhere(BARE, published, asked, tmp_path)  # whose torch may be another release
    check(found, run, published, asked, tolerance=1e-4)
