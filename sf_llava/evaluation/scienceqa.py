"""A LLaVA answers ScienceQA: batched, answer by answer on disk, resumable, on several processes.

Batches are a function of the questions and the batch size alone, so an answer does not depend on how many processes
share the work or on where an earlier run was killed.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from sf_llava.checkpoints.conversations import chat_template
from sf_llava.data.scienceqa import Problem, ScienceQA, ask, read_predictions, shuffle_images
from sf_llava.files import read_json, write_bytes, write_json
from sf_llava.plugin.positions import generate_in_place
from sf_llava.plugin.tokens import encode_prompts

CONTROLS = ("blind", "shuffled", "grey")
GREY = (128, 128, 128)
ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class Generation:
    """How answers are generated; greedily at temperature 0. ``conversation`` None is the processor's own template."""

    max_new_tokens: int = 1024
    temperature: float = 0.0
    seed: int = 0
    conversation: str | None = None


@dataclass(frozen=True)
class Answerer:
    """A model that answers, and the settings that its answers depend on.

    Attributes:
        model: a LLaVA.
        processor: its processor.
        generation: how answers are generated.
        num_patches: with a SparseFormer in place: patches of the tower that the LLM was trained with, for positions by
            RoI centre and an attention bias; None for the plain model.
    """

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    generation: Generation
    num_patches: int | None = None

    def template(self) -> str | None:
        """The chat template in use."""
        name = self.generation.conversation
        if name is None and self.processor.chat_template is None:
            raise ValueError("the model's processor has no chat template: name one with --conversation (llava_v1)")
        return self.processor.chat_template if name is None else chat_template(name)

    def prompt(self, problem: Problem, has_image: bool) -> str:
        """Word a problem as the model's conversation."""
        content = [{"type": "image"}] * has_image + [{"type": "text", "text": ask(problem)}]
        messages = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(
            messages, chat_template=self.template(), add_generation_prompt=True, tokenize=False
        )

    @torch.inference_mode()
    def answer(self, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]], seed: int) -> list[str]:
        """Answer a batch of prompts with their images."""
        inputs = encode_prompts(self.processor, prompts, images).to(self.model.device)
        sampling = dict(do_sample=False)
        if self.generation.temperature > 0:
            torch.manual_seed(seed)
            sampling = dict(do_sample=True, temperature=self.generation.temperature)
        pad = self.processor.tokenizer.pad_token_id
        options = dict(max_new_tokens=self.generation.max_new_tokens, pad_token_id=pad, **sampling)
        if self.num_patches is None:
            new = self.model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        else:
            new = generate_in_place(self.model, inputs, self.num_patches, **options)
        return [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]


def answer_all(
    answerer: Answerer,
    data: ScienceQA,
    output: Path,
    settings: dict[str, Any],
    *,
    control: str | None = None,
    batch_size: int = 8,
    rank: int = 0,
    num_processes: int = 1,
    wait: Callable[[], None] = lambda: None,
    progress: Callable[[Problem, str], None] = lambda problem, text: None,
) -> dict[str, str]:
    """Answer every problem of ``data`` that ``output`` does not hold yet; return all answers by id.

    Args:
        answerer: the model.
        data: problems and pictures.
        output: directory with ``answers.jsonl`` when done, one part for each process until then, and ``run.json``.
        settings: what the answers depend on; another run's answers are refused.
        control: ``blind`` (no image), ``shuffled`` (another question's) or ``grey``; only questions with an image are
            asked then.
        batch_size: questions generated together.
        rank, num_processes: this process's share.
        wait: waits for all processes.
        progress: called with every answer of this process's share, those of an earlier run included.

    Raises:
        ValueError: ``output`` holds answers of other settings, or a picture cannot be read.
    """
    problems = [problem for problem in data.problems if problem.has_image or control is None]
    output.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        _claim(output, settings | {"control": control, "batch_size": batch_size, "questions": len(problems)})
    done = read_answers(output)
    wait()
    pictures = _pictures(data, control, answerer.generation.seed)
    part = output / f"answers.{rank}.part.jsonl"
    with open(part, "a", encoding="utf-8") as file:
        for number, batch in enumerate(make_batches(problems, batch_size)):
            if number % num_processes != rank:
                continue
            for problem in batch:
                if problem.id in done:
                    progress(problem, done[problem.id])
            if all(problem.id in done for problem in batch):
                continue
            images = [pictures(problem) for problem in batch]
            prompts = [answerer.prompt(problem, bool(image)) for problem, image in zip(batch, images, strict=True)]
            texts = answerer.answer(prompts, images, answerer.generation.seed + number)
            for problem, prompt, text in zip(batch, prompts, texts, strict=True):
                if problem.id not in done:
                    entry = dict(question_id=problem.id, prompt=prompt, text=text)
                    file.write(json.dumps(entry, ensure_ascii=False) + "\n")
                    file.flush()
                    progress(problem, text)
    wait()
    if rank == 0:
        _merge(output, problems)
    wait()
    return read_predictions(output / ANSWERS)


