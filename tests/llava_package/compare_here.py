"""Our side of test_parity_with_package.py: python compare_here.py ROOT OVERLAY NAME... prints one JSON line.

The overlay goes behind the main environment: the llava package comes from there, transformers does not.
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image

from sf_llava.llava import encode_prompts
from sf_llava.llava.conversations import chat_template
from sf_llava.llava.loading import load_llava

torch.set_num_threads(1)


def compare(root: Path, name: str) -> dict:
    """Compare one converted checkpoint with the package's saved answers."""
    saved = torch.load(root / name / "reference.pt", weights_only=True)
    model, processor = load_llava(root / name / "llava-tiny")
    picture = Image.open(root / "picture.png")
    start_end = "<im_start>" in saved["prompts"][0]
    prompts, texts = [], []
    equal_ids, pixel_difference, logit_difference = True, 0.0, 0.0
    for number, question in enumerate(saved["questions"]):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        template = chat_template(["vicuna_v1", "llava_v1"][number % 2], start_end)
        messages = [{"role": "user", "content": content}]
        prompts.append(
            processor.apply_chat_template(messages, chat_template=template, add_generation_prompt=True, tokenize=False)
        )
        inputs = encode_prompts(processor, [prompts[-1]], [[picture]])
        ids = inputs["input_ids"][0].tolist()
        first, count = ids.index(processor.image_token_id), ids.count(processor.image_token_id)
        equal_ids &= [*ids[:first], -200, *ids[first + count :]] == saved["ids"][number]
        pixel_difference = max(pixel_difference, (inputs["pixel_values"] - saved["pixels"]).abs().max().item())
        with torch.inference_mode():
            logits, expected = model(**inputs).logits[0], saved["logits"][number]
            logit_difference = max(logit_difference, (logits[:, : expected.shape[1]] - expected).abs().max().item())
        texts += answer(model, processor, prompts[-1:], picture)
    return dict(
        equal_prompts=prompts == saved["prompts"],
        equal_ids=equal_ids,
        pixel_difference=pixel_difference,
        logit_difference=logit_difference,
        logit_size=max(logits.abs().max().item() for logits in saved["logits"]),
        equal_texts=texts == saved["texts"],
        equal_batched_texts=answer(model, processor, prompts, picture) == saved["texts"],
        equal_package_ids=tokenize_by_package(root / name / "llava-tiny", prompts) == saved["ids"],
    )


def tokenize_by_package(path: Path, prompts: list[str]) -> list[list[int]]:
    """Tokenise as the package does beside new transformers once we are installed in it."""
    from sf_llava.llava import install, uninstall

    install()
    import llava.model.builder
    from llava.mm_utils import tokenizer_image_token

    tokenizer = llava.model.builder.AutoTokenizer.from_pretrained(path, use_fast=False)
    uninstall()
    return [tokenizer_image_token(prompt, tokenizer) for prompt in prompts]


def answer(model, processor, prompts: list[str], picture: Image.Image) -> list[str]:
    """Answer a left-padded batch greedily."""
    inputs = encode_prompts(processor, prompts, [[picture]] * len(prompts))
    output = model.generate(**inputs, do_sample=False, max_new_tokens=12)[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(output, skip_special_tokens=True)]


if __name__ == "__main__":
    sys.path.append(sys.argv[2])
    print(json.dumps({name: compare(Path(sys.argv[1]), name) for name in sys.argv[3:]}))
