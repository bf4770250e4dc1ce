"""Encoders load whole or not at all."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sf_llava.checkpoints.encoder import load_encoder
from sf_llava.configuration import preset
from sf_llava.model import SparseFormerModel


@pytest.fixture
def encoder_dir(tmp_path):
    SparseFormerModel(preset("sf-mini", num_hidden_layers=1)).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_an_encoder_and_its_run_load_alike(encoder_dir):
    pixel_values = torch.randn(1, 3, 64, 64)
    first, second = load_encoder(encoder_dir), load_encoder(encoder_dir.parent)
    with torch.no_grad():
        assert torch.equal(first(pixel_values).image_embeds, second(pixel_values).image_embeds)
    assert not first.training


def test_an_absent_encoder_says_how_to_make_one(tmp_path):
    with pytest.raises(ValueError, match=r"no encoder at .*bootstrap_clip"):
        load_encoder(tmp_path / "nothing")


@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshaped", "truncated"])
def test_weights_that_do_not_fit_are_refused(encoder_dir, damage):
    file = encoder_dir / "model.safetensors"
    state = load_file(file)
    if damage == "missing":
        del state["cls_token"]
    elif damage == "unexpected":
        state["extra.weight"] = torch.zeros(1)
    elif damage == "misshaped":
        state["cls_token"] = torch.zeros(3)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"cls_token|extra.weight|truncated"):
        load_encoder(encoder_dir)
