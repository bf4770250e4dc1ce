"""What a run reads: training images without labels, validation images with classes where they are known."""

from dataclasses import dataclass, replace

from sf_llava.bootstrap.config import BootstrapConfig
from sf_llava.bootstrap.validation import ValidationImages
from sf_llava.data import open_images, open_labelled
from sf_llava.data.bootstrap_images import BootstrapImages
from sf_llava.data.subset import hold_out
from sf_llava.data.transforms import BootstrapTransform
from sf_llava.teachers.base import Teacher
from sf_llava.teachers.class_names import class_texts


@dataclass
class BootstrapData:
    """The data of one run.

    Attributes:
        images: augmented training images.
        labels: class of every training image, for the added class loss only; otherwise training labels stay unread.
        validation: preprocessed held-out images.
        class_texts: (names, templates) of the classes, where they are known.
    """

    images: BootstrapImages
    labels: list[int] | None
    validation: ValidationImages
    class_texts: tuple[list[str], list[str]] | None


def open_data(config: BootstrapConfig, teacher: Teacher, image_size: int) -> BootstrapData:
    """Open training and validation images with the teacher's preprocessing at ``image_size`` pixels."""
    preprocessing = replace(teacher.preprocessing, image_size=image_size)
    labels = texts = None
    if config.class_loss_weight:
        labelled = open_labelled(config.data)
        source, labels = labelled.source, labelled.labels
    else:
        source = open_images(config.data)
    if config.val_data is None:
        source, held_out = hold_out(source, config.val_images, config.seed)
        labels = labels and [labels[i] for i in source.indices]
        validation = ValidationImages(held_out, preprocessing, config.val_images, None)
    elif config.classes is None:
        validation = ValidationImages(open_images(config.val_data), preprocessing, config.val_images, None)
    else:
        labelled = open_labelled(config.val_data)
        validation = ValidationImages(labelled.source, preprocessing, config.val_images, labelled.labels)
    if config.classes is not None:
        texts = class_texts(config.classes)
    crop = None if config.crop_scale_min == 1 else (config.crop_scale_min, 1.0)
    ratio = (1 / config.crop_ratio_max, config.crop_ratio_max)
    images = BootstrapImages(source, BootstrapTransform(preprocessing, config.flip, crop, ratio), config.seed)
    return BootstrapData(images, labels, validation, texts)
