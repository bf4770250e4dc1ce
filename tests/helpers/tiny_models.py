"""Builders of small random models, and small timm architectures under names that ``timm:`` accepts."""

import torch
from timm.models import VisionTransformer, register_model
from torch import nn


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter anew: zero biases and unit norms would hide a mapping that mixes them up."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
            else:
                parameter.copy_(0.3 * noise + (1 if "norm" in name or "ln_" in name else 0))
    return model.eval()


def open_clip_config(quick_gelu: bool = False, **vision: object) -> dict:
    """A CLIP of 24 px images in patches of 8, two blocks with two heads."""
    return {
        "embed_dim": 20,
        "quick_gelu": quick_gelu,
        "vision_cfg": {"image_size": 24, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2} | vision,
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
    }


def _tiny_vit(num_classes: int = 7, **options: object) -> VisionTransformer:
    # timm hands its own keywords to every entry point; they are none of the model's.
    options = {key: value for key, value in options.items() if not key.startswith(("pretrained", "cache_dir"))}
    model = VisionTransformer(24, 8, num_classes=num_classes, embed_dim=32, depth=2, num_heads=2, **options)
    normalisation = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    model.pretrained_cfg = {**normalisation, "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"}
    return model


@register_model
def vit_sf_tiny(pretrained: bool = False, **options: object) -> VisionTransformer:
    return _tiny_vit(**options)


@register_model
def vit_sf_tiny_clip(pretrained: bool = False, **options: object) -> VisionTransformer:
    return _tiny_vit(pre_norm=True, act_layer="quick_gelu", norm_layer="layernorm", **options)


@register_model
def vit_sf_tiny_layer_scale(pretrained: bool = False, **options: object) -> VisionTransformer:
    return _tiny_vit(init_values=0.1, **options)


@register_model
def vit_sf_tiny_map(pretrained: bool = False, **options: object) -> VisionTransformer:
    return _tiny_vit(global_pool="map", **options)


@register_model
def vit_sf_tiny_avg(pretrained: bool = False, **options: object) -> VisionTransformer:
    return _tiny_vit(global_pool="avg", **options)


@register_model
def vit_sf_tiny_registers(pretrained: bool = False, **options: object) -> VisionTransformer:
    return _tiny_vit(reg_tokens=4, **options)
