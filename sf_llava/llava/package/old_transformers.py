"""Lets the encoder run beside transformers 4.37, which the llava package pins.

The package's own environment is the one its published numbers were made in, and its users have. The model code is
written for transformers 5; what it needs from there that 4.37 lacks is little: a few names, set up here.
"""

import sys
import types

import torch
import transformers


def prepare() -> None:
    """Provide the names that an old transformers lacks; do nothing beside a new one."""
    if int(transformers.__version__.split(".")[0]) >= 5:
        return
    _add_module("initialization", _initialization())
    _add_module("modeling_layers", {"GradientCheckpointingLayer": torch.nn.Module})
    transformers.CLIPImageProcessorPil = transformers.CLIPImageProcessor
    if not hasattr(transformers.modeling_utils, "ALL_ATTENTION_FUNCTIONS"):
        transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS = _OwnAttention()


class _OwnAttention(dict):
    """Every lookup gives the model's own attention."""

    def get_interface(self, name: str | None, default: object) -> object:
        return default


def _initialization() -> dict[str, object]:
    names = ["trunc_normal_", "normal_", "kaiming_normal_", "constant_", "zeros_", "ones_"]
    return {name: getattr(torch.nn.init, name) for name in names} | {"copy_": torch.Tensor.copy_}


def _add_module(name: str, contents: dict[str, object]) -> None:
    full_name = f"transformers.{name}"
    if full_name not in sys.modules:
        module = types.ModuleType(full_name)
        module.__dict__.update(contents)
        sys.modules[full_name] = module
        setattr(transformers, name, module)
