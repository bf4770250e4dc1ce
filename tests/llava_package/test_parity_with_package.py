"""Converted checkpoints against the real llava package, in its overlay: ids, pixels, logits, greedy text.

The package runs in this process (old transformers); ``compare_here.py`` runs our side in the main environment.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("llava", reason="the llava package is not installed (it runs in its overlay)")

import llava
from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model import LlavaLlamaForCausalLM
from tiny_original import write_original
from transformers import AutoTokenizer

pytestmark = pytest.mark.llava
QUESTIONS = [
    "What is shown in the image?",
    "Which of these colours?\nContext: N/A\nOptions: (A) red (B) blue",
    " é 3×4\n\nA.",
]
VARIANTS = {
    "linear": dict(projector="linear", layout="sharded", with_tower=False),
    "mlp": dict(projector="mlp2x_gelu", layout="safetensors", image_aspect_ratio="pad"),
    "start-end": dict(projector="linear", layout="bin", start_end=True),
}


def reference(path: Path, picture: Image.Image) -> dict:
    """Answer every question with the real package in float32."""
    tokenizer = AutoTokenizer.from_pretrained(path, use_fast=False)
    model = LlavaLlamaForCausalLM.from_pretrained(path).eval()
    tower = model.get_vision_tower()
    tower.load_model()
    pixels = process_images([picture], tower.image_processor, model.config)
    enclosed = "<im_start><image><im_end>" if model.config.mm_use_im_start_end else "<image>"
    prompts, ids, logits, texts = [], [], [], []
    for number, question in enumerate(QUESTIONS):
        conversation = conv_templates[["vicuna_v1", "llava_v1"][number % 2]].copy()
        conversation.append_message(conversation.roles[0], f"{enclosed}\n{question}")
        conversation.append_message(conversation.roles[1], None)
        prompts.append(conversation.get_prompt())
        tokens = tokenizer_image_token(prompts[-1], tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")[None]
        ids.append(tokens[0].tolist())
        with torch.inference_mode():
            logits.append(model(tokens, images=pixels).logits[0].clone())
            output = model.generate(tokens, images=pixels, do_sample=False, max_new_tokens=12, use_cache=True)
        texts.append(tokenizer.batch_decode(output, skip_special_tokens=True)[0].strip())
    return dict(questions=QUESTIONS, prompts=prompts, ids=ids, pixels=pixels.clone(), logits=logits, texts=texts)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Run all variants through the package, then all of them through ours, in one process each."""
    root = tmp_path_factory.mktemp("parity")
    torch.manual_seed(0)
    picture = Image.effect_noise((50, 41), 90).convert("RGB")
    picture.save(root / "picture.png")
    for name, variant in VARIANTS.items():
        path = write_original(root / name, **variant)
        torch.save(reference(path, picture), root / name / "reference.pt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    overlay = Path(llava.__file__).parents[1]
    command = [sys.executable, Path(__file__).with_name("compare_here.py"), root, overlay, *VARIANTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_converted_checkpoint_is_the_package_model(report, name):
    found = report[name]
    assert found["equal_prompts"] and found["equal_ids"], found
    assert found["equal_package_ids"], "install() must give the package right ids beside new transformers"
    assert found["pixel_difference"] == 0
    assert found["logit_difference"] < 1e-5, found
    assert found["equal_texts"] and found["equal_batched_texts"], found
