"""A LLaVA answers ScienceQA: batched, answer by answer on disk, resumable, on several processes.

Batches are a function of the questions and the batch size alone, so an answer does not depend on how many processes
share the work or on where an earlier run was killed.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from sf_llava.files import locked, read_json, write_bytes, write_json, writing
from sf_llava.llava.conversations import chat_template
from sf_llava.llava.positions import generate_in_place
from sf_llava.llava.tokens import encode_prompts, harmless, times
from sf_llava.measure.store import digest_texts, digest_weights
from sf_llava.scienceqa import CONTROLS
from sf_llava.scienceqa.data import ScienceQA, shuffle_images
from sf_llava.scienceqa.predictions import read_log
from sf_llava.scienceqa.problems import Problem, ask

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
            raise ValueError("the model's processor has no chat template: name one with `conversation` (llava_v1)")
        return self.processor.chat_template if name is None else chat_template(name)

    def prompt(self, problem: Problem, has_image: bool) -> str:
        """Word a problem as the model's conversation; see :meth:`word`."""
        return self.word(ask(problem), int(has_image), f"problem {problem.id}")

    def word(self, text: str, num_images: int, what: str) -> str:
        """Word a question as the model's conversation, its pictures first.

        Where its own text says ``<image>``, which would stand for a picture, that is left out, as LLaVA's evaluation
        does; other tokens with a meaning of their own (``</s>``) are written so that they have none.

        Args:
            text: of the question.
            num_images: pictures that come with it.
            what: names the question, for errors.

        Raises:
            ValueError: the model's chat template cannot word it; the message names the question.
        """
        token = self.processor.image_token
        while token in text:  # again: what is left may join to another
            text = text.replace(token, "").strip()
        text = harmless(self.processor, text)
        content = [{"type": "image"}] * num_images + [{"type": "text", "text": text}]
        messages = [{"role": "user", "content": content}]
        hint = "name another with `conversation` (llava_v1, vicuna_v1)"
        template = self.template()
        try:
            prompt = self.processor.apply_chat_template(
                messages, chat_template=template, add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # whatever a template written for other conversations runs into
            raise ValueError(f"the chat template cannot word {what} ({error}): {hint}") from error
        if text.strip() not in prompt or prompt.count(token) != num_images:
            raise ValueError(
                f"the chat template does not word {what} with its text as it is and {token} {times(num_images)}: {hint}"
            )
        return prompt

    @torch.inference_mode()
    def answer(self, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]], seed: int) -> list[str]:
        """Answer a batch of prompts with their images."""
        inputs = encode_prompts(self.processor, prompts, images).to(self.model.device)
        sampling: dict[str, Any] = dict(do_sample=False)
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


