"""Trains the mini LLaVA on the drawn world's questions (``scripts/train_mini.py llava``).

The vision tower is frozen, so its features of a fixed pool of pictures are computed once, and a step costs the LLM
alone. Several questions share their picture in one row: each attends to the picture and to itself, at the positions
it has when it is asked alone, so the loss is that of single-question conversations.

Finding the letter of an option takes two steps, and a small LLM that is only asked for answers sees no reason to take
the first: it describes pictures well long before it names letters. So the training starts with asking for letters
alone, and a linear head, thrown away at the end, asks the tokens after the first layer for the four before. Later,
kinds of questions that are learned slowly come first.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from sf_llava.files import write_directory, write_json
from sf_llava.llava.host import embed_prompts
from sf_llava.llava.reading import project, reading_of
from sf_llava.mini.questions.pictures import DESCRIBE, describe
from sf_llava.mini.questions.sets import draw_picture, picture_problems, text_problem
from sf_llava.mini.training.clip_model import normalise
from sf_llava.mini.training.clip_training import TrainingConfig, train
from sf_llava.mini.training.llava_model import (
    IMAGE_TOKENS,
    build_llava,
    build_processor,
    build_tokenizer,
    fit_projector,
    save_llava,
)
from sf_llava.mini.world.canvas import Scene
from sf_llava.scienceqa.problems import Problem, ask, explain, kind_of
from sf_llava.scienceqa.scoring import LETTERS, NUM_PUBLISHED

RECIPE = TrainingConfig(steps=8000, batch_size=12, muon_lr=0.02, adamw_lr=2e-3, evaluate_every=200)
POOL = 24_000  # pictures
_QUESTIONS_A_PICTURE = 5
_TEXT_ROWS, _QUESTIONS_A_TEXT_ROW = 6, 6
_SLOW = {"where", "relation", "arrow", "marker", "shape", "count", "owner"}  # kinds learned last, preferred
_LETTER_STEPS = 0.07  # share of the steps that only ask for letters
_LETTERS_A_QUESTION = 4
_IGNORED = -100
_LAST_WEIGHT = 4.0  # in the loss, of a sentence's last word: what was seen, or the letter; the others are its form
_PREVIOUS, _PREVIOUS_WEIGHT = 4, 0.3
_GAPS_AFTER = 0.19  # share of the steps after which positions have gaps
_GAP = 64  # the largest
_PLACE = "QUESTION"

Measure = Callable[[LlavaForConditionalGeneration, LlavaProcessor, str], dict[str, float]]


@dataclass
class QuestionBatch:
    """Rows of questions that share a prefix.

    Attributes:
        features: (P, 64, 128) the vision tower's tokens of the first P rows' pictures; (P, V, 64, 128) of all views of
            pictures that are cut into tiles.
        input_ids: (B, L) int64.
        positions: (B, L) int64; every question starts behind the prefix.
        segments: (B, L) int64: 0 the prefix, 1 .. a row's questions, -1 padding.
        targets: (B, L) int64, the next token where it belongs to an answer, -100 elsewhere.
        letters: (5,) int64, the ids of A .. E.
        stops: (2,) int64, the ids of the tokens that end a sentence.
    """

    features: Tensor
    input_ids: Tensor
    positions: Tensor
    segments: Tensor
    targets: Tensor
    letters: Tensor
    stops: Tensor


@dataclass
class PicturePool:
    """The pictures of the training: what they show, and what the frozen tower sees in them."""

    scenes: list[Scene]
    features: Tensor  # [pictures, 64, 128] bfloat16


@torch.no_grad()
def draw_pool(model: LlavaForConditionalGeneration, count: int, chunk: int = 128) -> PicturePool:
    """Draw ``count`` training pictures and let the vision tower look at them."""
    scenes, features, reading = [], [], reading_of(model)
    for start in tqdm(range(0, count, chunk), desc="pictures", unit="batch", mininterval=2, leave=False):
        drawn = [draw_picture(index, "train") for index in range(start, min(start + chunk, count))]
        pixels = normalise(torch.from_numpy(np.stack([scene.image for scene in drawn])))
        with torch.autocast("cpu", torch.bfloat16):
            states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        features.append(reading.select(states[reading.layer]).tokens.bfloat16())
        empty = np.empty(0)
        scenes += [replace(scene, image=empty, owner=empty) for scene in drawn]
    return PicturePool(scenes, torch.cat(features))


class Packer:
    """Writes questions as the evaluation does and packs them into rows.

    Args:
        processor: of the LLaVA.
        image_tokens: of a picture.
    """

    def __init__(self, processor: LlavaProcessor, image_tokens: int = IMAGE_TOKENS) -> None:
        self.tokenizer = processor.tokenizer
        self.letters = torch.tensor(self.tokenizer.convert_tokens_to_ids(list(LETTERS[:NUM_PUBLISHED])))
        self.stops = torch.tensor(self.tokenizer.convert_tokens_to_ids([".", ". The answer is"]))
        self.image_token = processor.image_token_id
        self.prefixes = {}
        for has_image in (True, False):
            content = [{"type": "image"}] * has_image + [{"type": "text", "text": _PLACE}]
            messages = [{"role": "user", "content": content}]
            prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            before, self.after = prompt.split(_PLACE)
            expanded = before.replace(processor.image_token, processor.image_token * image_tokens)
            self.prefixes[has_image] = self.tokenizer(expanded).input_ids

    def encode(self, pairs: list[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Token ids of questions and answers, the end token included."""
        texts = [text for question, answer in pairs for text in (question + self.after, answer)]
        ids = self.tokenizer(texts, add_special_tokens=False).input_ids
        return [(ids[i], [*ids[i + 1], self.tokenizer.eos_token_id]) for i in range(0, len(ids), 2)]

    def pack(
        self,
        rows: list[tuple[bool, list[tuple[str, str]]]],
        features: Tensor,
        draws: np.random.Generator | None = None,
    ) -> QuestionBatch:
        """Pack rows of (has a picture, its questions and answers); those with a picture come first.

        With ``draws`` there are random gaps in the position ids, one between the conversation's start and a picture,
        one before every question. An LLM that has read texts of all lengths does not care how far back things are.
        """
        encoded = iter(self.encode([pair for _, pairs in rows for pair in pairs]))
        packed = []
        for has_image, pairs in rows:
            prefix = self.prefixes[has_image]
            start = prefix.index(self.image_token) if has_image else len(prefix)
            late = draws.integers(_GAP + 1) if draws is not None else 0
            positions = [place + late * (place >= start) for place in range(len(prefix))]
            ids, segments = list(prefix), [0] * len(prefix)
            targets = [_IGNORED] * len(prefix)
            for segment in range(1, len(pairs) + 1):
                question, answer = next(encoded)
                length = len(question) + len(answer)
                ids += question + answer
                first = len(prefix) + late + (draws.integers(_GAP + 1) if draws is not None else 0)
                positions += range(first, first + length)
                segments += [segment] * length
                targets += [_IGNORED] * (len(question) - 1) + answer + [_IGNORED]
            packed.append((ids, positions, segments, targets))
        length = max(len(ids) for ids, *_ in packed)
        fillers = (self.tokenizer.pad_token_id, 0, -1, _IGNORED)
        columns = [
            torch.tensor([row + [filler] * (length - len(row)) for row in column])
            for column, filler in zip(zip(*packed, strict=True), fillers, strict=True)
        ]
        input_ids, places, parts, goals = columns
        return QuestionBatch(features, input_ids, places, parts, goals, self.letters, self.stops)


