"""What the catalogue opens under the name ``mini``; every opener imports what it needs when it is called."""

from pathlib import Path
from typing import TYPE_CHECKING

from sf_llava import catalogue

if TYPE_CHECKING:
    from PIL import Image

    from sf_llava.data.images import ImageSource, LabelledImages
    from sf_llava.data.masks import MaskedSource
    from sf_llava.retrieval.pairs import CaptionedImages
    from sf_llava.scienceqa.problems import Problem, ScienceQA
    from sf_llava.zero_shot.class_names import ClassSet

DOMAINS = {"": "scene", "diagrams": "diagram", "both": "both"}
USAGE = "mini, mini:diagrams, mini:both"
NUM_CAPTIONED = 500
NUM_LABELLED_FOR_TRAINING = 12_800
NUM_MASKED, NUM_MASKED_FOR_VALIDATION = 50_000, 500
EXAMPLES = ((12, "relation"), (4, "extreme"), (18, "marker"), (38, "arrow"))  # pictures for testing, kinds


def register(clip: Path, siglip: Path, llava: Path, student: Path) -> None:
    """Register the drawn world, and the small CLIP, SigLIP, LLaVA and student in the given directories."""
    catalogue.IMAGES.register("mini", open_images, USAGE)
    catalogue.IMAGES.register("mini-test", open_test_images)
    catalogue.IMAGES.register("mini-mosaics", open_mosaic_images, "mini-mosaics[:SPLIT]")
    catalogue.LABELLED.register("mini", open_labelled, USAGE)
    catalogue.LABELLED.register("mini-train", open_labelled_for_training)
    catalogue.MASKED.register("mini", open_masked, USAGE)
    catalogue.CAPTIONS.register("mini", open_captions, USAGE)
    catalogue.QUESTIONS.register("mini", open_questions, "mini[:N]")
    catalogue.QUESTIONS.register("mini-described", open_described)
    catalogue.QUESTIONS.register("mini-exists", open_exists, "mini-exists[:N]")
    catalogue.QUESTIONS.register("mini-relations", open_relations, "mini-relations[:N]")
    catalogue.QUESTIONS.register("mini-counting", open_counting, "mini-counting[:N]")
    catalogue.QUESTIONS.register("mini-mosaics", open_mosaics, "mini-mosaics[:N]")
    catalogue.EXAMPLES.register("mini", open_examples)
    catalogue.CLASSES.register("mini", open_classes, "mini")
    catalogue.TEACHERS.register("mini", lambda: f"transformers:{made(clip, 'teacher', 'clip')}", "mini")
    catalogue.TEACHERS.register(
        "mini-siglip", lambda: f"transformers:{made(siglip, 'SigLIP teacher', 'siglip')}", "mini-siglip"
    )
    catalogue.LLAVAS.register("mini", lambda: made(llava, "LLaVA", "llava"), "mini")
    catalogue.ENCODERS.register("mini", lambda: made(student, "student", "student"))


def open_images(where: str) -> "ImageSource":
    """Draw training pictures of the named part of the world."""
    from sf_llava.mini.world.scenes import MiniImages

    return MiniImages(_domain(where))


def open_test_images(where: str) -> "ImageSource":
    """Draw test pictures of the named part of the world."""
    from sf_llava.mini.world.scenes import MiniImages

    return MiniImages(_domain(where), size=2**33, split="test")


def open_mosaic_images(where: str) -> "ImageSource":
    """Join pictures of four diagrams each, of the training split where no other is named."""
    from sf_llava.mini.questions.mosaics import MosaicImages

    return MosaicImages(where or "train")


def open_labelled(where: str) -> "LabelledImages":
    """Draw test pictures of one shape each, with their classes."""
    from sf_llava.data.images import LabelledImages
    from sf_llava.mini.world.scenes import MiniLabelledImages

    images = MiniLabelledImages(_domain(where))
    return LabelledImages(images, images.labels, images.class_names)


def open_labelled_for_training(where: str) -> "LabelledImages":
    """Draw training pictures of one shape each, with their classes."""
    from sf_llava.data.images import LabelledImages
    from sf_llava.mini.world.scenes import MiniLabelledImages

    images = MiniLabelledImages(_domain(where), NUM_LABELLED_FOR_TRAINING, split="train")
    return LabelledImages(images, images.labels, images.class_names)


