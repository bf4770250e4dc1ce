"""Trains a small CLIP of photographs from scratch (``scripts/train_mini.py photo``), on captions and class names.

A few ten thousand photographs are too few for a ViT that starts from nothing, so a frozen convolutional network that
was trained on ImageNet may help: the CLIP's tokens are asked for its features (guide.py). Photographs without text take
part in that alone. Most steps look at half of the patches (as FLIP does, Li et al. 2023), the last ones at all. What
helped is written into results.json, beside the numbers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPModel

from sf_llava.data import LabelledImages
from sf_llava.data.transforms import Preprocessing
from sf_llava.files import write_directory, write_json
from sf_llava.measure.store import digest_texts
from sf_llava.mini.training.clip_model import MEAN, STD, build_clip, build_tokenizer, save_clip
from sf_llava.mini.training.clip_training import TrainingConfig, contrastive_loss, train
from sf_llava.mini.training.guide import NAME, GuideHead, GuideMaps, load_guide
from sf_llava.mini.training.photographs import TEMPLATES, Photographs, ViewMaker, Views, spoken, tokenise, words_of
from sf_llava.retrieval.captions import CaptionedImages
from sf_llava.retrieval.scoring import caption_ranks, image_ranks, recall_at_k

RECIPE = TrainingConfig(steps=2400, batch_size=128, muon_lr=0.015, adamw_lr=1.5e-3, evaluate_every=200, save_every=50)
IMAGE_SIZE, PATCH_SIZE, WIDTH, BLOCKS = 160, 16, 192, 12
SIDE = IMAGE_SIZE // PATCH_SIZE
HALF_UNTIL = 0.8  # of the steps
GUIDE_WEIGHT = 3.0  # of each of its losses
RECALL_AT = 10


class LookingStep:
    """The losses of a step: contrastive on what is described, and the guide's on all views.

    Args:
        preprocessing: of the pixels.
        device: where is computed.
        bf16: whether products are taken in bf16.
    """

    def __init__(self, preprocessing: Preprocessing, device: torch.device, bf16: bool) -> None:
        self.preprocessing, self.device, self.bf16 = preprocessing, device, bf16

    def __call__(self, model: CLIPModel, head: GuideHead | None, views: Views) -> dict[str, Tensor]:
        """Compute ``loss`` and its parts."""
        views = views.to(self.device)
        pixels = self.preprocessing.normalise_pixels(views.images)
        losses: dict[str, Tensor] = {}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            with keeping(model.vision_model.embeddings, views.kept):
                vision = model.vision_model(pixels, output_hidden_states=head is not None)
            if len(views.input_ids) > 1:
                images = model.visual_projection(vision.pooler_output[views.described])
                texts = model.text_projection(model.text_model(views.input_ids).pooler_output)
                scale = model.logit_scale.exp().clamp(max=100)
                losses["contrastive"] = contrastive_loss(images, texts, scale, views.groups)
            if head is not None and views.whole is not None and views.parts is not None:
                patches = vision.hidden_states[-2][:, 1 : 1 + views.parts.shape[1]]
                asked = head(vision.pooler_output, patches, views.whole, views.parts)
                losses |= {name: GUIDE_WEIGHT * loss for name, loss in asked.items()}
        if not losses:
            return {"loss": 0 * model.logit_scale}  # no texts in this batch, and no guide
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}


@contextmanager
def keeping(embeddings: torch.nn.Module, kept: Tensor) -> Iterator[None]:
    """While the block runs, let only CLS and the patches ``kept`` (B, K) into the tower, in their order."""
    rows = torch.cat([kept.new_zeros(len(kept), 1), kept + 1], dim=1)  # [B, 1 + K]

    def take(_module: Any, _inputs: Any, tokens: Tensor) -> Tensor:
        return tokens.gather(1, rows[..., None].expand(-1, -1, tokens.shape[2]))

    handle = embeddings.register_forward_hook(take)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class HeldOut:
    """What the teacher is measured on.

    Attributes:
        labelled: pictures with classes, for zero-shot accuracy; None for none.
        captioned: pictures with captions, for recall at 10; None for none.
    """

    labelled: LabelledImages | None
    captioned: CaptionedImages | None

    @torch.no_grad()
    def measure(
        self, model: CLIPModel, tokenizer: Any, preprocessing: Preprocessing, count: int | None = None
    ) -> dict[str, float]:
        """Measure on so many evenly spaced pictures of each, or on all."""
        model.eval()
        found = {}
        if (classes := self.labelled) is not None:
            rows = _spread(len(classes), count)
            images = _embed_images(model, [classes.load(row) for row in rows], preprocessing)
            sentences = [template.format(spoken(name)) for name in classes.class_names for template in TEMPLATES]
            means = _embed_texts(model, tokenizer, sentences).unflatten(0, (-1, len(TEMPLATES))).mean(dim=1)
            right = (images @ F.normalize(means, dim=-1).T).argmax(dim=1).eq(torch.tensor(classes.labels)[rows])
            found["zero_shot"] = right.float().mean().item()
        if (captions := self.captioned) is not None:
            pairs = captions.take(_spread(len(captions), count))
            images = _embed_images(model, [pairs.source.load(row) for row in range(len(pairs))], preprocessing)
            texts, image_of = _embed_texts(model, tokenizer, pairs.captions), torch.tensor(pairs.image_of)
            for name, ranks in (("captions", caption_ranks), ("images", image_ranks)):
                recall = recall_at_k(ranks(images, texts, image_of), RECALL_AT)
                found[f"{name}_recall_{RECALL_AT}"] = recall.float().mean().item()
        model.train()
        return found


def _spread(total: int, count: int | None) -> list[int]:
    return list(range(total)) if count is None or count >= total else [place * total // count for place in range(count)]


def _embed_images(model: CLIPModel, images: Sequence[Image.Image], preprocessing: Preprocessing) -> Tensor:
    parts = []
    for start in range(0, len(images), 64):
        pixels = torch.stack([preprocessing(image) for image in images[start : start + 64]]).to(model.device)
        parts.append(model.visual_projection(model.vision_model(pixels).pooler_output))
    return F.normalize(torch.cat(parts).float(), dim=-1).cpu()


def _embed_texts(model: CLIPModel, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    parts = []
    for start in range(0, len(texts), 256):
        ids = tokenise(tokenizer, texts[start : start + 256]).to(model.device)
        parts.append(model.text_projection(model.text_model(ids).pooler_output))
    return F.normalize(torch.cat(parts).float(), dim=-1).cpu()


def train_photographs(
    photographs: Photographs, held_out: HeldOut, config: TrainingConfig, run_dir: Path, guided: bool,
    device: torch.device, bf16: bool,
) -> dict[str, Any]:  # fmt: skip
    """Train, save the CLIPModel directory ``run_dir/clip``, and return what was measured on all that is held out.

    Args:
        photographs: to learn from.
        held_out: to measure on.
        config: its numbers.
        run_dir: receives clip, results.json, log.jsonl, checkpoints and the guide's maps; what is found is resumed.
        guided: whether the guide helps.
        device: where is computed.
        bf16: whether products are taken in bf16.

    Raises:
        ValueError: too few photographs, no text at all, the guide is not installed, or ``run_dir`` holds another run.
    """
    if not any(photographs.texts):
        raise ValueError("no photograph has a caption or a class: a CLIP learns from text")
    data = digest_texts(*map(photographs.source.describe, range(len(photographs))))
    maps = None
    if guided:
        maps = GuideMaps(run_dir / "guide", len(photographs))
        maps.make(photographs.source.load, load_guide, data)
    torch.manual_seed(config.seed)
    tokenizer = build_tokenizer(words_of(photographs.texts))
    model = build_clip(len(tokenizer), width=WIDTH, layers=BLOCKS, head_dim=64, text_width=256, text_layers=4,
                       projection=256, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE).to(device)  # fmt: skip
    head = GuideHead(WIDTH).to(device) if guided else None
    preprocessing = Preprocessing(IMAGE_SIZE, MEAN, STD)
    views = ViewMaker(photographs, tokenizer, preprocessing, SIDE, maps, config.batch_size, config.seed)
    seconds = train(
        model,
        head,
        lambda step: views(step, SIDE**2 // 2 if step < HALF_UNTIL * config.steps else SIDE**2),
        lambda model: held_out.measure(model, tokenizer, preprocessing, 500),
        config,
        run_dir,
        LookingStep(preprocessing, device, bf16),
        data=digest_texts(data, f"{guided} {bf16} {photographs.texts}"),
    )
    names = [spoken(name) for name in held_out.labelled.class_names] if held_out.labelled is not None else []
    write_directory(run_dir / "clip", lambda path: save_clip(model.cpu(), tokenizer, path, names, TEMPLATES))
    results = held_out.measure(model, tokenizer, preprocessing) | {
        "photographs": len(photographs),
        "described": sum(map(bool, photographs.texts)),
        "views": config.steps * config.batch_size,
        "helped by": NAME if guided else "nothing",
        "seed": config.seed,
        "seconds": round(seconds),
        "unreadable": sorted(views.corrupt),
    }
    write_json(run_dir / "results.json", results)
    return results
