"""What of a LLaVA is worth training: names for PEFT's ``target_modules``, and what to freeze.

    config = LoraConfig(target_modules=linear_modules(model, ["llm"]), modules_to_save=["multi_modal_projector"])
    freeze_unused(model)        # before DistributedDataParallel, which expects a gradient of all that is trained

A LLaVA reads a hidden state of its tower (``vision_feature_layer``, -2 as a rule): what lies behind it, the last block,
the final norm and the projection, never meets the loss. Which weights do is not guessed from names but asked of
autograd, with one empty picture.
"""

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sf_llava.llava.host import find_llava
from sf_llava.llava.reading import read_views

PARTS = ("tower", "projector", "llm")
_log = logging.getLogger(__name__)


def linear_modules(model: Any, parts: Collection[str] = PARTS) -> list[str]:
    """Name the linear layers that the LLaVA runs, for PEFT's ``target_modules``; the head is left out, as PEFT does.

    Args:
        model: a LLaVA with any tower, before PEFT's wrapper.
        parts: of ``tower``, ``projector`` and ``llm``.

    Returns:
        Full names, such as ``model.vision_tower.cortex.0.attn.qkv``, in the model's order.

    Raises:
        ValueError: an unknown part, no part, or no such model.
    """
    if not parts or set(parts) - set(PARTS):
        raise ValueError(f"unknown parts {list(parts)!r}: expected some of {', '.join(PARTS)}")
    model = find_llava(model)
    unused = find_unused(model) if "tower" in parts else set()
    trunk = model.model
    roots = {"tower": trunk.vision_tower, "projector": trunk.multi_modal_projector, "llm": trunk.language_model}
    inside = {module for part in parts for module in roots[part].modules()}
    return [
        name
        for name, module in model.named_modules()
        if module in inside and isinstance(module, nn.Linear) and f"{name}.weight" not in unused
    ]


def freeze_unused(model: Any) -> list[str]:
    """Freeze the weights that the LLaVA holds but its loss does not depend on.

    DistributedDataParallel raises for a weight that is trained and gets no gradient; an optimizer would decay it.

    Args:
        model: a LLaVA with any tower, or one in PEFT's wrapper, whose adapters count.

    Returns:
        Names of the weights that were trained before this call, as in the LLaVA.

    Raises:
        ValueError: it is no such model.
    """
    model = find_llava(model)
    unused = find_unused(model)
    frozen = [name for name, weight in model.named_parameters() if name in unused and weight.requires_grad]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    _log.info("froze %d weights of the vision tower that the LLaVA does not read", len(frozen))
    return frozen


def find_unused(model: Any) -> set[str]:
    """Find the weights of tower and projector that what the LLM reads of a picture does not depend on, by name.

    Raises:
        ValueError: it is no LLaVA, or its tower lies outside memory (offloaded).
    """
    model = find_llava(model)
    named = {
        f"model.{part}.{name}": weight
        for part in ("vision_tower", "multi_modal_projector")
        for name, weight in getattr(model.model, part).named_parameters()
        if weight.dtype.is_floating_point
    }
    if any(weight.is_meta for weight in named.values()):
        raise ValueError("the vision tower is offloaded, so what it runs cannot be asked: load the model without that")
    weight = next(iter(named.values()))
    side = model.config.vision_config.image_size
    empty = torch.zeros(1, 3, side, side, device=weight.device, dtype=weight.dtype)
    with _as_evaluated(model.model), torch.enable_grad(), _trainable(list(named.values())):
        features = read_views(model, empty)
        gradients = torch.autograd.grad(features.float().sum(), list(named.values()), allow_unused=True)
    return {name for name, gradient in zip(named, gradients, strict=True) if gradient is None}


@contextmanager
def _as_evaluated(module: nn.Module) -> Iterator[None]:
    """Let no layer checkpoint or drop anything; each is in its own mode again afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def _trainable(weights: list[Tensor]) -> Iterator[None]:
    """Let autograd follow all ``weights``; each is frozen or not as before afterwards."""
    before = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight, required in zip(weights, before, strict=True):
            weight.requires_grad_(required)
