"""The model ``sf_llava`` of lmms-eval: a LLaVA, asked through its own tower or through a SparseFormer.

Its arguments (``model_args``): ``pretrained=LLAVA,encoder=runs/sf-l-64,positions_and_bias=True,dtype=fp16``.

Prompts, pictures, batches and generation are those of ``sf-llava scienceqa``, so that both give the same answers.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from sf_llava.data.rgb import to_rgb
from sf_llava.devices import as_dtype_to_load, choose_device
from sf_llava.llava.loading import load_llava
from sf_llava.llava.quantisation import quantisation_config
from sf_llava.llava.towers import ORIGINAL, SWAPPED, Tower, tower_in_place
from sf_llava.scienceqa.run import Answerer, Generation

ARGUMENTS = "pretrained, encoder, positions_and_bias, dtype, bits, tower, conversation, device, batch_size"
MAX_NEW_TOKENS = 1024  # where a task names none


class SparseFormerLlava(lmms):
    """A LLaVA for lmms-eval.

    Args:
        pretrained: LLaVA: ``mini``, a directory in transformers' or the original format, a hub name.
        encoder: directory of a SparseFormer or its run, to be swapped in; none: the LLaVA's own tower.
        positions_and_bias: let the LLM read the encoder's latents by RoI centre and with the attention bias.
        dtype: fp32, fp16, bf16, or auto, as the weights were saved.
        bits: load the LLM in 4 or 8 bits (bitsandbytes).
        tower: where an original LLaVA directory's own tower lies.
        conversation: ``vicuna_v1`` or ``llava_v1``; default: the model's own chat template.
        device: auto, cpu, cuda ...
        batch_size: questions at once.
        max_batch_size: lmms-eval's, not used.
        unknown: anything else is an error.

    Raises:
        ValueError: an unknown argument, ``positions_and_bias`` without an encoder, or what loading and swapping refuse.
    """

    def __init__(
        self,
        pretrained: str = "mini",
        encoder: str | None = None,
        positions_and_bias: bool = False,
        dtype: str = "fp32",
        bits: int | None = None,
        tower: str | None = None,
        conversation: str | None = None,
        device: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise ValueError(f"sf_llava has no model argument {', '.join(unknown)}; expected {ARGUMENTS}")
        if positions_and_bias and encoder is None:
            raise ValueError("positions_and_bias is for a SparseFormer: name one with encoder=DIR")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a whole number from 1, not {batch_size!r}")
        self._device = choose_device(device)
        self.accelerator = Accelerator(cpu=self._device.type == "cpu")
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.batch_size = int(batch_size)
        placement: dict[str, Any] = {"device_map": {"": self._device}}
        if bits is not None:
            compute_dtype = as_dtype_to_load(dtype)
            named = {"compute_dtype": compute_dtype} if isinstance(compute_dtype, torch.dtype) else {}
            placement["quantization_config"] = quantisation_config(bits, **named)
        model, processor = load_llava(pretrained, dtype=dtype, tower=tower, **placement)
        chosen = Tower(ORIGINAL) if encoder is None else Tower(SWAPPED, Path(encoder), positions_and_bias)
        self._in_place = ExitStack()  # kept, and with it the swap
        num_patches = self._in_place.enter_context(tower_in_place(model, processor, chosen))
        self._answerer = Answerer(
            model, processor, Generation(conversation=conversation), num_patches if positions_and_bias else None
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer requests, in their order; a batch is of one kind, with or without pictures, and of like length.

        Raises:
            ValueError: a task that shows anything but pictures, or asks for beams or nucleus sampling.
        """
        answers: list[str] = [""] * len(requests)
        asked = [_Asked(self.task_dict, *request.args) for request in requests]
        order = sorted(range(len(asked)), key=lambda i: (asked[i].how, bool(asked[i].images), len(asked[i].text), i))
        with tqdm(total=len(asked), disable=self.rank != 0, desc="sf_llava", unit="question") as bar:
            for batch in _batches(order, self.batch_size, [(one.how, bool(one.images)) for one in asked]):
                texts = self._answer([asked[index] for index in batch])
                for index, text in zip(batch, texts, strict=True):
                    answers[index] = text
                    self.cache_hook.add_partial("generate_until", (asked[index].text, asked[index].options), text)
                bar.update(len(batch))
        return answers

    def _answer(self, batch: Sequence["_Asked"]) -> list[str]:
        """Answer requests that ask for one way of generating."""
        options = batch[0].options
        answerer = replace(self._answerer, generation=_read_generation(options, self._answerer.generation))
        prompts = [answerer.word(one.text, len(one.images), one.name) for one in batch]
        answers = answerer.answer(prompts, [one.images for one in batch], answerer.generation.seed)
        return [_cut(answer, options.get("until")) for answer in answers]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered."""
        raise NotImplementedError("sf_llava answers tasks of output_type generate_until; this one asks for likelihoods")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered."""
        raise NotImplementedError("sf_llava answers tasks of output_type generate_until; this one asks in many rounds")


class _Asked:
    """One request of a task: its text, pictures, and options of generation."""

    def __init__(
        self,
        documents: Mapping[str, Any],
        text: str,
        options: Mapping[str, Any],
        doc_to_visual: Callable[[Any], Sequence[Any] | None],
        doc_id: int,
        task: str,
        split: str,
    ) -> None:
        self.text, self.options, self.name = text, options, f"document {doc_id} of {task}"
        self.how = repr(sorted(options.items()))
        shown = doc_to_visual(documents[task][split][doc_id]) or []
        if strange := [type(one).__name__ for one in shown if not isinstance(one, Image.Image)]:
            raise ValueError(f"{self.name} shows a {strange[0]}: sf_llava is shown pictures alone")
        self.images = [to_rgb(image) for image in shown]


def _batches(order: Sequence[int], size: int, how: Sequence[object]) -> list[list[int]]:
    """Cut an order of requests into batches in each of which all are alike in ``how``."""
    batches: list[list[int]] = []
    for index in order:
        if batches and len(batches[-1]) < size and how[batches[-1][-1]] == how[index]:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _read_generation(options: Mapping[str, Any], usual: Generation) -> Generation:
    """Read a task's options of generation.

    Raises:
        ValueError: beams, or nucleus sampling.
    """
    temperature = float(options.get("temperature") or 0) if options.get("do_sample", True) else 0.0
    if (options.get("num_beams") or 1) != 1:
        raise ValueError(f"sf_llava does not search with beams: expected num_beams 1, not {options['num_beams']}")
    if temperature and (options.get("top_p") or 1) != 1:
        raise ValueError(f"sf_llava samples from all words: expected top_p 1, not {options['top_p']}")
    return replace(usual, max_new_tokens=options.get("max_new_tokens", MAX_NEW_TOKENS), temperature=temperature)


def _cut(answer: str, until: str | Sequence[str] | None) -> str:
    """Cut an answer where the first of a task's stopping texts begins."""
    for stop in [until] if isinstance(until, str) else until or ():
        if stop:
            answer = answer.partition(stop)[0]
    return answer
