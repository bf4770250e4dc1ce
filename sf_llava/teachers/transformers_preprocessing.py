"""How a model of transformers wants its pictures, by its ``preprocessor_config.json``."""

import math
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor

from sf_llava.data.transforms import Preprocessing
from sf_llava.teachers.families import Family
from sf_llava.weights.model_directory import reason

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, which preprocessor_config.json holds


def read_preprocessing(name: str, path: str, image_size: int, family: Family) -> Preprocessing:
    """Read an image processor; a directory without one gets the family's preprocessing.

    Args:
        name: of the teacher, for messages.
        path: directory or hub id.
        image_size: of the model; a model of any size takes its processor's.
        family: of the model.

    Raises:
        ValueError: the processor cannot be read, or does something else than resize, crop and normalise.
    """
    if Path(path).is_dir() and not any((Path(path) / file).is_file() for file in PROCESSOR_FILES):
        return Preprocessing(image_size, family.mean, family.std, resize_mode=family.resize_mode)
    try:
        processor = AutoImageProcessor.from_pretrained(path, backend="pil", trust_remote_code=False)
    except Exception as error:  # values of other types have errors of their own
        raise ValueError(f"the image processor of {path} could not be read ({reason(error)})") from error
    if processor.resample not in RESAMPLING:
        raise ValueError(f"the image processor of {path} resamples by {processor.resample}, not by {RESAMPLING}")
    resized, crops = _side(processor.size), getattr(processor, "do_center_crop", None)
    cropped = _side(processor.crop_size) if crops else resized
    if family.any_size and cropped is not None:
        image_size = cropped
    if resized is None or resized < image_size or cropped != image_size:
        raise ValueError(
            f"the image processor of {path} resizes to {processor.size}"
            f"{f' and crops to {processor.crop_size}' if crops else ''}: {name} takes squares of {image_size} pixels"
        )
    return Preprocessing(
        image_size,
        processor.image_mean,
        processor.image_std,
        RESAMPLING[processor.resample],
        _fraction(image_size, resized),
        "shortest" if "shortest_edge" in dict(processor.size) else "squash",
    )


def _side(size: Any) -> int | None:
    """Read the side of a square, or of a shorter side, from one of transformers' sizes; None where it is neither."""
    sides = dict(size or {})
    if "shortest_edge" in sides:
        return sides["shortest_edge"]
    return sides.get("height") if sides.get("height") == sides.get("width") else None


def _fraction(cropped: int, resized: int) -> float:
    """Say which part of ``resized`` a crop keeps, so that dividing by it gives that number again."""
    fraction = cropped / resized
    return fraction if math.floor(cropped / fraction) == resized else math.nextafter(fraction, 0)
