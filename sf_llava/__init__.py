"""SparseFormer vision encoders bootstrapped from CLIP, and what puts them in CLIP's place.

    from sf_llava import load_llava, swapped

    model, processor = load_llava("path/to/llava", dtype="fp16")
    with swapped(model, processor, "path/to/encoder"):
        ...  # model.generate(...) sees through the SparseFormer

Importing the package loads nothing heavy; the names below load what they need when they are first used.
"""

import importlib
from typing import TYPE_CHECKING

from sf_llava import moved

if TYPE_CHECKING:  # the names below once more, for type checkers
    from sf_llava.configuration import SparseFormerConfig, preset
    from sf_llava.llava.adaptation import freeze_unused, linear_modules
    from sf_llava.llava.loading import load_llava
    from sf_llava.llava.positions import generate_in_place
    from sf_llava.llava.swapping import restore, swap, swapped
    from sf_llava.model.loading import load_encoder
    from sf_llava.model.packing import pack_for_cpu
    from sf_llava.model.sparseformer import SparseFormerModel, SparseFormerOutput
    from sf_llava.teachers import load_teacher

__all__ = [
    "SparseFormerConfig",
    "SparseFormerModel",
    "SparseFormerOutput",
    "freeze_unused",
    "generate_in_place",
    "linear_modules",
    "load_encoder",
    "load_llava",
    "load_teacher",
    "pack_for_cpu",
    "preset",
    "restore",
    "swap",
    "swapped",
]

moved.register()

__version__ = "0.1.0"

_HOMES = {
    "SparseFormerConfig": "sf_llava.configuration",
    "preset": "sf_llava.configuration",
    "SparseFormerModel": "sf_llava.model",
    "SparseFormerOutput": "sf_llava.model",
    "load_encoder": "sf_llava.model.loading",
    "pack_for_cpu": "sf_llava.model.packing",
    "load_llava": "sf_llava.llava",
    "load_teacher": "sf_llava.teachers",
    "swap": "sf_llava.llava",
    "restore": "sf_llava.llava",
    "swapped": "sf_llava.llava",
    "generate_in_place": "sf_llava.llava",
    "linear_modules": "sf_llava.llava",
    "freeze_unused": "sf_llava.llava",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sf_llava' has no attribute {name!r}; it offers {', '.join(_HOMES)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
