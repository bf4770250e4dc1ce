"""State dicts of SparseFormer v1 in its three official layouts, of tiny size, random but for what must stay in bounds.

``released`` is what the authors' package loads, ``original`` what their ImageNet code wrote, ``clips`` what their video
code saves. Names and shapes were compared with those of the authors' models when they were written down.
"""

import re

import torch
from torch import Tensor

LATENTS, FOCUSING, WIDTH, BLOCKS, CHANNELS, POINTS, CLASSES = 4, 64, 128, 3, 6, 36, 7
MIXING_POINTS = 36

ORIGINAL_NAMES = {
    r"^initial_": "token_",
    r"^norm\.": "head.norm.",
    r"^proj\.": "head.classifier.",
    r"\.norm1\.": ".ln_attn.",
    r"\.norm2\.": ".ffn.0.",
    r"\.mlp\.fc1\.": ".ffn.1.",
    r"\.mlp\.fc2\.": ".ffn.3.",
    r"\.attn\.qkv\.": ".attn.in_proj_",
    r"\.attn\.proj\.": ".attn.out_proj.",
    r"_mixing\.out_proj\.": "_mixing.tuo_proj.",
}

Shapes = dict[str, tuple[int, ...]]


def make_state(layout: str = "released", seed: int = 0) -> dict[str, Tensor]:
    """Draw a state dict, float32; the same seed gives the released and the original layout the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    shapes = released_shapes(axes=3 if layout == "clips" else 2)
    state = {name: _draw(name, shape, generator) for name, shape in shapes.items()}
    return {original_name(name): value for name, value in state.items()} if layout == "original" else state


def released_shapes(axes: int = 2) -> Shapes:
    """Give names and shapes of the released layout, with 3 axes of the video code's."""
    shapes: Shapes = {
        "feat_extractor.conv1.weight": (CHANNELS, 3, *[1] * (axes - 2), 7, 7),
        "feat_extractor.conv1.bias": (CHANNELS,),
        "initial_roi.weight": (LATENTS, 2 * axes),
        "initial_embedding.weight": (LATENTS, FOCUSING),
        "layers.1.0.weight": (WIDTH, FOCUSING),
        "layers.1.0.bias": (WIDTH,),
        "layers.1.1.weight": (WIDTH,),
        "layers.1.1.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
        "proj.weight": (CLASSES, WIDTH),
        "proj.bias": (CLASSES,),
    }
    for layer, width in ((0, FOCUSING), (2, WIDTH)):
        shapes |= _block(layer, width) | _reading(layer, width, axes)
    for layer in range(3, 2 + BLOCKS):
        shapes |= _block(layer, WIDTH)
    return shapes


def _block(layer: int, width: int) -> Shapes:
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    linear |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    shapes: Shapes = {f"layers.{layer}.norm{i}.{kind}": (width,) for i in (1, 2) for kind in ("weight", "bias")}
    for name, shape in linear.items():
        shapes |= {f"layers.{layer}.{name}.weight": shape, f"layers.{layer}.{name}.bias": shape[:1]}
    return shapes


def _reading(layer: int, width: int, axes: int) -> Shapes:
    generated = CHANNELS**2 + MIXING_POINTS * POINTS
    shapes: Shapes = {
        "roi_offset_bias": (axes * POINTS,),
        "roi_offset_module.0.weight": (width,),
        "roi_offset_module.0.bias": (width,),
        "roi_offset_module.1.weight": (axes * POINTS, width),
        "roi_adjust_module.0.weight": (width,),
        "roi_adjust_module.0.bias": (width,),
        "roi_adjust_module.1.weight": (2 * axes, width),
        "adaptive_mixing.m_beta": (CHANNELS,),
        "adaptive_mixing.s_beta": (MIXING_POINTS,),
        "adaptive_mixing.parameter_generator.0.weight": (width,),
        "adaptive_mixing.parameter_generator.0.bias": (width,),
        "adaptive_mixing.parameter_generator.1.weight": (width // 4, width),
        "adaptive_mixing.parameter_generator.1.bias": (width // 4,),
        "adaptive_mixing.parameter_generator.2.weight": (generated, width // 4),
        "adaptive_mixing.parameter_generator.2.bias": (generated,),
        "adaptive_mixing.out_proj.weight": (width, CHANNELS * MIXING_POINTS),
        "adaptive_mixing.out_proj.bias": (width,),
    }
    return {f"layers.{layer}.{name}": shape for name, shape in shapes.items()}


def original_name(name: str) -> str:
    """Give a tensor's name in the original layout."""
    for pattern, old in ORIGINAL_NAMES.items():
        if re.search(pattern, name):
            return re.sub(pattern, old, name)
    return name


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=generator)
    if name == "initial_roi.weight":  # some leave the image, some the clip
        low, size = torch.rand((2, shape[0], shape[1] // 2), generator=generator)
        return torch.cat([low - 0.2, low + 0.1 + 0.5 * size], dim=1)
    if name.endswith("roi_adjust_module.1.weight"):
        return 0.3 * values / shape[-1] ** 0.5
    if len(shape) > 1 and "embedding" not in name:
        return values / values[0].numel() ** 0.5
    if len(shape) == 1:
        return 0.2 * values + (name.endswith("weight"))
    return values
