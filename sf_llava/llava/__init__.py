"""A SparseFormer in LLaVA: the transformers route (``swap``, ``restore``) and the llava package's route.

Importing this registers the encoder with transformers' Auto classes, so that ``from_pretrained`` finds the tower of a
saved LLaVA, and the classes of those that lay tiles flat. The names are imported on first use: the package's route
works without what the transformers route needs.
"""

import importlib

import transformers

from sf_llava.llava.package import old_transformers

old_transformers.prepare()

import sf_llava.model  # noqa: E402, F401 (registers)

if int(transformers.__version__.split(".")[0]) >= 5:  # the one that the llava package pins knows no tiles
    from sf_llava.llava import tiles

    tiles.register()

_MODULES = {
    "swap": "sf_llava.llava.swapping",
    "restore": "sf_llava.llava.swapping",
    "swapped": "sf_llava.llava.swapping",
    "Swap": "sf_llava.llava.swapping",
    "generate_in_place": "sf_llava.llava.positions",
    "linear_modules": "sf_llava.llava.adaptation",
    "freeze_unused": "sf_llava.llava.adaptation",
    "Reading": "sf_llava.llava.reading",
    "load_llava": "sf_llava.llava.loading",
    "count_patches": "sf_llava.llava.tokens",
    "build_processor": "sf_llava.llava.tokens",
    "count_image_tokens": "sf_llava.llava.tokens",
    "encode_prompts": "sf_llava.llava.tokens",
    "SparseFormerVisionTower": "sf_llava.llava.package.tower",
    "install": "sf_llava.llava.package.install",
    "uninstall": "sf_llava.llava.package.install",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