def open_masked(where: str, split: str) -> "MaskedSource":
    """Draw pictures with the mask of what was drawn: the ground, shapes, in diagrams bars and regions too."""
    from sf_llava.mini.world.masks import MiniMaskedImages

    size = NUM_MASKED if split == "train" else NUM_MASKED_FOR_VALIDATION
    return MiniMaskedImages(_domain(where), size, split)


def open_captions(where: str) -> "CaptionedImages":
    """Draw test pictures with the two fullest captions of each; those that share one with another are passed by."""
    import numpy as np

    from sf_llava.data.subset import Subset
    from sf_llava.mini.world.captions import captions
    from sf_llava.mini.world.scenes import MiniImages
    from sf_llava.retrieval.pairs import CaptionedImages

    source = MiniImages(_domain(where), split="test")
    kept: list[int] = []
    texts: dict[str, int] = {}
    for index in range(len(source)):
        fullest = sorted(dict.fromkeys(captions(source.scene(index))), key=lambda text: -len(text.split()))[:2]
        if texts.keys().isdisjoint(fullest):
            texts |= dict.fromkeys(fullest, len(kept))
            kept.append(index)
        if len(kept) == NUM_CAPTIONED:
            break
    name = f"mini:{where}" if where else "mini"
    return CaptionedImages(name, Subset(source, np.asarray(kept)), list(texts), list(texts.values()))


def open_questions(where: str, split: str) -> "ScienceQA":
    """Ask about diagrams, and about texts."""
    from sf_llava.mini.questions import sets

    return sets.open_questions(split, where)


def open_described(where: str, split: str) -> "ScienceQA":
    """Ask the same, and have every second picture described; for training alone."""
    from sf_llava.mini.questions import sets

    return sets.open_questions(split, where, described=True)


def open_exists(where: str, split: str) -> "ScienceQA":
    """Ask whether things are in pictures, yes or no."""
    from sf_llava.mini.questions import suites

    return suites.open_exists(split, where)


def open_relations(where: str, split: str) -> "ScienceQA":
    """Ask where one thing is from another."""
    from sf_llava.mini.questions import suites

    return suites.open_kind("relation", split, where)


def open_counting(where: str, split: str) -> "ScienceQA":
    """Ask how many there are."""
    from sf_llava.mini.questions import suites

    return suites.open_kind("count", split, where)


def open_mosaics(where: str, split: str) -> "ScienceQA":
    """Ask about one of four diagrams in a picture too fine for one view."""
    from sf_llava.mini.questions import mosaics

    return mosaics.open_mosaics(split, where)


def open_examples() -> "list[tuple[str, Image.Image, Problem]]":
    """Draw diagrams with a question each, worded as the small LLaVA knows them."""
    from PIL import Image

    from sf_llava.mini.questions.sets import draw_picture, picture_problems
    from sf_llava.scienceqa.problems import kind_of

    examples = []
    for index, kind in EXAMPLES:
        scene = draw_picture(index, "test")
        problem = next(found for found in picture_problems(scene, index, "test") if kind_of(found.id) == kind)
        examples.append((f"{scene.kind} {index}", Image.fromarray(scene.image), problem))
    return examples


def open_classes() -> "ClassSet":
    """The drawn world's 64 classes."""
    from sf_llava.mini.world.captions import TEMPLATES
    from sf_llava.mini.world.shapes import CLASS_NAMES
    from sf_llava.zero_shot.class_names import ClassSet

    return ClassSet("mini", tuple(CLASS_NAMES), tuple(TEMPLATES))


def _domain(where: str) -> str:
    if where not in DOMAINS:
        raise ValueError(f"unknown data set 'mini:{where}': expected {USAGE.rpartition(', ')[0]} or mini:both")
    return DOMAINS[where]


def made(directory: Path, what: str, how: str) -> Path:
    """Give the directory of a small model that ships.

    Raises:
        ValueError: it does not, as while it is trained anew.
    """
    if not (directory / "model.safetensors").is_file():
        raise ValueError(f"the mini {what} is not in {directory}; make it: python scripts/train_mini.py {how}")
    return directory
