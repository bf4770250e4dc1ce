"""What a zero-shot evaluation asks: which images, which classes, and how embeddings are turned into classes.

Data sets name the same classes differently (ImageNet: synset ids as folders, words in hub data sets, mere numbers), so
labels are matched by id, by name, by number, or, where counts agree and no name is known, by position; which is
recorded with the result. Classes of one name stay two, told apart by their order.
Letters: N images, C classes, E embedding width.
"""

import inspect
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor

from sf_llava.data import ImageSource, LabelledImages
from sf_llava.measure.encoders import Advance
from sf_llava.measure.store import EmbeddingStore, digest_texts, fingerprint
from sf_llava.teachers.base import Teacher
from sf_llava.zero_shot.class_names import (
    SIMPLE_TEMPLATES,
    ClassSet,
    class_set,
    class_sets,
    imagenet,
    names_of_sets,
    synset_ids,
    templates_named,
)
from sf_llava.zero_shot.scoring import zero_shot_classifier

SYNSET = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class ZeroShotTask:
    """Images, their classes, and how embeddings are classified.

    Attributes:
        images: where the pictures come from.
        indices: which of them to use.
        labels: the class of each of ``indices``.
        class_names: C names.
        classifier: (C, E) unit rows, or None where the encoders bring classifiers of their own.
        description: class set, prompts, how labels were matched, and notes on what that means, for the record.
    """

    images: ImageSource
    indices: list[int]
    labels: list[int]
    class_names: list[str]
    classifier: Tensor | None
    description: dict[str, Any]


def zero_shot_task(
    teacher: Teacher,
    images: LabelledImages,
    classes: str | None = None,
    templates: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    advance: Callable[[int, int], None] = lambda count, total: None,
    store: EmbeddingStore | None = None,
) -> ZeroShotTask:
    """Match a data set's classes with names and prompts, and build the classifier with the teacher's text tower.

    Args:
        teacher: embeds the prompts, or (AugReg) brings the classifier.
        images: the data set.
        classes: a class set (see ``class_set``); None finds it from the data set's own class names.
        templates: prompts (see ``templates_named``); None takes the teacher's own, else the class set's.
        limit: evaluate on so many images, drawn by ``seed``.
        seed: of that draw.
        advance: called with the number of classes just done, and of all classes.
        store: keeps the classifier, found again by the teacher's weights, the names and the prompts.

    Raises:
        ValueError: no images, classes that do not match the data set, a teacher without text tower or classifier, a bad
            limit.
    """
    if teacher.num_classes:
        if classes or templates:
            raise ValueError(f"{teacher.name} brings its own classifier; class names and templates do not apply to it")
        return classification_task(teacher.num_classes, images, limit, seed)
    _require_images(images)
    own = class_set(classes) if classes else find_class_set(images)
    labels, matched = match_labels(images, own)
    prompts = templates_named(templates) if templates else (teacher.templates or own.templates)
    total = len(own.class_names)
    classifier = _text_classifier(teacher, own.class_names, prompts, store, lambda count: advance(count, total))
    return _describe_task(images, own, (labels, matched), classifier, prompts, _draw(len(images), limit, seed))


def classification_task(
    num_classes: int, images: LabelledImages, limit: int | None = None, seed: int = 0
) -> ZeroShotTask:
    """Match a data set's classes with the outputs of encoders that bring a classifier; see :func:`zero_shot_task`."""
    _require_images(images)
    own = _own_classes(num_classes, images)
    labels, matched = match_labels(images, own)
    if matched == "name":  # the data set's own names, which the classifier does not know
        matched = "position"
    return _describe_task(images, own, (labels, matched), None, (), _draw(len(images), limit, seed))


def _require_images(images: LabelledImages) -> None:
    if not len(images):
        raise ValueError("the data set has no images to evaluate on")


def _describe_task(
    images: LabelledImages,
    own: ClassSet,
    matching: tuple[list[int], str],
    classifier: Tensor | None,
    prompts: Sequence[str],
    indices: list[int],
) -> ZeroShotTask:
    """Put a task together; ``matching`` is what :func:`match_labels` gives."""
    every_label, matched = matching
    labels = [every_label[i] for i in indices]
    description = {
        "classes": own.name,
        "num_classes": len(own.class_names),
        "templates": list(prompts),
        "labels_matched_by": matched,
        "notes": _notes(own.class_names, labels, matched, has_prompts=bool(prompts)),
    }
    return ZeroShotTask(images, indices, labels, list(own.class_names), classifier, description)


def find_class_set(images: LabelledImages) -> ClassSet:
    """Recognise ImageNet, its -A and -R, CIFAR-10 or the drawn world by class names; otherwise take these as they are.

    A data set with exactly the 200 classes of ImageNet-A or -R is scored among these, as is custom; any other part of
    ImageNet's classes among all 1,000.

    Raises:
        ValueError: the classes are numbers.
        ModuleNotFoundError: they are ImageNet's synset ids, and the libraries that know their names are not installed.
    """
    names = images.class_names
    known: list[ClassSet] = []
    for one in class_sets():
        if set(names) == set(one.ids) or tuple(names) == one.class_names:
            return one
        known.append(one)
    for one in known:
        if set(names) <= set(one.ids):
            return one
    if any(map(SYNSET.fullmatch, names)):
        imagenet()  # or its error, what to install: these are no words for prompts
    if _are_numbers(names):
        raise ValueError(
            f"the data set numbers its {len(names)} classes but does not name them; give their names with `classes` "
            f"({names_of_sets()} or a JSON file)"
        )
    words = tuple(name.replace("_", " ") for name in names)
    return ClassSet("the data set's own", words, SIMPLE_TEMPLATES, ids=tuple(names))


