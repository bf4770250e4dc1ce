"""Writes an untrained encoder that fits the mini LLaVA and moves its RoIs."""

from pathlib import Path

import torch

from sf_llava.configuration import preset
from sf_llava.model import SparseFormerModel


def write_mini_encoder(path: Path) -> Path:
    torch.manual_seed(0)
    encoder = SparseFormerModel(preset("sf-mini"))
    for parameter in encoder.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    encoder.save_pretrained(path)
    return path
