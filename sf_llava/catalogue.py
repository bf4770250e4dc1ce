"""What can be opened by name: one topic each for images, masks, captions, questions, classes, teachers, LLaVAs.

The drawn world is here because it registers itself, as anybody's data can:

    from sf_llava import catalogue

    catalogue.IMAGES.register("stars", open_stars, "stars:FOLDER")   # open_stars(where) gives an ImageSource

From then on ``open_images("stars:FOLDER")`` opens it, and so do the commands' ``main`` functions that
are called in the same process.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

Opener = TypeVar("Opener", bound=Callable[..., Any])

QUICKSTART = Path("runs/quickstart")
"""Where ``make quickstart`` leaves its run; see :func:`default_encoder`."""

_REGISTER_THEMSELVES = ("sf_llava.mini",)


class Topic(Generic[Opener]):
    """Kinds of one thing and what opens them.

    Args:
        what: the thing, for messages.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._kinds: dict[str, tuple[Opener, str]] = {}

    def register(self, kind: str, opener: Opener, usage: str = "") -> None:
        """Let ``opener`` open names of this kind: ``kind`` alone or ``kind:WHERE``.

        Args:
            kind: a word without a colon.
            opener: see the topic for what it takes and returns; it should import what it needs when it is called.
            usage: how the names are written, for messages; none: they are for the package's own use.

        Raises:
            ValueError: the kind is taken, or is no word.
        """
        if not kind or ":" in kind:
            raise ValueError(f"a kind of {self.what} is a word without a colon, not {kind!r}")
        if kind in self._kinds:
            raise ValueError(f"{kind!r} is registered as a kind of {self.what} already")
        self._kinds[kind] = opener, usage

    def find(self, kind: str) -> Opener | None:
        """Give the opener of a kind; None where there is none."""
        _load()
        return self._kinds[kind][0] if kind in self._kinds else None

    @property
    def openers(self) -> list[Opener]:
        """The openers of all kinds."""
        _load()
        return [opener for opener, _ in self._kinds.values()]

    @property
    def usage(self) -> str:
        """How names of all kinds are written."""
        _load()
        return ", ".join(usage for _, usage in self._kinds.values() if usage)


IMAGES: Topic = Topic("images")
"""``opener(where)`` gives an ``ImageSource``: pictures to train on, without labels."""
LABELLED: Topic = Topic("labelled images")
"""``opener(where)`` gives ``LabelledImages``: pictures with classes, to evaluate on."""
MASKED: Topic = Topic("pictures with masks")
"""``opener(where, split)`` gives a ``MaskedSource``, for ``train`` or ``validation``."""
CAPTIONS: Topic = Topic("images with captions")
"""``opener(where)`` gives ``CaptionedImages``."""
QUESTIONS: Topic = Topic("questions")
"""``opener(where, split)`` gives ``ScienceQA``."""
EXAMPLES: Topic = Topic("examples")
"""``opener()`` gives pictures and questions to start a chat from: a list of (file name, image, ``Problem``)."""
CLASSES: Topic = Topic("classes")
"""``opener()`` gives a ``ClassSet``."""
TEACHERS: Topic = Topic("teachers")
"""``opener()`` gives the name of a teacher as ``load_teacher`` takes it, such as ``transformers:DIR``."""
LLAVAS: Topic = Topic("LLaVAs")
"""``opener()`` gives the directory of a LLaVA."""
ENCODERS: Topic = Topic("encoders")
"""``opener()`` gives the directory of an encoder."""


def default_encoder() -> tuple[str, str]:
    """Say which encoder the embedded default has, and a remark: the quickstart's, or without one that which ships.

    Returns:
        Directory of a run or encoder; the remark is empty for the quickstart's.
    """
    if (QUICKSTART / "encoder" / "config.json").is_file():
        return str(QUICKSTART), ""
    opener = ENCODERS.find("mini")
    assert opener is not None, "the package has one"
    remark = f"no student in {QUICKSTART}: here is the one that ships; make quickstart trains yours in minutes"
    return str(opener()), remark


def _load() -> None:
    for module in _REGISTER_THEMSELVES:
        importlib.import_module(module)
