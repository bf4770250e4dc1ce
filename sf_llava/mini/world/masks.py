"""Masks of the drawn world, from the strokes of its pictures: the ground is a class, every kind of thing another."""

import numpy as np
from PIL import Image

from sf_llava.mini.world.scenes import MiniImages
from sf_llava.mini.world.shapes import SHAPES

SCENE_CLASSES = ("ground", *SHAPES)
DIAGRAM_CLASSES = (*SCENE_CLASSES, "bar", "region")


class MiniMaskedImages:
    """Pictures of the drawn world with their masks; see :class:`MiniImages` for the arguments."""

    left_out: tuple[str, ...] = ()

    def __init__(self, domain: str, size: int, split: str) -> None:
        self.images = MiniImages(domain, size, split)
        self.class_names = SCENE_CLASSES if domain == "scene" else DIAGRAM_CLASSES

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """An RGB picture and labels (64, 64) uint8, by who owns a pixel: at least half of it is covered."""
        scene = self.images.scene(index)
        classes = [self.class_names.index(thing.shape) for thing in scene.objects]
        labels = np.array([*classes, 0], dtype=np.uint8)[scene.owner]  # owner -1 is the ground, the last one
        return Image.fromarray(scene.image), labels

    def describe(self, index: int) -> str:
        return self.images.describe(index)
