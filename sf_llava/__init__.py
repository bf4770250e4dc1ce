"""SparseFormer vision encoders bootstrapped from CLIP, and what puts them in CLIP's place.

    from sf_llava import load_llava, swapped

    model, processor = load_llava("path/to/llava", dtype="fp16")
    with swapped(model, processor, "path/to/encoder"):
        ...  # model.generate(...) sees through the SparseFormer

Importing the package loads nothing heavy; the names below load what they need when they are first used.
"""

import importlib

from sf_llava import moved

moved.register()

__version__ = "0.1.0"

_HOMES = {
    "SparseFormerConfig": "sf_llava.configuration",
    "preset": "sf_llava.configuration",
    "SparseFormerModel": "sf_llava.model",
    "SparseFormerOutput": "sf_llava.model",
    "load_encoder": "sf_llava.model.loading",
    "load_llava": "sf_llava.llava",
    "load_teacher": "sf_llava.teachers",
    "swap": "sf_llava.llava",
    "restore": "sf_llava.llava",
    "swapped": "sf_llava.llava",
    "generate_in_place": "sf_llava.llava",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sf_llava' has no attribute {name!r}; it offers {', '.join(_HOMES)}")
    return getattr(importlib.import_module(_HOMES[name]), name)
