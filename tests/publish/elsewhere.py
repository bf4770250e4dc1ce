"""``python elsewhere.py LLAVA PLACED ENCODER INPUTS OUTPUTS``: published directories answer where sf_llava is not.

It imports torch, transformers and Pillow alone. INPUTS is a folder with picture.png and prompt.txt; OUTPUTS is a file
of ``torch.save``.
"""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

TRUST = {"trust_remote_code": True}
MANY = 33  # pictures at once, with which the encoder's ops take the path for much work


class WithoutThePackage(PathFinder):
    """Finds what is installed, but for sf_llava."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname.partition(".")[0] == "sf_llava" else PathFinder.find_spec(fullname, path, target)


def answer(directory: str, prompt: str, image: Image.Image, headless: bool = True) -> dict:
    model = AutoModelForImageTextToText.from_pretrained(directory, **TRUST, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(directory, **TRUST, backend="pil")
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=8)
        if headless:
            without_head = AutoModel.from_pretrained(directory, **TRUST, dtype=torch.float32)
            assert torch.equal(model.lm_head(without_head(**inputs).last_hidden_state), logits)
    pipe = transformers.pipeline("image-text-to-text", model=model, processor=processor)
    said = pipe(text=prompt, images=[image], max_new_tokens=8, generate_kwargs={"do_sample": False})
    return {"inputs": dict(inputs), "logits": logits, "ids": ids, "said": said[0]["generated_text"]}


def encode(directory: str, image: Image.Image) -> dict:
    config = AutoConfig.from_pretrained(directory, **TRUST)
    encoder = AutoModel.from_pretrained(directory, **TRUST).eval()
    images = AutoImageProcessor.from_pretrained(directory, **TRUST)
    pixels = images([image] * MANY, return_tensors="pt").pixel_values
    with torch.inference_mode():
        one, many = encoder(pixels[:1], output_hidden_states=True), encoder(pixels, output_sampling_points=True)
    outputs = {"embeds": one.image_embeds, "hidden": one.hidden_states[-2], "rois": one.rois, "many": many.image_embeds}
    return outputs | {"pixels": pixels, "points": many.sampling_points, "latents": config.num_latents}


def main(llava: str, placed: str, encoder: str, inputs: str, outputs: str) -> None:
    sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutThePackage
    torch.set_num_threads(1)
    image = Image.open(Path(inputs) / "picture.png")
    prompt = (Path(inputs) / "prompt.txt").read_text()
    found = answer(llava, prompt, image) | encode(encoder, image)
    found["placed"] = answer(placed, prompt, image, headless=False)
    loaded = {name for name in sys.modules if name.partition(".")[0] == "sf_llava"}
    assert not loaded, f"the package was imported: {loaded}"
    torch.save(found, outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