def make_batches(problems: Sequence[Problem], size: int) -> Iterator[list[Problem]]:
    """Group problems of like length and kind, so that little is padded and text alone waits for no image."""
    order = sorted(range(len(problems)), key=lambda i: (problems[i].has_image, len(ask(problems[i])), i))
    for start in range(0, len(order), size):
        yield [problems[i] for i in order[start : start + size]]


def read_answers(output: Path) -> dict[str, str]:
    """Read what earlier runs left in ``output``; the torn last line of a killed one is cut off its part."""
    answers = read_predictions(output / ANSWERS) if (output / ANSWERS).is_file() else {}
    for part in sorted(output.glob("answers.*.part.jsonl")):
        data = part.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            write_bytes(part, whole)
        answers |= read_predictions(part)
    return answers


def _claim(output: Path, settings: dict[str, Any]) -> None:
    """Write down what the answers in ``output`` depend on, or check it against what is written there."""
    file = output / "run.json"
    settings = json.loads(json.dumps(settings))
    if not file.is_file():
        write_json(file, settings)
        return
    before = read_json(file)
    if changed := [name for name in settings.keys() | before.keys() if settings.get(name) != before.get(name)]:
        name = min(changed)
        raise ValueError(
            f"{output} holds answers of other settings ({name} was {before.get(name)!r}, now {settings.get(name)!r}): "
            "name another --output, or remove it"
        )


def _merge(output: Path, problems: Sequence[Problem]) -> None:
    """Join the parts into one file in the order of the problems."""
    files = [file for file in (output / ANSWERS, *sorted(output.glob("answers.*.part.jsonl"))) if file.is_file()]
    lines = {}
    for file in files:
        for line in filter(None, file.read_text(encoding="utf-8").split("\n")):
            lines.setdefault(json.loads(line)["question_id"], line)
    assert len(lines) == len(problems), "every question must have been answered exactly once"
    write_bytes(output / ANSWERS, "".join(f"{lines[problem.id]}\n" for problem in problems).encode())
    for part in output.glob("answers.*.part.jsonl"):
        part.unlink()


def _pictures(data: ScienceQA, control: str | None, seed: int) -> Callable[[Problem], list[Image.Image]]:
    """Say which pictures a problem is shown under a control."""
    if control not in (None, *CONTROLS):
        raise ValueError(f"unknown control {control!r}; known: {', '.join(CONTROLS)}")
    shown = shuffle_images(data.problems, seed) if control == "shuffled" else {}

    def pictures(problem: Problem) -> list[Image.Image]:
        if not problem.has_image or control == "blind":
            return []
        image = data.load_image(shown.get(problem.id, problem))
        return [Image.new("RGB", image.size, GREY)] if control == "grey" else [image]

    return pictures