def digest_llm(model: LlavaForConditionalGeneration) -> str:
    """Digest the weights of a LLaVA without its vision tower: projector, LLM, head."""
    parts = (model.model.multi_modal_projector, model.model.language_model, model.lm_head)
    return digest_texts(*map(digest_weights, parts))


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

    Warns of damaged lines in ``output``, and of questions that say ``<image>`` themselves.

    Args:
        answerer: the model.
        data: problems and pictures.
        output: directory with ``answers.jsonl`` when done, one part for each process until then, and ``run.json``.
        settings: what the answers depend on beside the prompts; another run's answers are refused.
        control: ``blind`` (no image), ``shuffled`` (another question's) or ``grey``; only questions with an image are
            asked then.
        batch_size: questions generated together.
        rank, num_processes: this process's share.
        wait: waits for all processes.
        progress: called with every answer of this process's share, those of an earlier run included.

    Raises:
        ValueError: ``output`` holds answers of other settings, or a picture cannot be read.
        RuntimeError: another run writes into ``output``, or memory does not hold a batch.
    """
    problems = [problem for problem in data.problems if problem.has_image or control is None]
    prompts = {problem.id: answerer.prompt(problem, problem.has_image and control != "blind") for problem in problems}
    if said := [problem.id for problem in problems if answerer.processor.image_token in ask(problem)]:
        warnings.warn(
            f"{len(said):,} question(s) say {answerer.processor.image_token} in their own text (the first: {said[0]}): "
            "it is left out, as LLaVA's own evaluation does",
            stacklevel=2,
        )
    asked = digest_texts(*(part for pair in prompts.items() for part in pair))
    with locked(output) if rank == 0 else nullcontext():
        if rank == 0:
            _claim(output, settings | {"control": control, "batch_size": batch_size, "questions": asked})
            _repair(output)
        wait()
        entries = _read_entries(output)
        wait()
        pictures = _pictures(data, control, answerer.generation.seed)
        part = output / f"answers.{rank}.part.jsonl"
        for number, batch in enumerate(make_batches(problems, batch_size)):
            if number % num_processes != rank:
                continue
            texts = {problem.id: entries[problem.id]["text"] for problem in batch if problem.id in entries}
            if len(texts) < len(batch):
                new = _answer_batch(answerer, batch, prompts, pictures, number)
                _append(part, [dict(question_id=id, prompt=prompts[id], text=new[id]) for id in new if id not in texts])
                texts = new | texts
            for problem in batch:
                progress(problem, texts[problem.id])
        wait()
        if rank == 0:
            _merge(output, problems)
        wait()
        return {id: entry["text"] for id, entry in _read_entries(output).items()}


def _answer_batch(
    answerer: Answerer,
    batch: Sequence[Problem],
    prompts: Mapping[str, str],
    pictures: Callable[[Problem], list[Image.Image]],
    number: int,
) -> dict[str, str]:
    """Answer one batch, by id."""
    texts = [prompts[problem.id] for problem in batch]
    images = [pictures(problem) for problem in batch]
    try:
        answers = answerer.answer(texts, images, answerer.generation.seed + number)
    except torch.OutOfMemoryError as error:
        raise RuntimeError(
            f"out of memory with {len(batch)} questions at once (the first: problem {batch[0].id}): ask fewer at a "
            "time with `batch_size`, into another `output`, for an answer depends a little on its batch"
        ) from error
    return {problem.id: answer for problem, answer in zip(batch, answers, strict=True)}


def make_batches(problems: Sequence[Problem], size: int) -> Iterator[list[Problem]]:
    """Group problems of like length and kind, so that little is padded and text alone waits for no image."""
    order = sorted(range(len(problems)), key=lambda i: (problems[i].has_image, len(ask(problems[i])), i))
    for start in range(0, len(order), size):
        yield [problems[i] for i in order[start : start + size]]


def _line(entry: Mapping[str, str]) -> str:
    """Write one answer as a line of the log."""
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _append(log: Path, entries: Sequence[Mapping[str, str]]) -> None:
    """Add answers to a log; opened anew each time, so that it is written when this returns."""
    with writing(log), open(log, "a", encoding="utf-8") as file:
        file.write("".join(map(_line, entries)))


def _logs(output: Path) -> list[Path]:
    """List what earlier runs left in ``output``."""
    return [file for file in (output / ANSWERS, *sorted(output.glob("answers.*.part.jsonl"))) if file.is_file()]


def _read_entries(output: Path) -> dict[str, dict[str, str]]:
    """Read all answers in ``output`` by question id."""
    return {id: entry for file in _logs(output) for id, entry in read_log(file)[0].items()}


def _repair(output: Path) -> None:
    """Cut off the torn last line of a killed run, and take out lines that are no answers: these are asked again."""
    for file in _logs(output):
        entries, bad = read_log(file)
        if bad:
            warnings.warn(
                f"{len(bad)} line(s) of {file} are damaged (the first: line {bad[0]}); their questions are asked again",
                stacklevel=3,
            )
        whole = "".join(map(_line, entries.values())).encode()
        if whole != file.read_bytes():
            write_bytes(file, whole)


def _claim(output: Path, settings: dict[str, Any]) -> None:
    """Write down what the answers in ``output`` depend on, or check it against what is written there."""
    file = output / "run.json"
    settings = json.loads(json.dumps(settings))
    way_out = "name another `output`, or remove it"
    if not file.is_file():
        if kept := _logs(output):
            raise ValueError(f"{kept[0]} holds answers, but no {file.name} beside it says of which run: {way_out}")
        write_json(file, settings)
        return
    before = read_json(file)
    if not isinstance(before, dict):
        raise ValueError(f"{file} is no record of a run, which answers need beside them: {way_out}")
    if changed := [name for name in settings.keys() | before.keys() if settings.get(name) != before.get(name)]:
        name = min(changed)
        raise ValueError(
            f"{output} holds answers of other settings ({name} was {before.get(name, 'not noted')!r}, now "
            f"{settings.get(name)!r}): {way_out}"
        )


def _merge(output: Path, problems: Sequence[Problem]) -> None:
    """Join the parts into one file in the order of the problems."""
    entries = _read_entries(output)
    assert all(problem.id in entries for problem in problems), "every question must have been answered"
    write_bytes(output / ANSWERS, "".join(_line(entries[problem.id]) for problem in problems).encode())
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
