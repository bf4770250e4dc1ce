"""What a zero-shot evaluation asks: which images, which classes, and how embeddings are turned into classes.

Data sets name the same classes differently (ImageNet: synset ids as folders, words in hub data sets, mere numbers), so
labels are matched by id, by name, or, where counts agree, by position; which of them is recorded with the result.
Letters: N images, C classes, E embedding width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sf_llava.data import ImageSource, LabelledImages
from sf_llava.metrics.zero_shot import zero_shot_classifier
from sf_llava.teachers.base import Teacher
from sf_llava.teachers.class_names import CLASS_SETS, SIMPLE_TEMPLATES, ClassSet, class_set, synset_ids, templates_named

Advance = Callable[[int], None]


def ignore(count: int) -> None:
    """Advance no progress bar."""


@dataclass(frozen=True)
class ZeroShotTask:
    """Images, their classes, and how embeddings are classified.

    Attributes:
        images: where the pictures come from.
        indices: which of them to use.
        labels: the class of each of ``indices``.
        class_names: C names.
        classifier: (C, E) unit rows, or None where the encoders bring classifiers of their own.
        description: class set, prompts and how labels were matched, for the record.
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

    Raises:
        ValueError: classes that do not match the data set, a teacher without text tower or classifier, a bad limit.
    """
    if teacher.num_classes:
        if classes or templates:
            raise ValueError(f"{teacher.name} brings its own classifier; class names and templates do not apply to it")
        own = _own_classes(teacher, images)
        labels, matched = match_labels(images, own)
        classifier, prompts = None, ()
    else:
        own = class_set(classes) if classes else find_class_set(images)
        labels, matched = match_labels(images, own)
        prompts = templates_named(templates) if templates else (teacher.templates or own.templates)
        total = len(own.class_names)
        classifier = zero_shot_classifier(
            teacher.encode_text, own.class_names, prompts, advance=lambda count: advance(count, total)
        )
    indices = _draw(len(images), limit, seed)
    description = {
        "classes": own.name,
        "num_classes": len(own.class_names),
        "templates": list(prompts),
        "labels_matched_by": matched,
    }
    return ZeroShotTask(images, indices, [labels[i] for i in indices], list(own.class_names), classifier, description)


def find_class_set(images: LabelledImages) -> ClassSet:
    """Recognise ImageNet, CIFAR-10 or the drawn world by a data set's class names; otherwise take these as they are."""
    names = images.class_names
    for known in (make() for make in CLASS_SETS.values()):
        if set(names) <= set(known.ids) or tuple(names) == known.class_names:
            return known
    if all(name.isdecimal() for name in names):
        raise ValueError(
            f"the data set numbers its {len(names)} classes but does not name them; give their names "
            f"({', '.join(CLASS_SETS)} or a JSON file)"
        )
    words = tuple(name.replace("_", " ") for name in names)
    return ClassSet("the data set's own", words, SIMPLE_TEMPLATES, ids=tuple(names))


def match_labels(images: LabelledImages, classes: ClassSet) -> tuple[list[int], str]:
    """Translate a data set's labels to those of a class set.

    Returns:
        The label of every image, and what they were matched by: "id", "name" or "position".

    Raises:
        ValueError: the data set has other classes.
    """
    for by, known in (("id", classes.ids), ("name", classes.class_names)):
        if set(images.class_names) <= set(known):
            place = {name: index for index, name in enumerate(known)}
            translation = [place[name] for name in images.class_names]
            return [translation[label] for label in images.labels], by
    if len(images.class_names) == len(classes.class_names):
        return list(images.labels), "position"
    unknown = [name for name in images.class_names if name not in classes.ids and name not in classes.class_names]
    raise ValueError(
        f"the data set has {len(images.class_names)} classes, {classes.name} has {len(classes.class_names)}, and not "
        f"all are found there by name: {', '.join(unknown[:5])}{' ...' if len(unknown) > 5 else ''}"
    )


def _own_classes(teacher: Teacher, images: LabelledImages) -> ClassSet:
    """Name the outputs of a classification teacher: by ImageNet's synset ids where it is one, else by the data set."""
    ids = synset_ids(teacher.num_classes)
    same_count = len(images.class_names) == teacher.num_classes
    names = images.class_names if same_count else ids or [str(number) for number in range(teacher.num_classes)]
    return ClassSet("the teacher's own", tuple(names), (), ids)


def _draw(total: int, limit: int | None, seed: int) -> list[int]:
    if limit is None or limit >= total:
        return list(range(total))
    if limit < 1:
        raise ValueError(f"the limit must be at least 1 image, got {limit}")
    return sorted(torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:limit].tolist())
