"""Image towers and teachers with random weights, where speed alone counts (benchmarks), and the mini teacher."""

from typing import Any

from torch import nn

from sf_llava.extras import require
from sf_llava.teachers import load_teacher
from sf_llava.teachers.base import Teacher


def build_image_tower(name: str, image_size: int | None = None) -> nn.Module:
    """Build a tower in eval mode: (B, 3, S, S) pixels to embeddings or logits.

    Args:
        name: ``open_clip:MODEL`` or ``timm:MODEL``, random; or ``mini``, the teacher that ships.
        image_size: side of the pictures of a ViT of timm, in pixels; default: the model's own.

    Raises:
        ValueError: another family, or a model that it does not know.
        ModuleNotFoundError: the family's library is not installed.
    """
    if name == "mini":
        return load_teacher(name)
    family, _, model = name.partition(":")
    if family == "open_clip":
        tower = _build_clip(model).visual
    elif family == "timm":
        require(f"image tower {name}", "timm")
        import timm

        if not timm.is_model(model):
            raise ValueError(f"timm has no model {model!r}; timm.list_models() lists them")
        tower = timm.create_model(model, **({"img_size": image_size} if image_size else {}))
    else:
        raise ValueError(f"unknown image tower {name!r}; expected open_clip:MODEL, timm:MODEL or mini")
    return tower.eval().requires_grad_(False)


def build_teacher(name: str) -> Teacher:
    """Build the teacher ``open_clip:MODEL`` or ``timm:MODEL``, random, or load ``mini``.

    Raises:
        ValueError, ModuleNotFoundError: as of :func:`build_image_tower`, and a model that cannot be a teacher.
    """
    if name == "mini":
        return load_teacher(name)
    family, _, model = name.partition(":")
    if family == "timm":
        vit: Any = build_image_tower(name)
        from sf_llava.teachers.timm_teacher import TimmTeacher

        return TimmTeacher(name, vit)
    if family != "open_clip":
        raise ValueError(f"unknown random teacher {name!r}; expected open_clip:MODEL, timm:MODEL or mini")
    clip = _build_clip(model)
    from sf_llava.teachers.open_clip_teacher import OpenClipTeacher

    preprocess = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    return OpenClipTeacher(name, clip, model, preprocess)


def _build_clip(model: str) -> Any:
    require(f"image tower open_clip:{model}", "open_clip")
    import open_clip

    if model not in open_clip.list_models():
        raise ValueError(f"open_clip has no model {model!r}; open_clip.list_models() lists them")
    return open_clip.CLIP(**open_clip.get_model_config(model))
