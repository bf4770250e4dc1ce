"""State dicts in the layout of the released checkpoints, of tiny size and made by a formula on every machine alike.

Every number is drawn, so that no zero-initialised path hides: matrices with a variance of 1 / fan-in, all else with a
standard deviation of 0.1, scales and the biases of norms before attention and MLP around 1, RoIs that leave the image.
"""

import math
import zlib

import numpy as np
import torch

LATENTS, WIDTH, FOCUSING, CORTEX_BLOCKS, PROJECTED, IMAGE_SIZE = 15, 128, 64, 3, 32, 64
CHANNELS, POINTS, MIXING, ITERATIONS = 64, 16, 128, 4
KINDS = ("clip", "augreg")


def make_state(kind: str = "clip") -> dict[str, torch.Tensor]:
    """Give the tiny state dict of a kind, float32: ``augreg`` has a bias in its projection, which is a classifier."""
    return {name: _draw(name, shape) for name, shape in _shapes(kind).items()}


def make_pixel_values() -> torch.Tensor:
    """Give (2, 3, 64, 64) float32 of unit variance: squares of 4 x 4 pixels.

    Smooth enough that float32's rounding does not grow from one movement of the RoIs to the next.
    """
    squares = _uniform("pixel_values", (2, 3, IMAGE_SIZE // 4, IMAGE_SIZE // 4)).float()
    return squares.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)


def _shapes(kind: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "feat_extractor.conv1.weight": (CHANNELS, 3, 7, 7),
        "feat_extractor.conv1.bias": (CHANNELS,),
        "initial_roi.weight": (LATENTS, 4),
        "initial_embedding.weight": (1, FOCUSING),
        "cls_embedding.weight": (1, WIDTH),
        "layers.0.stage_embedding.weight": (ITERATIONS, FOCUSING),
        **_linear("layers.1.0", WIDTH, FOCUSING),
        **_sampling("layers.0", FOCUSING),
        **_transformer("layers.0", FOCUSING),
        **_norm("layers.0.roi_adjust_module.0", FOCUSING),
        **_linear("layers.0.roi_adjust_module.1", FOCUSING, FOCUSING),
        **_linear("layers.0.roi_adjust_module.3", 4, FOCUSING, bias=False),
        **_sampling("layers.2", WIDTH),
        **_norm("norm", WIDTH),
        **_linear("proj", PROJECTED, WIDTH, bias=kind == "augreg"),
    }
    for block in range(CORTEX_BLOCKS):
        shapes |= _transformer(f"layers.{3 + block}", WIDTH)
    return shapes


def _linear(name: str, outputs: int, inputs: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _sampling(layer: str, width: int) -> dict[str, tuple[int, ...]]:
    generated = CHANNELS**2 + 2 * POINTS * POINTS
    return {
        f"{layer}.roi_offset_bias": (2 * POINTS,),
        **_norm(f"{layer}.roi_offset_module.0", width),
        **_linear(f"{layer}.roi_offset_module.1", 2 * POINTS, width, bias=False),
        **_norm(f"{layer}.adaptive_mixing.parameter_generator.0", width),
        **_linear(f"{layer}.adaptive_mixing.parameter_generator.1", MIXING, width),
        **_linear(f"{layer}.adaptive_mixing.parameter_generator.2", generated, MIXING),
        **_linear(f"{layer}.adaptive_mixing.out_proj", width, CHANNELS * 2 * POINTS),
        **_norm(f"{layer}.pe_transition.0", width),
        **_linear(f"{layer}.pe_transition.1", width, width),
    }


def _transformer(layer: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        **_norm(f"{layer}.norm1", width),
        **_linear(f"{layer}.attn.qkv", 3 * width, width),
        **_linear(f"{layer}.attn.proj", width, width),
        **_norm(f"{layer}.norm2", width),
        **_linear(f"{layer}.mlp.fc1", 4 * width, width),
        **_linear(f"{layer}.mlp.fc2", width, 4 * width),
    }


def _draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    values = _uniform(name, shape)
    if name == "initial_roi.weight":
        values = values / 2  # the upper left corner around 0, the lower right one around 1: some leave the image
        values[:, :2], values[:, 2:] = 0.2 * values[:, :2], 1 + 0.4 * values[:, 2:]
    elif name == "layers.0.roi_adjust_module.3.weight":
        values *= 0.2 / math.sqrt(shape[-1])
    elif len(shape) > 1 and "embedding" not in name:
        values /= math.sqrt(math.prod(shape[1:]))
    else:
        values *= 0.1
    is_scale = len(shape) == 1 and name.endswith("weight")
    return (values + (1 if is_scale or "norm" in name else 0)).float()


def _uniform(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Unit variance, float64; the legacy generator's stream is frozen and its uniform numbers need no libm."""
    numbers = np.random.RandomState(zlib.crc32(name.encode())).random_sample(math.prod(shape))
    return torch.from_numpy((2 * numbers - 1) * math.sqrt(3)).reshape(shape)
