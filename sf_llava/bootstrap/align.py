"""``align``: which losses on tokens a run adds to the paper's, with which weights; a text on the command line."""

import math
from collections.abc import Mapping

ALIGNMENT_WEIGHTS = {"set": 0.3, "readout": 1.0, "position": 1.0, "layers": 1.0, "llm": 4.0, "placed": 4.0}
"""The losses that ``align`` knows, and their default weights. Those of the LLM are large because a divergence is a mean
over all words of an answer, few of which depend on the picture."""

FROM_IMAGES = {name: ALIGNMENT_WEIGHTS[name] for name in ("set", "readout", "position")}
"""What a run adds where nothing else is asked for: the losses that need images alone."""

LLM_LOSSES = {"llm", "placed"}
"""Those of them that need a LLaVA and questions."""

LAYER_LOSSES = {"layers"}
"""Those of them that need a LLaVA without questions."""


def parse_alignment(align: str | Mapping[str, float]) -> dict[str, float]:
    """Give the weights by name, in the order of ``ALIGNMENT_WEIGHTS``.

    Args:
        align: weights by name, or a text like ``set=0.3+readout``; a bare name has its default weight, ``none``
            gives none.

    Raises:
        ValueError: an unknown or repeated name, or a weight that is no positive number.
    """
    weights: dict[str, float] = {}
    for name, number in _terms(align) if isinstance(align, str) else align.items():
        if name not in ALIGNMENT_WEIGHTS or name in weights:
            problem = "there twice" if name in weights else "unknown"
            known = ", ".join(ALIGNMENT_WEIGHTS)
            raise ValueError(
                f"`align` {align}: {name!r} is {problem}; expected none, or a sum of {known}: set=0.3+readout"
            )
        try:
            weights[name] = float(number) if number != "" else ALIGNMENT_WEIGHTS[name]
        except ValueError:
            weights[name] = math.nan
        if not 0 < weights[name] < math.inf:
            raise ValueError(f"`align` {align}: the weight of {name} must be a positive number, not {number!r}")
    return {name: weights[name] for name in ALIGNMENT_WEIGHTS if name in weights}


def _terms(text: str) -> list[tuple[str, str]]:
    """Split a text into names and weights, empty where none is said."""
    terms = [term.strip().partition("=") for term in text.split("+")] if text != "none" else []
    return [(name, number) for name, _, number in terms]


def asks_llm(weights: Mapping[str, float]) -> bool:
    """Whether one of these losses asks a LLM questions."""
    return not LLM_LOSSES.isdisjoint(weights)


def reads_llava(weights: Mapping[str, float]) -> bool:
    """Whether one of these losses needs a LLaVA, with questions or without."""
    return not (LLM_LOSSES | LAYER_LOSSES).isdisjoint(weights)
