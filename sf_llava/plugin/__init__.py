"""A SparseFormer in LLaVA: the transformers route (``swap``, ``restore``) and the llava package's route.

Importing this registers the encoder with transformers' Auto classes, so that ``from_pretrained`` finds the tower of a
saved LLaVA. The names are imported on first use: the package's route works without what the transformers route needs.
"""

import importlib

from sf_llava.plugin import old_transformers

old_transformers.prepare()

import sf_llava.model  # noqa: E402, F401 (registers)

_MODULES = {
    "swap": "sf_llava.plugin.swapping",
    "restore": "sf_llava.plugin.swapping",
    "Swap": "sf_llava.plugin.swapping",
    "generate_in_place": "sf_llava.plugin.positions",
    "count_patches": "sf_llava.plugin.tokens",
    "build_processor": "sf_llava.plugin.tokens",
    "count_image_tokens": "sf_llava.plugin.tokens",
    "encode_prompts": "sf_llava.plugin.tokens",
    "SparseFormerVisionTower": "sf_llava.plugin.llava_tower",
    "install": "sf_llava.plugin.llava_package",
    "uninstall": "sf_llava.plugin.llava_package",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
