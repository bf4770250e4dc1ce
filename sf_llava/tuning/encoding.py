"""Conversations as a LLaVA reads them while it is tuned: token ids, and labels on the answers alone.

Letters: B conversations, L tokens, S pixels.
"""

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import LlavaProcessor

from sf_llava.data.images import CorruptImageError
from sf_llava.llava.conversations import chat_template
from sf_llava.llava.tokens import harmless
from sf_llava.tuning.conversations import Conversation
from sf_llava.tuning.loss import IGNORED

MULTIPLE = 16  # of tokens, that rows are padded to


class Encoder:
    """Writes conversations by a processor's chat template, tokenised as at inference.

    Args:
        processor: of the LLaVA with the tower in place.
        conversation: ``llava_v1``, ``vicuna_v1``, or None for the processor's own template.
        max_length: tokens beyond are cut off, None: none are.

    Raises:
        ValueError: there is no template, the tokenizer does not say which letters a token stands for, or pictures are
            cut into tiles.
    """

    def __init__(self, processor: LlavaProcessor, conversation: str | None = None, max_length: int | None = None):
        self.processor, self.max_length = processor, max_length
        self.template = processor.chat_template if conversation is None else chat_template(conversation)
        if self.template is None:
            raise ValueError("the model's processor has no chat template: name one with `conversation` (llava_v1)")
        if not processor.tokenizer.is_fast:
            raise ValueError(f"the tokenizer is a slow one ({type(processor.tokenizer).__name__}): expected a fast one")
        if hasattr(processor.image_processor, "image_grid_pinpoints"):
            raise ValueError(
                f"the processor's {type(processor.image_processor).__name__} cuts pictures into tiles, but recovery "
                "writes one number of tokens for every picture: give a LLaVA that reads a picture as one square"
            )
        token = processor.image_token
        blank = processor(images=Image.new("RGB", (64, 64)), text=token, return_tensors="pt")
        self.image_tokens = token * int((blank["input_ids"] == processor.image_token_id).sum())

    def encode(self, conversation: Conversation) -> dict[str, Tensor]:
        """Encode a conversation: ``input_ids`` and ``labels`` (L,) int64, ``pixel_values`` (1, 3, S, S).

        Raises:
            ValueError: the chat template does not word the conversation turn by turn.
            CorruptImageError: its picture cannot be read.
        """
        text, spans = self.write(conversation)
        tokens = self.processor.tokenizer(text, return_offsets_mapping=True)
        said = [any(first < end and start < last for first, last in spans) for start, end in tokens["offset_mapping"]]
        ids = torch.tensor(tokens["input_ids"])[: self.max_length]
        labels = ids.masked_fill(~torch.tensor(said)[: self.max_length], IGNORED)
        pixels = self.processor.image_processor(conversation.load(), return_tensors="pt")["pixel_values"]
        return {"input_ids": ids, "labels": labels, "pixel_values": pixels}

    def write(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """Write a conversation with its image tokens; return the text, and where answers (with their end) stand."""
        messages: list[dict[str, Any]] = []
        spans, whole = [], ""
        for place, turn in enumerate(conversation.turns):
            text = harmless(self.processor, turn)
            content: list[dict[str, str]] = [{"type": "text", "text": text}]
            if place % 2 == 0:
                content = [{"type": "image"}, *content] if place == 0 else content
                messages.append({"role": "user", "content": content})
                continue
            asked = self._apply(messages, conversation, add_generation_prompt=True)
            messages.append({"role": "assistant", "content": content})
            told = self._apply(messages, conversation).rstrip()
            if not told.startswith(asked) or text.strip() not in told[len(asked) :] or not asked.startswith(whole):
                raise ValueError(
                    f"the chat template does not word {conversation.id} turn by turn, so its answers cannot be found: "
                    "name another with `conversation` (llava_v1, vicuna_v1)"
                )
            spans.append((len(asked), len(told)))
            whole = told
        end = self.processor.tokenizer.eos_token or ""
        if not whole.endswith(end):  # as in the templates of published LLaVAs, which generate it nevertheless
            whole += end
            spans[-1] = (spans[-1][0], len(whole))
        return whole, spans

    def _apply(self, messages: list[dict[str, Any]], conversation: Conversation, **options: bool) -> str:
        try:
            text = self.processor.apply_chat_template(messages, chat_template=self.template, tokenize=False, **options)
        except Exception as error:  # whatever a template written for other conversations runs into
            raise ValueError(
                f"the chat template cannot word {conversation.id} ({error}): name another with `conversation`"
            ) from error
        if text.count(self.processor.image_token) != 1:
            raise ValueError(
                f"the chat template does not write {self.processor.image_token} once for {conversation.id}"
            )
        return text.replace(self.processor.image_token, self.image_tokens)

    def collate(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Join rows, padded on the right to a multiple of 16: ids, mask and labels (B, L), pixels (B, 3, S, S).

        Few lengths are few sizes of activations, which an allocator can find again.
        """
        filler = self.processor.tokenizer.pad_token_id
        filler = self.processor.tokenizer.eos_token_id or 0 if filler is None else filler

        longest = max(len(row["input_ids"]) for row in rows)
        length = min(-(-longest // MULTIPLE) * MULTIPLE, self.max_length or sys.maxsize)

        def pad(row: Tensor, value: int) -> Tensor:
            return F.pad(row, (0, length - len(row)), value=value)

        return {
            "input_ids": torch.stack([pad(row["input_ids"], filler) for row in rows]),
            "attention_mask": torch.stack([pad(torch.ones_like(row["input_ids"]), 0) for row in rows]),
            "labels": torch.stack([pad(row["labels"], IGNORED) for row in rows]),
            "pixel_values": torch.cat([row["pixel_values"] for row in rows]),
        }


class Encoded(torch.utils.data.Dataset):
    """Conversations, encoded when they are asked for; in place of one whose picture is damaged stands the next."""

    def __init__(self, conversations: Sequence[Conversation], encoder: Encoder) -> None:
        self.conversations, self.encoder = conversations, encoder

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        for step in range(len(self)):
            try:
                return self.encoder.encode(self.conversations[(index + step) % len(self)])
            except CorruptImageError as error:
                warnings.warn(f"{error}; the next conversation takes its place", stacklevel=2)
        raise CorruptImageError("no picture of the conversations can be read")
