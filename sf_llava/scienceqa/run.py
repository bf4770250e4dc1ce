"""A LLaVA answers ScienceQA: batched, answer by answer on disk, resumable, on several processes.

Batches are a function of the questions, the tokenizer and the batch size alone, so an answer does not depend on how
many processes share the work or on where an earlier run was killed. None mixes questions with and without a picture,
so what is asked without one is answered alike through every tower, and need be asked through one alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from sf_llava.llava.conversations import chat_template
from sf_llava.llava.positions import generate_in_place
from sf_llava.llava.tokens import encode_prompts, harmless, times
from sf_llava.measure.store import digest_texts, digest_weights
from sf_llava.scienceqa.answer_log import open_log
from sf_llava.scienceqa.asking import Generation, digest_prompts, leave_out, pictures_under, word_all
from sf_llava.scienceqa.data import ScienceQA
from sf_llava.scienceqa.problems import Problem, ask


@dataclass(frozen=True)
class Answerer:
    """A model that answers, and the settings that its answers depend on.

    Attributes:
        model: a LLaVA.
        processor: its processor.
        generation: how answers are generated.
        num_patches: with a SparseFormer in place: patches of the tower that the LLM was trained with, for positions by
            RoI centre and an attention bias; None for the plain model.
        worded: where given, keeps prompts by text and number of pictures, so that a copy for another tower finds them.
    """

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    generation: Generation
    num_patches: int | None = None
    worded: dict[tuple[str, int], str] | None = field(default=None, repr=False, compare=False)

    @property
    def image_token(self) -> str:
        """What stands for a picture in a prompt."""
        return self.processor.image_token

    def template(self) -> str | None:
        """The chat template in use."""
        name = self.generation.conversation
        if name is None and self.processor.chat_template is None:
            raise ValueError("the model's processor has no chat template: name one with `conversation` (llava_v1)")
        return self.processor.chat_template if name is None else chat_template(name)

    def prompt(self, problem: Problem, has_image: bool) -> str:
        """Word a problem as the model's conversation; see :meth:`word`."""
        text, num_images = ask(problem), int(has_image)
        if self.worded is None:
            return self.word(text, num_images, f"problem {problem.id}")
        if (text, num_images) not in self.worded:
            self.worded[text, num_images] = self.word(text, num_images, f"problem {problem.id}")
        return self.worded[text, num_images]

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
        token = self.image_token
        text = harmless(self.processor, leave_out(token, text))
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

    def count(self, prompts: Sequence[str]) -> list[int]:
        """Count the tokens of prompts, a picture as one."""
        return [len(ids) for ids in self.processor.tokenizer(list(prompts))["input_ids"]]

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
    known: Mapping[str, str] | None = None,
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
        known: answers by id that need not be asked for: the same run's to questions without a picture, through another
            tower. They are written as if they had been.
        progress: called with every answer of this process's share, those of an earlier run included.

    Raises:
        ValueError: ``output`` holds answers of other settings, or a picture cannot be read.
        RuntimeError: another run writes into ``output``, or memory does not hold a batch.
    """
    problems, prompts = word_all(answerer, data, control)
    settings = settings | {"control": control, "batch_size": batch_size, "questions": digest_prompts(prompts)}
    with open_log(output, settings, rank, wait) as log:
        pictures = pictures_under(data, control, answerer.generation.seed)
        lengths = dict(zip(prompts, answerer.count(list(prompts.values())), strict=True))
        for number, batch in enumerate(make_batches(problems, batch_size, lengths)):
            if number % num_processes != rank:
                continue
            texts = {problem.id: log.texts[problem.id] for problem in batch if problem.id in log.texts}
            if len(texts) < len(batch):
                new = {problem.id: known[problem.id] for problem in batch if problem.id in known} if known else {}
                if len(new) < len(batch):
                    new = _answer_batch(answerer, batch, prompts, pictures, number)
                log.append(prompts, {id: text for id, text in new.items() if id not in texts})
                texts = new | texts
            for problem in batch:
                progress(problem, texts[problem.id])
        return log.finish(problems)


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


def make_batches(problems: Sequence[Problem], size: int, lengths: Mapping[str, int]) -> Iterator[list[Problem]]:
    """Group problems of one kind, text alone first, and of like length, so that little is padded.

    Args:
        problems: in any order.
        size: of a batch.
        lengths: by id; among equals, questions in like words stand together, whose answers end together.
    """
    for has_image in (False, True):
        kind = [problem for problem in problems if problem.has_image == has_image]
        kind.sort(key=lambda problem: (lengths[problem.id], ask(problem)))
        for start in range(0, len(kind), size):
            yield kind[start : start + size]
