"""Which files of a directory hold a model's weights, and what tensors they hold, told without reading them.

transformers' layouts: ``model.safetensors`` or ``pytorch_model.bin``, one file or shards with an index, and variants of
each (``model.fp16.safetensors``).
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from sf_llava import files

LAYOUTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
VARIANTS = re.compile(
    r"(?:model|pytorch_model)(?:\.bin|\.safetensors)?(?:\.index)?\.([\w-]+)\.(?:safetensors|bin|json)"
)
FLOATS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class WeightFiles:
    """Where a model's weights are.

    Attributes:
        path: the file, or the index of the shards.
        shards: the files that hold tensors.
        variant: what stands between the names, ``fp16`` say; None without.
        is_safetensors: or pickled by ``torch.save``.
    """

    path: Path
    shards: tuple[Path, ...]
    variant: str | None
    is_safetensors: bool


@dataclass(frozen=True)
class Stored:
    """Shape and dtype of one stored tensor."""

    shape: tuple[int, ...]
    dtype: str
    is_float: bool


def find_weights(directory: Path, variant: str | None = None) -> WeightFiles | None:
    """Find a model's weights in a directory, in the order in which transformers looks; None where there are none.

    Args:
        directory: of a model.
        variant: of the files; without one, plain files come first, then the only variant there is.

    Raises:
        ValueError: several variants and no plain files, or an index that names files which are not there.
    """
    if found := _find(directory, variant):
        return found
    if variant is not None or not directory.is_dir():
        return None
    matches = [VARIANTS.fullmatch(path.name) for path in directory.iterdir() if path.is_file()]
    variants = sorted({match[1] for match in matches if match and match[1] != "index" and "-of-" not in match[1]})
    if len(variants) > 1:
        raise ValueError(
            f"{directory} holds weights in variants {', '.join(variants)}: name one, variant={variants[0]!r}"
        )
    return _find(directory, variants[0]) if variants else None


def _find(directory: Path, variant: str | None) -> WeightFiles | None:
    for layout in LAYOUTS:
        stem, _, suffix = layout.rpartition(".")
        path = directory / (layout if variant is None else f"{stem}.{variant}.{suffix}")
        if path.is_file():
            shards = _read_index(path) if suffix == "json" else (path,)
            return WeightFiles(path, shards, variant, ".safetensors" in layout)
    return None


def _read_index(path: Path) -> tuple[Path, ...]:
    index = files.read_json(path)
    names = index.get("weight_map") if isinstance(index, dict) and "metadata" in index else None
    if not isinstance(names, dict) or not all(isinstance(name, str) and name for name in names.values()):
        raise ValueError(f"{path} is no index of weights: expected metadata and a weight_map from tensors to files")
    shards = tuple(path.parent / name for name in sorted(set(names.values())))
    if wrong := [shard.name for shard in shards if shard.parent != path.parent or not shard.is_file()]:
        raise ValueError(
            f"{path} names {len(wrong)} files that are not beside it, first {wrong[0]}: the copy is not whole"
        )
    return shards


def read_shapes(weights: WeightFiles) -> dict[str, Stored]:
    """List the tensors of weight files, by name.

    Raises:
        ValueError: a file is truncated, of another kind, or holds more than tensors.
    """
    found: dict[str, Stored] = {}
    for shard in weights.shards:
        found |= _read_safetensors(shard) if weights.is_safetensors else _read_pickled(shard)
    return found


def _read_safetensors(path: Path) -> dict[str, Stored]:
    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            kinds = {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
    except Exception as error:  # its own error, OSError, UnicodeDecodeError
        raise ValueError(f"{path} cannot be loaded as safetensors, it may be truncated: {error}") from error
    return {key: Stored(shape, dtype, dtype in FLOATS.values()) for key, (shape, dtype) in kinds.items()}


def _read_pickled(path: Path) -> dict[str, Stored]:
    try:
        state = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # whatever unpickling a damaged file raises
        raise ValueError(
            f"{path} cannot be loaded as tensors: it is truncated, or holds more than tensors, which is not run"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict of tensors")
    return {
        str(key): Stored(tuple(value.shape), str(value.dtype).removeprefix("torch."), value.dtype in FLOATS)
        for key, value in state.items()
    }
