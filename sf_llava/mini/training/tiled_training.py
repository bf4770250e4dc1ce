"""Trains a mini LLaVA-NeXT on pictures of 2 x 2 tiles (``scripts/train_mini.py tiled``), from the shipped mini LLaVA.

Tower, projector and LLM are the mini LLaVA's, so it can read a diagram; what it learns is to find the tile that is
asked about among the rows of transformers' grid. As there, the frozen tower's features are computed once.
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from sf_llava.llava.loading import load_llava
from sf_llava.mini import MINI_LLAVA_DIR
from sf_llava.mini.questions.mosaics import SIDE, draw_mosaic, join, mosaic_problems
from sf_llava.mini.training.clip_training import TrainingConfig
from sf_llava.mini.training.llava_training import Measure, Packer, QuestionBatch, train_and_save
from sf_llava.mini.world.canvas import IMAGE_SIZE, Scene
from sf_llava.scienceqa.problems import ask, explain

RECIPE = TrainingConfig(steps=2000, batch_size=6, muon_lr=0.005, adamw_lr=5e-4, evaluate_every=200)
POOL = 6_000  # pictures
_GRID = [[SIDE, SIDE]]
_QUESTIONS_A_PICTURE = 4


@dataclass
class MosaicPool:
    """The pictures of the training: their diagrams, and what the frozen tower sees in all views of them."""

    scenes: list[list[Scene]]
    features: Tensor  # [pictures, 5, 64, 128] bfloat16


def build_tiled() -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    """Build a LLaVA-NeXT of 2 x 2 tiles with the weights of the shipped mini LLaVA, and its processor."""
    mini, plain = load_llava(MINI_LLAVA_DIR)
    config = LlavaNextConfig(
        vision_config=mini.config.vision_config,
        text_config=mini.config.text_config,
        projector_hidden_act=mini.config.projector_hidden_act,
        vision_feature_layer=mini.config.vision_feature_layer,
        vision_feature_select_strategy=mini.config.vision_feature_select_strategy,
        image_token_index=mini.config.image_token_id,
        image_grid_pinpoints=_GRID,
    )
    model = LlavaNextForConditionalGeneration._from_config(config, dtype=torch.float32, attn_implementation="eager")
    report = model.load_state_dict(mini.state_dict(), strict=False)
    assert report.missing_keys == ["model.image_newline"] and not report.unexpected_keys
    model.generation_config = mini.generation_config
    model.model.vision_tower.requires_grad_(False)
    model.model.multi_modal_projector.linear_2.requires_grad_(False)  # the identity
    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size=square,
        resample=plain.image_processor.resample,
        image_mean=plain.image_processor.image_mean,
        image_std=plain.image_processor.image_std,
        image_grid_pinpoints=_GRID,
    )
    processor = LlavaNextProcessor(
        images,
        plain.tokenizer,
        patch_size=plain.patch_size,
        num_additional_image_tokens=plain.num_additional_image_tokens,
        vision_feature_select_strategy=plain.vision_feature_select_strategy,
        chat_template=plain.chat_template,
    )
    return model, processor


@torch.no_grad()
def draw_pool(
    model: LlavaNextForConditionalGeneration, processor: LlavaNextProcessor, count: int, chunk: int = 32
) -> MosaicPool:
    """Draw ``count`` training pictures and let the vision tower look at all views of them."""
    scenes, features = [], []
    for start in tqdm(range(0, count, chunk), desc="pictures", unit="batch", mininterval=2, leave=False):
        drawn = [draw_mosaic(index, "train") for index in range(start, min(start + chunk, count))]
        views = processor.image_processor([join(four) for four in drawn], return_tensors="pt")["pixel_values"]
        with torch.autocast("cpu", torch.bfloat16):
            states = model.model.vision_tower(views.flatten(0, 1), output_hidden_states=True).hidden_states
        tokens = states[model.config.vision_feature_layer][:, 1:].bfloat16()  # without CLS
        features.append(tokens.unflatten(0, views.shape[:2]))
        scenes += drawn
    return MosaicPool(scenes, torch.cat(features))


def make_batch(step: int, packer: Packer, pool: MosaicPool, batch_size: int) -> QuestionBatch:
    """``batch_size`` pictures with a question on each of their diagrams."""
    count = len(pool.scenes)
    rows, chosen = [], []
    for number in range(step * batch_size, (step + 1) * batch_size):
        index, visit = number % count, number // count
        problems = islice(mosaic_problems(pool.scenes[index], index, "train", visit), _QUESTIONS_A_PICTURE)
        rows.append((True, [(ask(problem), explain(problem)) for problem in problems]))
        chosen.append(index)
    return packer.pack(rows, pool.features[chosen].float())


def train_tiled(config: TrainingConfig, run_dir: Path, measure: Measure) -> dict[str, float]:
    """Train, save the directory ``run_dir/llava``, and return what ``measure`` finds on the test split."""
    torch.manual_seed(config.seed)
    model, processor = build_tiled()
    pool = draw_pool(model, processor, min(POOL, config.steps * config.batch_size))
    picture = processor(images=join(pool.scenes[0]), text=processor.image_token, return_tensors="pt")["input_ids"]
    packer = Packer(processor, int((picture == processor.image_token_id).sum()))
    return train_and_save(
        model, processor, lambda step: make_batch(step, packer, pool, config.batch_size), config, run_dir, measure
    )
