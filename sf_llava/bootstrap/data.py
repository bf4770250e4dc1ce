"""What a run reads: training images without labels, validation images with classes where they are known."""

import warnings
from dataclasses import dataclass, replace

from sf_llava.bootstrap.config import DataConfig, ObjectiveConfig
from sf_llava.bootstrap.validation import ValidationImages
from sf_llava.data import LabelledImages, open_images, open_labelled
from sf_llava.data.bootstrap_images import BootstrapImages
from sf_llava.data.names import find_stream
from sf_llava.data.streaming import BootstrapStream, ShardStream
from sf_llava.data.subset import hold_out
from sf_llava.data.transforms import BootstrapTransform, Preprocessing
from sf_llava.teachers.base import Teacher
from sf_llava.zero_shot.task import ZeroShotTask, zero_shot_task


@dataclass
class BootstrapData:
    """The data of one run.

    Attributes:
        images: augmented training images, or a stream of them.
        labels: class of every training image, for the added class loss only; otherwise training labels stay unread.
        validation: preprocessed held-out images.
        task: all validation images with their classes and the zero-shot classifier, where classes are known.
    """

    images: BootstrapImages | BootstrapStream
    labels: list[int] | None
    validation: ValidationImages
    task: ZeroShotTask | None


def open_data(
    config: DataConfig, objective: ObjectiveConfig, seed: int, teacher: Teacher, image_size: int
) -> BootstrapData:
    """Open training and validation images with the teacher's preprocessing at ``image_size`` pixels."""
    preprocessing = replace(teacher.preprocessing, image_size=image_size)
    source = find_stream(config.data) or open_images(config.data)
    labels = training_labels(config, teacher) if objective.class_loss_weight else None
    if config.val_data is None:
        if isinstance(source, ShardStream):
            raise ValueError("nothing can be held out of a stream for validation: name local pictures as `val_data`")
        kept, held_out = hold_out(source, config.val_images, seed)
        source, labels = kept, labels and [labels[i] for i in kept.indices]
        validation, task = ValidationImages(held_out, preprocessing, config.val_images, None), None
    else:
        validation, task = open_validation(config, config.val_data, teacher, preprocessing)
    if task is None and (objective.loss == "kl" or objective.class_loss_weight):
        raise ValueError("class logits need classes: name a `val_data` that has them (and `classes`)")
    crop = None if config.crop_scale_min == 1 else (config.crop_scale_min, 1.0)
    ratio = (1 / config.crop_ratio_max, config.crop_ratio_max)
    transform = BootstrapTransform(preprocessing, config.flip, crop, ratio)
    if isinstance(source, ShardStream):
        return BootstrapData(BootstrapStream(source, transform, seed), labels, validation, task)
    return BootstrapData(BootstrapImages(source, transform, seed), labels, validation, task)


def training_labels(config: DataConfig, teacher: Teacher) -> list[int]:
    """Read the class of every training image, in the order of the class set, for the added class loss.

    Raises:
        ValueError: the data set has no training labels.
    """
    if config.data.split(":")[0] == "mini":
        raise ValueError("`class_loss_weight` needs labelled training images; the drawn world labels test images only")
    return _task(teacher, open_labelled(config.data), config).labels


def open_validation(
    config: DataConfig, name: str, teacher: Teacher, preprocessing: Preprocessing
) -> tuple[ValidationImages, ZeroShotTask | None]:
    """Open validation images by name, with classes where the data set has them and the teacher can score them."""
    labelled = _open_labelled(config, name)
    if labelled is None or not (teacher.has_text or teacher.num_classes):
        return ValidationImages(open_images(name), preprocessing, config.val_images, None), None
    task = _task(teacher, labelled, config)
    return ValidationImages(task.images, preprocessing, config.val_images, task.labels), task


def _task(teacher: Teacher, labelled: LabelledImages, config: DataConfig) -> ZeroShotTask:
    task = zero_shot_task(teacher, labelled, config.classes)
    for note in task.description["notes"]:
        warnings.warn(note, stacklevel=2)
    return task


def _open_labelled(config: DataConfig, name: str) -> LabelledImages | None:
    try:
        return open_labelled(name)
    except ValueError:
        if config.classes is not None:
            raise
        return None