def make_batch(step: int, packer: Packer, pool: PicturePool, config: TrainingConfig) -> QuestionBatch:
    """The batch of a step: first rows that ask for letters, later pictures with questions and a description each."""
    letter_steps = int(_LETTER_STEPS * config.steps)
    make = letter_batch if step < letter_steps else question_batch
    draws = np.random.default_rng(step) if step >= _GAPS_AFTER * config.steps else None
    return make(step if step < letter_steps else step - letter_steps, packer, pool, config.batch_size, draws)


def letter_batch(
    step: int, packer: Packer, pool: PicturePool, batch_size: int, draws: np.random.Generator | None
) -> QuestionBatch:
    """``batch_size`` rows of questions without their pictures; answered is which letters options have."""
    rows = []
    for number in range(step * batch_size, (step + 1) * batch_size):
        index, first = number % len(pool.scenes), number * _QUESTIONS_A_TEXT_ROW
        asked = picture_problems(pool.scenes[index], index, "train", number)
        problems = list(islice(asked, _QUESTIONS_A_TEXT_ROW // 2))
        problems += [text_problem(first + other, "train") for other in range(_QUESTIONS_A_TEXT_ROW - len(problems))]
        rows.append((False, [(ask(problem), _name_letters(problem, number)) for problem in problems]))
    batch = packer.pack(rows, pool.features[:0].float(), draws)
    return replace(batch, targets=batch.targets.where(torch.isin(batch.targets, batch.letters), _IGNORED))


def question_batch(
    step: int, packer: Packer, pool: PicturePool, batch_size: int, draws: np.random.Generator | None
) -> QuestionBatch:
    """``batch_size`` pictures with questions and a description each, and rows of questions that need no picture."""
    count = len(pool.scenes)
    rows, chosen = [], []
    for number in range(step * batch_size, (step + 1) * batch_size):
        index, visit = number % count, number // count
        scene = pool.scenes[index]
        problems = _prefer_slow(picture_problems(scene, index, "train", visit), _QUESTIONS_A_PICTURE)
        rows.append((True, [(DESCRIBE, describe(scene)), *map(_conversation, problems)]))
        chosen.append(index)
    for row in range(step * _TEXT_ROWS, (step + 1) * _TEXT_ROWS):
        drawn = range(2 * row * _QUESTIONS_A_TEXT_ROW, 2 * (row + 1) * _QUESTIONS_A_TEXT_ROW)
        problems = _prefer_slow((text_problem(index, "train") for index in drawn), _QUESTIONS_A_TEXT_ROW)
        rows.append((False, list(map(_conversation, problems))))
    return packer.pack(rows, pool.features[chosen].float(), draws)


def _prefer_slow(problems: Iterable[Problem], count: int) -> list[Problem]:
    """``count`` of the problems, those of slow kinds first."""
    return sorted(problems, key=lambda problem: kind_of(problem.id) not in _SLOW)[:count]


def _name_letters(problem: Problem, number: int) -> str:
    """Letters of options drawn with replacement, worded as a solution's last words and its answer."""
    asked = np.random.default_rng((number, problem.answer)).integers(len(problem.choices), size=_LETTERS_A_QUESTION)
    return " ".join(f"{problem.choices[index]}. The answer is {LETTERS[index]}." for index in asked)


def _conversation(problem: Problem) -> tuple[str, str]:
    return ask(problem), explain(problem)


def sample_texts(count: int = 4000) -> list[str]:
    """Training texts, enough of them to hold every word."""
    scenes = {index: draw_picture(index, "train") for index in range(count // 2)}
    problems = [problem for index, scene in scenes.items() for problem in picture_problems(scene, index, "train")]
    problems += [text_problem(index, "train") for index in range(count)]
    texts = [text for problem in problems for text in _conversation(problem)]
    return [*texts, *map(describe, scenes.values()), DESCRIBE, "USER: ASSISTANT: The answer is"]


def build_head(model: LlavaForConditionalGeneration) -> nn.Module:
    """Names the four tokens before one, from the LLM's first layer, (..., D) to (..., 4, V); for training only."""
    config = model.config.text_config
    return nn.Sequential(
        nn.RMSNorm(config.hidden_size),
        nn.Linear(config.hidden_size, _PREVIOUS * config.vocab_size, bias=False),
        nn.Unflatten(-1, (_PREVIOUS, config.vocab_size)),
    )


def read_pictures(model: LlavaForConditionalGeneration, features: Tensor) -> Tensor:
    """Project a batch's ``features`` and put those of all pictures one behind the other, as the model does: (T, D)."""
    tokens = project(model, features)
    if tokens.ndim == 3:
        return tokens.flatten(0, 1)
    sizes = model.config.image_grid_pinpoints[:1] * len(tokens)  # all are as large as the one size that it knows
    strategy, newline = model.config.vision_feature_select_strategy, model.model.image_newline
    packed, _ = model.model.pack_image_features(list(tokens), sizes, strategy, image_newline=newline)
    return torch.cat(packed)


def training_losses(model: LlavaForConditionalGeneration, head: nn.Module, batch: QuestionBatch) -> dict[str, Tensor]:
    """``answer``: mean negative log-likelihood of the answers' tokens, last words of sentences weighted higher.
    ``previous``: the head's, over the tokens before in the same question. ``loss``: their weighted sum.
    """
    length = batch.input_ids.shape[1]
    keys, queries = batch.segments[:, None, :], batch.segments[:, :, None]
    allowed = ((keys == 0) | (keys == queries)) & torch.ones(length, length, dtype=torch.bool).tril()  # [B, L, L]
    mask = torch.zeros(allowed.shape).masked_fill_(~allowed, torch.finfo(torch.float32).min)[:, None]
    before = torch.stack([batch.input_ids.roll(back, dims=1) for back in range(1, _PREVIOUS + 1)], dim=-1)  # [B, L, 4]
    theirs = torch.stack([batch.segments.roll(back, dims=1) for back in range(1, _PREVIOUS + 1)], dim=-1)
    before = before.where(theirs == batch.segments[..., None], _IGNORED)
    with torch.autocast("cpu", torch.bfloat16):
        embeds = embed_prompts(model, batch.input_ids, read_pictures(model, batch.features))  # [B, L, D]
        states = model.model.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=batch.positions,
            use_cache=False,
            output_hidden_states=True,
        )
        asked = batch.targets != _IGNORED
        logits = model.lm_head(states.last_hidden_state[asked])
        inside = batch.segments > 0
        named = head(states.hidden_states[1][inside])  # [tokens, 4, V]
    last = torch.isin(batch.targets.roll(-1, dims=1), batch.stops)[asked]
    weights = torch.where(last, _LAST_WEIGHT, 1.0)
    each = F.cross_entropy(logits.float(), batch.targets[asked], reduction="none")
    answer = (each * weights).sum() / weights.sum()
    previous = F.cross_entropy(named.float().flatten(0, 1), before[inside].flatten())
    return {"loss": answer + _PREVIOUS_WEIGHT * previous, "answer": answer, "previous": previous}


def train_llava(
    config: TrainingConfig, run_dir: Path, template: str, system: str, measure: Measure
) -> dict[str, float]:
    """Train, save the LLaVA directory ``run_dir/llava``, and return what ``measure`` finds on the test split.

    Args:
        config: the numbers.
        run_dir: receives model, results, log and checkpoint.
        template: chat template of the conversation, with ``system`` as its system prompt.
        system: the system prompt.
        measure: answers a split's questions and returns accuracies.
    """
    torch.manual_seed(config.seed)
    tokenizer = build_tokenizer(sample_texts(), system)
    processor = build_processor(tokenizer, template)
    model = build_llava(tokenizer)
    pool = draw_pool(model, min(POOL, config.steps * config.batch_size))
    fit_projector(model, pool.features[:1000])
    packer = Packer(processor)
    return train_and_save(
        model, processor, lambda step: make_batch(step, packer, pool, config), config, run_dir, measure
    )


def train_and_save(
    model: Any,
    processor: Any,
    batches: Callable[[int], QuestionBatch],
    config: TrainingConfig,
    run_dir: Path,
    measure: Measure,
) -> dict[str, float]:
    """Train a LLaVA on the batches of each step, save ``run_dir/llava``; arguments and result as above."""
    seconds = train(
        model,
        build_head(model),
        batches,
        lambda model: measure(model, processor, "validation"),
        config,
        run_dir,
        training_losses,
    )
    results = measure(model, processor, "test") | {"seconds": round(seconds)}
    write_directory(run_dir / "llava", lambda directory: save_llava(model, processor, directory))
    write_json(run_dir / "results.json", results)
    return results
