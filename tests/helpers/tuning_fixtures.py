"""A tiny swapped LLaVA, conversations about random pictures, and a training loop written by hand."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from llava_fixtures import make_processor
from PIL import Image
from tiny_llava import make_encoder, make_llava
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from sf_llava.llava import swap
from sf_llava.tuning.conversations import Conversation
from sf_llava.tuning.encoding import Encoder

LR = 1e-2
ANSWERS = ("a cat", "a red dog on the mat", "the answer is B", "a blue mat", "dog", "the image is red")


def make_swapped(num_latents: int = 16) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The same tiny LLaVA every time, a random SparseFormer in its tower's place, every zero-initialised path open."""
    model, processor = make_llava(), make_processor()
    encoder = make_encoder(num_latents)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    swap(model, processor, encoder)
    return model, processor


def picture(number: int) -> Image.Image:
    noise = torch.randint(0, 256, (40, 48, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def make_conversations(count: int = 6) -> list[Conversation]:
    return [
        Conversation(f"entry {number}", ("what is in the image ?", ANSWERS[number % 6]), lambda at=number: picture(at))
        for number in range(count)
    ]


def write_conversations(folder: Path, count: int = 12) -> tuple[Path, Path]:
    """Write them as LLaVA's JSON and its pictures; return the file and the folder."""
    images, entries = folder / "images", []
    images.mkdir(parents=True)
    for number, one in enumerate(make_conversations(count)):
        one.load().save(images / f"{number}.png")
        said = [{"from": "human", "value": f"<image>\n{one.turns[0]}"}, {"from": "gpt", "value": one.turns[1]}]
        entries.append({"id": str(number), "image": f"{number}.png", "conversations": said})
    (folder / "data.json").write_text(json.dumps(entries))
    return folder / "data.json", images


def make_rows(processor: LlavaProcessor, count: int = 6) -> list[dict[str, torch.Tensor]]:
    encoder = Encoder(processor)
    return [encoder.encode(one) for one in make_conversations(count)]


def mean_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean of -log p over labelled tokens, from the logits."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    labels = batch["labels"]
    logits = model(**inputs).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def train_by_hand(
    model: torch.nn.Module, batches: list[dict[str, torch.Tensor]], clip: float | None = None
) -> list[float]:
    """AdamW at a constant rate, a step a batch; return the losses."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0)
    losses = []
    model.train()
    for batch in batches:
        loss = mean_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        losses.append(loss.item())
    return losses
