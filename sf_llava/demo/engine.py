"""One LLaVA in memory and two towers for it: the original CLIP, and a SparseFormer that is put in its place.

LLM and projector are shared. A picture is encoded once a tower; its features stay with it. Generation is a plain
generator that does one token a step: who stops asking has stopped it.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from sf_llava.configuration import SparseFormerConfig
from sf_llava.demo.conversation import CLIP, SPARSEFORMER, Answer, Turn, as_messages, check_length, without_oldest
from sf_llava.demo.uploads import Picture, RefusedError
from sf_llava.llava.host import embed_prompts, new_cache
from sf_llava.llava.reading import see
from sf_llava.llava.swapping import Swap, restore, swap
from sf_llava.llava.tokens import harmless
from sf_llava.model import SparseFormerModel
from sf_llava.model.loading import load_encoder
from sf_llava.visualize import pictures_from_pixels


@dataclass
class View:
    """What a tower made of a picture.

    Attributes:
        features: (N, D) projected tokens, as the LLM reads them.
        milliseconds: tower and projector.
        square: the square view of the whole picture that the tower saw.
        rois: (I + 1, N, 4) on the CPU; None for CLIP.
        points: (N, P, 2) on the CPU; None for CLIP.
        focus: HTML that shows them, once somebody has drawn it.
    """

    features: Tensor
    milliseconds: float
    square: Image.Image
    rois: Tensor | None = None
    points: Tensor | None = None
    focus: str = ""


@dataclass(frozen=True)
class Sampling:
    """How an answer is generated; greedily at temperature 0."""

    temperature: float = 0.0
    max_new_tokens: int = 128


def offered_latents(config: SparseFormerConfig) -> list[int]:
    """Say with which numbers of latents an encoder can be asked: its own first; an elastic one's from lowest to
    highest, doubled each time."""
    own = config.num_latents
    lowest, highest = config.num_latents_range or (own, own)
    ladder = [lowest]
    while ladder[-1] < highest:
        ladder.append(min(2 * ladder[-1], highest))
    return [own, *(count for count in ladder if count != own)]


class Engine:
    """Answers questions about pictures through either tower.

    Args:
        model: a loaded LLaVA in eval mode.
        processor: its processor, with a chat template.
        encoders: SparseFormers of different numbers of latents, or where they lie; none for CLIP alone. An elastic one
            can be asked with several numbers.

    Raises:
        ValueError: an encoder does not fit this LLaVA, or two have as many latents.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        processor: LlavaProcessor,
        encoders: Sequence[SparseFormerModel | str | Path] = (),
    ) -> None:
        self.model, self.processor, self.tokenizer = model, processor, processor.tokenizer
        if processor.chat_template is None:
            raise ValueError("the model's processor has no chat template: name one with `conversation` (llava_v1)")
        projector = next(model.model.multi_modal_projector.parameters())
        self.encoders: dict[int, SparseFormerModel] = {}  # by the number of latents
        for encoder in encoders:
            if isinstance(encoder, (str, Path)):
                encoder = load_encoder(encoder, dtype=projector.dtype)
            for latents in offered_latents(encoder.config):
                if latents in self.encoders:
                    raise ValueError(f"two encoders have {latents} latents: name one for every number to choose from")
                self.encoders[latents] = encoder.with_num_latents(latents)
        self.device, self.dtype = projector.device, projector.dtype
        self.context = model.config.text_config.max_position_embeddings
        self.towers = [SPARSEFORMER, CLIP] if self.encoders else [CLIP]
        self._swapped: tuple[SparseFormerModel, Swap] | None = None
        self._lock = threading.Lock()
        ends = model.generation_config.eos_token_id
        self._ends = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        self._suppressed = [*(model.generation_config.suppress_tokens or []), model.config.image_token_id]
        self._warm_up()

    def _warm_up(self) -> None:
        """Run every part once, so that the first person's times are not those of a start."""
        grey = Image.new("RGB", (64, 64), "grey")
        for answer in [*(Answer(SPARSEFORMER, latents=latents) for latents in self.encoders), Answer(CLIP)]:
            picture = Picture(grey, "grey", "")
            for _ in self.answer(answer, [Turn("?", [picture])], Sampling(max_new_tokens=2)):
                pass

    def see(self, tower: str, picture: Picture, latents: int | None = None) -> tuple[View, bool]:
        """What ``tower`` (with so many latents) makes of a picture, and whether it was known already."""
        encoder = self._encoder(tower, latents)
        key = tower if encoder is None else encoder.config.num_latents
        if key in picture.views:
            return picture.views[key], True
        with self._lock, torch.inference_mode():
            self._put(encoder)
            images = self.processor.image_processor
            inputs = images(picture.image, return_tensors="pt").to(self.device, self.dtype)
            pixels = inputs.pop("pixel_values")
            wanted = {"output_sampling_points": True} if encoder is not None else {}
            start = self._now()
            seen = see(self.model, pixels, None, **inputs, **wanted)
            milliseconds = 1e3 * (self._now() - start)
        views = pixels.flatten(0, -4)  # the whole picture, and where it is cut its tiles
        whole = views[-1:] if encoder is not None and encoder.config.teacher_tiles > 1 else views[:1]
        (square,) = pictures_from_pixels(whole, images.image_mean, images.image_std)
        view = View(seen.features[0], milliseconds, square)
        if encoder is not None:
            view.rois, view.points = seen.outputs.rois[0].cpu(), seen.outputs.sampling_points[0].cpu()
        picture.views[key] = view
        return view, False

    def prompt(self, turns: Sequence[Turn], tower: str, visual_tokens: Sequence[int]) -> list[int]:
        """Token ids of a conversation's prompt, every picture as so many image tokens."""
        plain = [Turn(harmless(self.processor, turn.question), turn.pictures, turn.answers) for turn in turns]
        messages = as_messages(plain, tower)
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        before, *after = text.split(self.processor.image_token)
        assert len(after) == len(visual_tokens), "the chat template left out a picture"
        parts = [before]
        for count, part in zip(visual_tokens, after, strict=True):
            parts += [self.processor.image_token * count, part]
        return self.tokenizer("".join(parts))["input_ids"]

    def unknown_words(self, text: str) -> list[str]:
        """Words that the tokenizer has no token for; a model on bytes or subwords knows them all."""
        if not self.tokenizer.is_fast or self.tokenizer.unk_token_id is None:
            return []
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
        return list(dict.fromkeys(text[a:b] for token, (a, b) in pairs if token == self.tokenizer.unk_token_id))

    def answer(self, answer: Answer, turns: Sequence[Turn], sampling: Sampling) -> Iterator[Answer]:
        """Generate ``answer`` to the last of ``turns``, yielding it after every part that has grown.

        Raises:
            RefusedError: the question does not fit the model's context, even without earlier turns.
        """
        tower = answer.tower
        views = []
        for picture in (picture for turn in turns for picture in turn.pictures):
            view, known = self.see(tower, picture, answer.latents)
            views.append(view)
            answer.reused += known
            answer.encoder_ms += 0 if known else view.milliseconds
        counts = [len(view.features) for view in views]
        answer.visual_tokens = sum(counts)
        ids = self._fit(answer, turns, counts, sampling.max_new_tokens)
        answer.state = "writing"
        yield answer
        yield from self._decode(answer, ids, views, sampling)

    def _fit(self, answer: Answer, turns: Sequence[Turn], counts: Sequence[int], reserve: int) -> list[int]:
        """The prompt, without its oldest turns where the context would not hold them and the answer."""
        turns = list(turns)
        check_length(turns[-1].question)
        while True:
            ids = self.prompt(turns, answer.tower, counts)
            if len(ids) + reserve <= self.context:
                return ids
            if len(turns) == 1:
                raise RefusedError(
                    f"Pictures and question take {len(ids):,} tokens and the answer may take {reserve:,}, but the "
                    f"model holds {self.context:,}: shorten the question, allow a shorter answer, or clear the chat."
                )
            turns = without_oldest(turns)
            answer.forgotten += 1

    def _decode(self, answer: Answer, ids: list[int], views: Sequence[View], sampling: Sampling) -> Iterator[Answer]:
        """Read the prompt, then one token a step; the last yield has ``state`` set."""
        tokens, cache = torch.tensor([ids], device=self.device), new_cache(self.model)
        new: list[int] = []
        while True:
            with self._lock, torch.inference_mode():
                self._put(self._encoder(answer.tower, answer.latents))
                start = self._now()
                read = {"input_ids": tokens}
                if views and not new:
                    features = torch.cat([view.features for view in views])
                    read = {"inputs_embeds": embed_prompts(self.model, tokens, features)}
                output = self.model(**read, **cache, use_cache=True, logits_to_keep=1)
                token = self._choose(output.logits[0, -1], sampling.temperature)
                seconds = self._now() - start
            tokens = torch.tensor([[token]], device=self.device)
            if not new:
                answer.prefill_ms = 1e3 * seconds
            else:
                answer.decode_seconds += seconds
            new.append(token)
            answer.num_tokens = len(new)
            if token in self._ends:
                answer.state = "finished"
            elif len(new) == sampling.max_new_tokens:
                answer.state = "length"
            text = self.tokenizer.decode(new, skip_special_tokens=True).strip()
            if answer.state != "writing" or not text.endswith("\ufffd"):  # half of a letter of several bytes
                answer.text = text
            yield answer
            if answer.state != "writing":
                return

    def _choose(self, logits: Tensor, temperature: float) -> int:
        """The next token."""
        logits = logits.float()
        logits[self._suppressed] = -torch.inf
        if temperature == 0:
            return int(logits.argmax())
        return int(torch.multinomial((logits / temperature).softmax(dim=-1), 1))

    def _encoder(self, tower: str, latents: int | None) -> SparseFormerModel | None:
        """The SparseFormer that a tower's name and a number of latents mean; None: the original tower."""
        if tower != SPARSEFORMER:
            return None
        return next(iter(self.encoders.values())) if latents is None else self.encoders[latents]

    def _put(self, encoder: SparseFormerModel | None) -> None:
        """Have ``encoder`` in place, or the original tower."""
        if self._swapped is not None and self._swapped[0] is not encoder:
            restore(self._swapped[1])
            self._swapped = None
        if self._swapped is None and encoder is not None:
            self._swapped = encoder, swap(self.model, self.processor, encoder)

    def _now(self) -> float:
        """Seconds, when the device has done what it was asked."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()