def match_labels(images: LabelledImages, classes: ClassSet) -> tuple[list[int], str]:
    """Translate a data set's labels to those of a class set.

    Returns:
        The label of every image, and what they were matched by: "id", "name", "number" (classes that are called by
        their numbers, in whatever order they stand) or "position".

    Raises:
        ValueError: the data set has other classes.
    """
    for by, known in (("id", classes.ids), ("name", classes.class_names)):
        if (places := _places(images.class_names, known)) is not None:
            return [places[label] for label in images.labels], by
    if _are_numbers(images.class_names):
        numbers = [int(name) for name in images.class_names]
        if max(numbers) >= len(classes.class_names):
            raise ValueError(
                f"the data set numbers its classes up to {max(numbers)}, but {classes.name} has "
                f"{len(classes.class_names)} classes, numbered from 0"
            )
        return [numbers[label] for label in images.labels], "number"
    spelt = {_plain(name) for name in (*classes.class_names, *classes.ids)}
    unknown = [name for name in images.class_names if _plain(name) not in spelt]
    if len(images.class_names) == len(classes.class_names) == len(unknown):
        return list(images.labels), "position"
    problem = "not all are found there by name" if unknown else "their names do not tell which is which"
    names = unknown or _repeated(images.class_names) or images.class_names
    raise ValueError(
        f"the data set has {len(images.class_names)} classes, {classes.name} has {len(classes.class_names)}, and "
        f"{problem}: {_list(names)}. Name them alike with `classes` FILE.json"
    )


def _places(names: Sequence[str], known: Sequence[str]) -> list[int] | None:
    """Find every name among ``known``, as it is written or else but for case, underscores and spaces.

    Of several classes of one name the first is found first, the second second. None: not all are found.
    """
    for spell in (str, _plain):
        places_of = defaultdict(list)
        for place, name in reversed(list(enumerate(known))):
            places_of[spell(name)].append(place)
        if spell is _plain and len(places_of) < len(set(known)):
            return None  # names that differ in spelling alone are different classes
        if all(len(places_of.get(name, ())) >= count for name, count in Counter(map(spell, names)).items()):
            return [places_of[spell(name)].pop() for name in names]
    return None


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _list(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"


def _notes(class_names: Sequence[str], labels: list[int], matched: str, has_prompts: bool) -> list[str]:
    """Say what a reader of the scores must know about the classes."""
    notes = []
    if matched == "position":
        notes.append("the data set's class names are others: labels were matched by their order")
    if has_prompts and (names := _repeated(class_names)):
        first = {name: place for place, name in reversed(list(enumerate(class_names)))}
        behind = sum(first[class_names[label]] != label for label in labels)
        notes.append(
            f"{len(names)} names stand for several classes each ({_list(names)}): their prompts and scores are equal, "
            f"and the first class wins the tie, so that {behind:,} images of the others count as wrong at top-1"
        )
    return notes


def _own_classes(num_classes: int, images: LabelledImages) -> ClassSet:
    """Name the outputs of a classifier: by ImageNet's synset ids where they are its classes, else by the data set."""
    ids = synset_ids(num_classes)
    names: Sequence[str] = images.class_names
    if len(names) != num_classes or _are_numbers(names) or not set(ids).isdisjoint(names):
        names = ids or [str(number) for number in range(num_classes)]
    return ClassSet("the classifier's own", tuple(names), (), ids)


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isdecimal() and len(name) < 10 for name in names)


def _text_classifier(
    teacher: Teacher,
    class_names: Sequence[str],
    prompts: Sequence[str],
    store: EmbeddingStore | None,
    advance: Advance,
) -> Tensor:
    """Build the (C, E) classifier, or take it from the store; of several processes the main one reads and writes."""
    key, kept = "", None
    if store is not None and PartialState().is_main_process:
        code = inspect.getsource(zero_shot_classifier)
        key = digest_texts(fingerprint(teacher), code, str(len(class_names)), *class_names, *prompts)
        kept = store.read(key)
    if store is not None:
        (kept,) = broadcast_object_list([kept])
    if kept is not None:
        return kept[0]
    classifier = zero_shot_classifier(teacher.encode_text, class_names, prompts, advance=advance)
    if store is not None and PartialState().is_main_process:
        store.write(key, classifier.cpu(), {})
    return classifier


def _draw(total: int, limit: int | None, seed: int) -> list[int]:
    if limit is None or limit >= total:
        return list(range(total))
    if limit < 1:
        raise ValueError(f"the limit must be at least 1 image, got {limit}")
    return sorted(torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:limit].tolist())
