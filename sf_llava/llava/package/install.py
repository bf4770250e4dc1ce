"""The llava package's route: ``mm_vision_tower="sparseformer:DIR"`` in the original package. Imports ``llava``.

    from sf_llava.llava import install
    install()                                      # from now on the package builds our towers
    load_pretrained_model(...)                     # a checkpoint whose config names sparseformer:DIR

The package's own programs, with the tower of any checkpoint swapped and the checkpoint untouched:

    python -m sf_llava.llava.package.install --tower sparseformer:DIR llava.eval.model_vqa_science --model-path ...

Expected: what that program prints, read through the SparseFormer.
"""

import argparse
import runpy
import sys
from typing import Any

import transformers
from torch import nn

from sf_llava.llava.package.tower import PREFIX, SparseFormerVisionTower

try:
    import llava.model.builder
    import llava.model.llava_arch
    import llava.model.multimodal_encoder.builder
except ModuleNotFoundError as error:
    raise ImportError(
        f"the llava package's route needs that package (no module {error.name}): pip install --no-deps llava-torch "
        "einops shortuuid requests"
    ) from error

_originals: dict[tuple[Any, str], Any] = {}


def install(tower: str | None = None) -> None:
    """Let the llava package build SparseFormer towers; every other tower is built as before.

    Beside transformers 5 it also gives the package a tokenizer with the right ids: ``AutoTokenizer`` there drops the
    SentencePiece prefix and changes the ids without a word.

    Args:
        tower: ``sparseformer:DIR`` to build in place of whatever a checkpoint's config names.

    Raises:
        ValueError: ``tower`` is not of that form.
    """
    if tower is not None and not tower.startswith(PREFIX):
        raise ValueError(f"tower must be {PREFIX}DIR, not {tower!r}")
    uninstall()
    build_original = llava.model.multimodal_encoder.builder.build_vision_tower

    def build_vision_tower(vision_tower_cfg: Any, **kwargs: Any) -> nn.Module:
        named = getattr(vision_tower_cfg, "mm_vision_tower", getattr(vision_tower_cfg, "vision_tower", None))
        name = tower or named
        if isinstance(name, str) and name.startswith(PREFIX):
            return SparseFormerVisionTower(name, args=vision_tower_cfg, **kwargs)
        return build_original(vision_tower_cfg, **kwargs)

    _replace(llava.model.multimodal_encoder.builder, "build_vision_tower", build_vision_tower)
    _replace(llava.model.llava_arch, "build_vision_tower", build_vision_tower)
    if int(transformers.__version__.split(".")[0]) >= 5:
        _replace(llava.model.builder, "AutoTokenizer", _ExactTokenizer)


def uninstall() -> None:
    """Leave the package as it was before :func:`install`."""
    for (module, name), original in _originals.items():
        setattr(module, name, original)
    _originals.clear()


def _replace(module: Any, name: str, value: Any) -> None:
    _originals[module, name] = getattr(module, name)
    setattr(module, name, value)


class _ExactTokenizer:
    """Stands for ``AutoTokenizer`` in the package's loader."""

    @staticmethod
    def from_pretrained(path: str, **kwargs: Any) -> Any:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **kwargs)
        if isinstance(tokenizer, transformers.LlamaTokenizer):
            return transformers.LlamaTokenizer.from_pretrained(path, legacy=True)
        return tokenizer


def main(argv: list[str]) -> None:
    """Run a program of the llava package with our towers installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", help="sparseformer:DIR, in place of whatever the checkpoint's config names")
    parser.add_argument("module", help="module to run, llava.eval.model_vqa_science or llava.serve.cli, say")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")
    arguments = parser.parse_args(argv)
    install(arguments.tower)
    before = sys.argv
    sys.argv = [arguments.module, *arguments.arguments]
    try:
        runpy.run_module(arguments.module, run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before
        uninstall()


if __name__ == "__main__":
    from sf_llava import cli

    cli.run(main)
