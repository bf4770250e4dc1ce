"""The drawn world: small pictures with a complete description, deterministic by (seed, split, domain, index).

Two domains share eight shapes and eight colours. ``scene`` (photos.py) is photo-like: one to three shapes on
gradients, texture or stripes, with clutter lines, light and noise. ``diagram`` (diagrams.py) is plain: outlined or
bordered shapes, arrows, bar charts and small maps. Every picture has its own random numbers, so it never depends on
how many others were drawn.
"""

from PIL import Image

from sf_llava.mini.world.canvas import Draws, Scene
from sf_llava.mini.world.captions import captions
from sf_llava.mini.world.diagrams import draw_diagram
from sf_llava.mini.world.photos import draw_photo
from sf_llava.mini.world.shapes import CLASS_NAMES

DOMAINS = ("scene", "diagram")
SPLITS = ("train", "validation", "test")
WORLD_SEED = 0  # the world the shipped models were trained on


def draw_scene(seed: int, index: int, domain: str = "scene", split: str = "train", label: int | None = None) -> Scene:
    """Draw one picture, always the same for the same arguments.

    Args:
        seed: the world.
        index: the picture's number, from 0, without upper limit.
        domain: ``scene`` or ``diagram``.
        split: ``train``, ``validation`` or ``test``; they share no picture.
        label: draw exactly one shape, of class CLASS_NAMES[label] (labelled sets for zero-shot evaluation).

    Returns:
        Scene with image, owner map and description.
    """
    if domain not in DOMAINS or split not in SPLITS:
        raise ValueError(f"no domain {domain!r} with split {split!r}; domains: {DOMAINS}, splits: {SPLITS}")
    draws = Draws(seed, SPLITS.index(split), DOMAINS.index(domain), 0 if label is None else 1 + label, index)
    return (draw_photo if domain == "scene" else draw_diagram)(draws, label)


class MiniImages:
    """Pictures of the drawn world as an image source: scenes, diagrams, or both in turn.

    Args:
        domain: ``scene``, ``diagram`` or ``both``.
        size: how many pictures; the world itself has no end.
        split: ``train``, ``validation`` or ``test``.
        seed: the world.
    """

    def __init__(self, domain: str = "scene", size: int = 50_000, split: str = "train", seed: int = WORLD_SEED) -> None:
        if domain not in (*DOMAINS, "both") or split not in SPLITS or size < 1:
            raise ValueError(
                f"no {size} pictures of domain {domain!r}, split {split!r}; "
                f"domains: {', '.join(DOMAINS)}, both; splits: {', '.join(SPLITS)}; size at least 1"
            )
        self.domain, self.size, self.split, self.seed = domain, size, split, seed

    def __len__(self) -> int:
        return self.size

    def scene(self, index: int) -> Scene:
        """The picture with its description."""
        if not 0 <= index < self.size:
            raise IndexError(f"picture {index} of {self.size}")
        domain = DOMAINS[index % 2] if self.domain == "both" else self.domain
        return draw_scene(self.seed, index, domain, self.split)

    def load(self, index: int) -> Image.Image:
        """RGB picture of 64 x 64 pixels."""
        return Image.fromarray(self.scene(index).image)

    def describe(self, index: int) -> str:
        """Name and fullest caption of a picture."""
        return f"mini:{self.domain}/{self.split}/{index} ({captions(self.scene(index))[0]})"


class MiniLabelledImages(MiniImages):
    """Pictures of one shape each, in turn of all CLASS_NAMES, for zero-shot evaluation."""

    def __init__(self, domain: str = "scene", size: int = 2560, split: str = "test", seed: int = WORLD_SEED) -> None:
        super().__init__(domain, size, split, seed)
        self.class_names = list(CLASS_NAMES)
        # both: scenes have even, diagrams odd places, so the class changes after each pair
        pairs = 2 if domain == "both" else 1
        self.labels = [index // pairs % len(CLASS_NAMES) for index in range(size)]

    def scene(self, index: int) -> Scene:
        """The picture with its description."""
        domain = DOMAINS[index % 2] if self.domain == "both" else self.domain
        return draw_scene(self.seed, index, domain, self.split, self.labels[index])
