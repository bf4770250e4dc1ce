"""Class sets for zero-shot classification: what the classes are called, and the prompts their names are put into.

ImageNet's curated names and OpenAI's 80 templates come from open_clip, synset ids (of -A and -R too) from timm;
CIFAR-10's names and 18 templates are those of OpenAI's CLIP notebook.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sf_llava.catalogue import CLASSES
from sf_llava.files import read_json
from sf_llava.teachers.imagenet import imagenet_prompts, part_ids, synset_ids

SIMPLE_TEMPLATES = ("a photo of a {}.",)
CIFAR10_CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
CIFAR10_TEMPLATES = tuple(
    f"a photo of {article} {{}}." if not kind else f"a {kind} photo of {article} {{}}."
    for article in ("a", "the")
    for kind in ("", "blurry", "black and white", "low contrast", "high contrast", "bad", "good")
) + tuple(f"a photo of {article} {size} {{}}." for article in ("a", "the") for size in ("small", "big"))


@dataclass(frozen=True)
class ClassSet:
    """Classes in the order of their labels.

    Attributes:
        name: how it was asked for.
        class_names: words for the prompts.
        templates: prompts, each with one ``{}``.
        ids: what data sets may call the classes instead (ImageNet's synset ids), in the same order; may be empty.
    """

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    ids: tuple[str, ...] = ()


def cifar10() -> ClassSet:
    """CIFAR-10: 10 names and 18 templates of OpenAI's CLIP."""
    return ClassSet("cifar10", CIFAR10_CLASS_NAMES, CIFAR10_TEMPLATES)


def imagenet() -> ClassSet:
    """ImageNet-1K: 1,000 names and 80 templates of OpenAI's CLIP, in the order of the sorted synset ids."""
    names, templates = imagenet_prompts()
    return ClassSet("imagenet", names, templates, synset_ids(1000))


def imagenette() -> ClassSet:
    """Imagenette: ten classes of ImageNet that are told apart easily, as its makers call them."""
    return ClassSet("imagenette", tuple(IMAGENETTE.values()), SIMPLE_TEMPLATES, tuple(IMAGENETTE))


def imagenet_part(name: str) -> ClassSet:
    """The 200 classes of ``imagenet-a`` or ``imagenet-r``, with ImageNet's names and prompts."""
    whole, ids = imagenet(), part_ids(name)
    name_of = dict(zip(whole.ids, whole.class_names, strict=True))
    return ClassSet(name, tuple(name_of[synset] for synset in ids), whole.templates, ids)


CLASS_SETS: dict[str, Callable[[], ClassSet]] = {
    "cifar10": cifar10,
    "imagenet": imagenet,
    "imagenet-a": partial(imagenet_part, "imagenet-a"),
    "imagenet-r": partial(imagenet_part, "imagenet-r"),
    "imagenette": imagenette,
}


def _find(name: str) -> Callable[[], ClassSet] | None:
    return CLASS_SETS.get(name) or CLASSES.find(name)


def class_sets() -> Iterator[ClassSet]:
    """Give all class sets whose libraries are installed, registered ones first; each is made when it is asked for."""
    for make in (*CLASSES.openers, *CLASS_SETS.values()):
        try:
            made = make()
        except ModuleNotFoundError:
            continue
        yield made


def names_of_sets() -> str:
    """List the names of all class sets."""
    return ", ".join(filter(None, (CLASSES.usage, *CLASS_SETS)))


def class_set(name: str) -> ClassSet:
    """Give the class set called ``name``, or the one in a JSON file.

    Args:
        name: ``mini``, ``cifar10``, ``imagenet``, ``imagenet-a``, ``imagenet-r``, ``imagenette``, or a file that holds
            a list of names in the order of the labels, or ``{"class_names": [...], "templates": [...]}``.

    Raises:
        ValueError: an unknown name, a file of another kind, a blank class name.
    """
    if (known := _find(name)) is not None:
        return known()
    path = Path(name).expanduser()
    if not path.is_file():
        raise ValueError(f"unknown classes {name!r}; expected {names_of_sets()} or a JSON file of class names")
    content = read_json(path)
    if isinstance(content, list):
        content = {"class_names": content}
    content = {"templates": list(SIMPLE_TEMPLATES)} | content if isinstance(content, dict) else {}
    if content.keys() != {"class_names", "templates"} or not all(map(_is_list_of_texts, content.values())):
        raise ValueError(f'{path} must hold a list of class names, or {{"class_names": [...], "templates": [...]}}')
    names = tuple(name.strip() for name in content["class_names"])
    if "" in names:
        raise ValueError(f"class {names.index('')} of {len(names)} in {path} has a blank name: give it one")
    return ClassSet(str(path), names, tuple(content["templates"]))


def templates_named(name: str) -> tuple[str, ...]:
    """Give templates by name: those of a class set, ``simple``, a JSON file of them, or one template itself."""
    if (known := _find(name)) is not None:
        return known().templates
    if name == "simple":
        return SIMPLE_TEMPLATES
    if "{}" in name:
        return (name,)
    path = Path(name).expanduser()
    if not path.is_file():
        valid = f"{names_of_sets()}, simple, a JSON file, or a text with {{}} in it"
        raise ValueError(f"unknown templates {name!r}; expected {valid}")
    content = read_json(path)
    if not _is_list_of_texts(content):
        raise ValueError(f"{path} must hold a list of templates, each with one {{}}")
    return tuple(content)


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(text, str) for text in value)
