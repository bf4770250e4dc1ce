"""Tiny models and pictures that tests share: a random CLIP directory, folders of drawn images."""

from pathlib import Path

import torch
from PIL import Image


def save_tiny_clip(path: Path, seed: int = 0, **vision: object) -> Path:
    """Write a random CLIP of three thin blocks at 32 px (16 patches) as a transformers directory."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=32,
                 patch_size=8, hidden_act="quick_gelu")  # fmt: skip
    text = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64,
                max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1)  # fmt: skip
    CLIPModel(CLIPConfig(vision_config=shape | vision, text_config=text, projection_dim=16)).save_pretrained(path)
    return path


def save_images(path: Path, count: int, size: int = 40, seed: int = 0) -> Path:
    """Write ``count`` random smooth pictures as PNG files."""
    path.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    for index in range(count):
        coarse = torch.rand(1, 3, 5, 5, generator=generator)
        pixels = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)[0]
        array = (pixels * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(path / f"{index:04d}.png")
    return path


def save_world(path: Path, num_images: int) -> Path:
    """Write what a small bootstrap reads: a tiny CLIP in ``clip/``, pictures in ``images/``."""
    save_tiny_clip(path / "clip")
    save_images(path / "images", num_images)
    return path


def run_settings(world: Path, output: Path, **changes: object) -> dict:
    """Give flat settings of a bootstrap of a few steps on what :func:`save_world` wrote, to the same bits anywhere.

    It has the paper's loss alone, but where ``changes`` name another ``align``.
    """
    return dict(
        teacher=str(world / "clip"), data=f"folder:{world / 'images'}", output=str(output), batch_size=8, lr=1e-3,
        log_every=2, save_every=2, val_images=5, threads=1, workers=0, device="cpu", dtype="fp32", align="none",
    ) | changes  # fmt: skip
