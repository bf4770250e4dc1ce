"""One person's conversation: turns of pictures, a question, and an answer of each tower; its wording as a prompt."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from sf_llava.demo.uploads import Picture, RefusedError

BOTH = "both"
SPARSEFORMER, CLIP, NO_TOWER = "sparseformer", "clip", "language model"
TOWER_NAMES = {SPARSEFORMER: "SparseFormer", CLIP: "CLIP", NO_TOWER: "Language model alone"}
MAX_PICTURES, MAX_TURNS = 8, 64  # of one conversation
MAX_LETTERS = 20_000  # of a question; the context's bound is counted in tokens


@dataclass
class Answer:
    """What one tower's LLM says, growing while it is generated.

    Attributes:
        tower: a key of ``TOWER_NAMES``.
        text: so far.
        state: ``length``: cut at the longest answer asked for.
        visual_tokens: of all pictures in the prompt.
        encoder_ms: tower and projector for the pictures that this turn was the first to read, milliseconds.
        reused: pictures whose features were kept from an earlier turn.
        forgotten: earlier turns that the model's context had no room for.
        prefill_ms: the LLM reads the prompt, milliseconds.
        num_tokens: generated so far.
        decode_seconds: spent on all but the first of them.
        latents: of the SparseFormer that answers, where there are several; None: the first.
    """

    tower: str
    text: str = ""
    state: Literal["waiting", "writing", "finished", "length", "stopped"] = "waiting"
    visual_tokens: int = 0
    encoder_ms: float = 0.0
    reused: int = 0
    forgotten: int = 0
    prefill_ms: float = 0.0
    num_tokens: int = 0
    decode_seconds: float = 0.0
    latents: int | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of generation, None before the second token."""
        return (self.num_tokens - 1) / self.decode_seconds if self.num_tokens > 1 else None


@dataclass
class Turn:
    """A question with the pictures sent along, its answers by tower, and sentences about what went wrong.

    ``refused``: nothing of it can be answered.
    """

    question: str
    pictures: list[Picture] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    refused: bool = False


@dataclass
class Conversation:
    """The turns of one session; ``stop`` ends the answer that is being written."""

    turns: list[Turn] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def pictures(self) -> list[Picture]:
        """All pictures, oldest first."""
        return [picture for turn in self.turns for picture in turn.pictures]


def check_length(question: str) -> None:
    """Refuse what no context holds, before it is kept or any work is done on it.

    Raises:
        RefusedError: it has too many letters.
    """
    if len(question) > MAX_LETTERS:
        raise RefusedError(f"The question has {len(question):,} letters; {MAX_LETTERS:,} are the most: shorten it.")


def prompt_turns(turns: Sequence[Turn], whole: bool) -> list[Turn]:
    """Choose what the prompt of the last turn holds.

    Args:
        turns: of the conversation; ones that were never answered are left out.
        whole: all of them; otherwise the last question alone, about the pictures that were sent last.
    """
    *earlier, last = turns
    if whole:
        return [turn for turn in earlier if turn.answers] + [last]
    pictures = next((turn.pictures for turn in reversed(turns) if turn.pictures), [])
    return [Turn(last.question, pictures)]


def without_oldest(turns: Sequence[Turn]) -> list[Turn]:
    """Forget the oldest question and answer; its pictures move to the next question."""
    first, second, *rest = turns
    return [Turn(second.question, first.pictures + second.pictures, second.answers, second.notes), *rest]


def as_messages(turns: Sequence[Turn], tower: str) -> list[dict]:
    """Word turns as a chat template's messages; a turn that ``tower`` did not answer keeps the other's answer."""
    messages = []
    for turn in turns:
        content = [{"type": "image"}] * len(turn.pictures) + [{"type": "text", "text": turn.question}]
        messages.append({"role": "user", "content": content})
        if turn is not turns[-1]:
            answer = turn.answers.get(tower) or next(iter(turn.answers.values()))
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer.text}]})
    return messages


def towers_for(mode: str, towers: Sequence[str], turns: Sequence[Turn]) -> list[str]:
    """Which towers answer: those of the mode; without any picture they play no part, so the LLM answers once."""
    if not any(turn.pictures for turn in turns):
        return [NO_TOWER]
    return [tower for tower in towers if mode in (tower, BOTH)]
