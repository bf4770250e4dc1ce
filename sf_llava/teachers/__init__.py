"""Teachers by name: vision transformers of open_clip, transformers and timm (CLIP, SigLIP, DINOv2, AugReg) behind one
contract."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sf_llava.catalogue import TEACHERS
from sf_llava.devices import as_dtype
from sf_llava.extras import require
from sf_llava.files import read_json_object

if TYPE_CHECKING:
    from sf_llava.teachers.base import Teacher

NAMES = (
    "mini, mini-siglip, open_clip:MODEL/TAG, open_clip:MODEL/FILE, transformers:ID_OR_DIR, timm:MODEL.TAG, "
    "timm:MODEL/FILE, timm:DIR, "
    "or the directory of a model (with config.json or open_clip_config.json)"
)


def load_teacher(name: str, *, dtype: "torch.dtype | str" = "fp32", device: "str | torch.device" = "cpu") -> "Teacher":
    """Load a frozen teacher.

    Args:
        name: ``mini`` (the embedded default), ``mini-siglip``, ``open_clip:ViT-L-14-quickgelu/openai``,
            ``open_clip:MODEL/FILE``, ``transformers:openai/clip-vit-large-patch14``, ``transformers:DIR``,
            ``timm:vit_base_patch16_224.augreg_in21k_ft_in1k``, ``timm:MODEL/FILE``, ``timm:DIR``, or a directory.
        dtype: of its parameters and outputs, or its name (fp32, fp16, bf16).
        device: where it goes.

    Raises:
        ValueError: an unknown name, weights that are missing, broken or do not fit, a QuickGELU mismatch, no network
            where one is needed, or a model that is not a plain ViT. The message says what to do.
        ModuleNotFoundError: the teacher's library is not installed.
    """
    family, spec = _parse(name)
    if family in ("open_clip", "timm"):
        require(f"teacher {name}", family)
    adapter = importlib.import_module(f"sf_llava.teachers.{family}_teacher")
    return adapter.load(name, spec, as_dtype(dtype)).to(device)


def _parse(name: str) -> tuple[str, str]:
    """Split a teacher's name into its family and what that family's adapter reads."""
    if (registered := TEACHERS.find(name)) is not None:
        name = registered()
    family, _, spec = name.partition(":")
    if family in ("open_clip", "transformers", "timm"):
        if not spec:
            raise ValueError(f"teacher {name!r} names no model; expected {NAMES}")
        return family, str(Path(spec).expanduser()) if spec.startswith("~") else spec
    path = Path(name).expanduser()
    if name and path.is_dir():
        return _family_of(path), str(path)
    if path.is_file():
        raise ValueError(f"{name} is a weights file without a model: write open_clip:MODEL/{name} or timm:MODEL/{name}")
    raise ValueError(f"unknown teacher {name!r}; expected {NAMES}")


def _family_of(directory: Path) -> str:
    """Say which library a model directory belongs to; transformers where it could be either."""
    has_config = (directory / "config.json").is_file()
    config = read_json_object(directory / "config.json") if has_config else {}
    if "model_type" in config:  # the others' have none
        return "transformers"
    if (directory / "open_clip_config.json").is_file():
        return "open_clip"
    if "architecture" in config:
        return "timm"
    if has_config:
        return "transformers"  # which says what is wrong with it
    raise ValueError(f"{directory} is no teacher: neither config.json nor open_clip_config.json is in it")
