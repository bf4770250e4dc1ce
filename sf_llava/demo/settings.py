"""The settings beside the chat, as any program may send them: what they mean, or a sentence on what they may be."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sf_llava.demo.engine import Sampling
from sf_llava.demo.uploads import RefusedError

HOTTEST, COOLEST = 2.0, 0.01  # temperatures; 0 is the likeliest word


@dataclass(frozen=True)
class Settings:
    """How a question is to be answered.

    Attributes:
        mode: a tower, or both.
        whole: whether earlier turns are in the prompt.
        sampling: temperature and length.
        latents: of the SparseFormer; None: the first.
    """

    mode: str
    whole: bool
    sampling: Sampling
    latents: int | None


@dataclass(frozen=True)
class Choices:
    """What there is to choose from: names of modes, numbers of latents, and the longest answer in tokens."""

    modes: Collection[str]
    latents: Collection[int]
    longest: int

    def read(self, mode: Any, whole: Any, temperature: Any, length: Any, latents: Any) -> Settings:
        """Check what was sent.

        Raises:
            RefusedError: something that cannot be set.
        """
        if not any(mode == one for one in self.modes):
            raise RefusedError(f"Who answers is one of {', '.join(self.modes)}, not {_said(mode)}.")
        if not isinstance(whole, bool):
            raise RefusedError(f"Earlier turns are in the prompt or not, true or false, not {_said(whole)}.")
        if not (_is_number(temperature, 0, 0) or _is_number(temperature, COOLEST, HOTTEST)):
            raise RefusedError(f"The temperature is 0 or {COOLEST} to {HOTTEST:g}, not {_said(temperature)}.")
        if not _is_number(length, 1, self.longest):
            raise RefusedError(f"The longest answer is a number of tokens, 1 to {self.longest}, not {_said(length)}.")
        if latents is not None and not any(latents in (count, str(count)) for count in self.latents):  # or as its text
            known = ", ".join(map(str, self.latents)) or "not to be chosen here"
            raise RefusedError(f"The latents of the SparseFormer are {known}, not {_said(latents)}.")
        latents = None if latents is None else int(latents)
        return Settings(mode, whole, Sampling(float(temperature), int(length)), latents)


def _is_number(value: Any, least: float, most: float) -> bool:
    """Whether a value is a number within the bounds; NaN is within none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def _said(value: Any) -> str:
    """A value as a sentence can hold it."""
    text = " ".join(f"{value!r}".split()) if not isinstance(value, str) else value
    return text if len(text) <= 40 else text[:39] + "…"
