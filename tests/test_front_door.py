"""The names at the top of the package: they load, they are typed, and loaders take precisions by name."""

import ast
from pathlib import Path

import pytest
import torch
from llava_fixtures import make_processor
from tiny_llava import make_encoder, make_llava

import sf_llava
from sf_llava import load_encoder, load_llava
from sf_llava.devices import DTYPES

LOADERS = {"llava": lambda *given, **how: load_llava(*given, **how)[0], "encoder": load_encoder}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A LLaVA and an encoder, each saved in every precision."""
    path = tmp_path_factory.mktemp("saved")
    for name, dtype in DTYPES.items():
        make_llava().to(dtype).save_pretrained(path / "llava" / name)
        make_processor().save_pretrained(path / "llava" / name)
        make_encoder().to(dtype).save_pretrained(path / "encoder" / name)
    return path


def test_every_name_is_there_and_an_unknown_one_lists_them():
    assert len(sf_llava.__all__) == len(set(sf_llava.__all__)) == 14
    for name in sf_llava.__all__:
        assert getattr(sf_llava, name).__name__ == name and name in dir(sf_llava)
    with pytest.raises(AttributeError, match=r"no attribute 'load_lava'; it offers .*load_llava, .*swapped"):
        _ = sf_llava.load_lava


def test_type_checkers_see_the_same_names():
    (typed,) = (node for node in ast.parse(Path(sf_llava.__file__).read_text()).body if isinstance(node, ast.If))
    names = {alias.name: line.module for line in typed.body for alias in line.names}
    assert sorted(names) == sorted(sf_llava.__all__)
    for name, home in names.items():
        module = __import__(home, fromlist=[name])
        assert getattr(module, name) is getattr(sf_llava, name)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", DTYPES)
def test_a_loader_takes_a_precision_by_its_name_or_torchs(saved, loader, name):
    for dtype in (name, DTYPES[name]):
        model = LOADERS[loader](saved / loader / "fp32", dtype=dtype)
        assert model.dtype == DTYPES[name] and not model.training


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", DTYPES)
def test_auto_is_the_precision_that_the_weights_were_saved_in(saved, loader, name):
    assert LOADERS[loader](saved / loader / name, dtype="auto").dtype == DTYPES[name]


def test_where_a_latent_looks_stays_in_float32_with_auto(saved):
    encoder = load_encoder(saved / "encoder" / "fp16", dtype="auto")
    assert encoder.cls_token.dtype == torch.float16 and encoder.focusing.initial_rois.dtype == torch.float32


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("dtype", ["float16", "fp8", "", None, 16])
def test_an_unknown_precision_lists_the_known_ones(saved, loader, dtype):
    with pytest.raises(
        ValueError, match=rf"unknown dtype {dtype!r}: expected fp32, fp16, bf16, auto or a torch\.dtype"
    ):
        LOADERS[loader](saved / loader / "fp32", dtype=dtype)


def test_a_hub_name_that_is_nowhere_is_one_sentence_with_the_reason(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"no LLaVA at nobody/no-llava: expected a directory .*hub \(\S.*\)$"):
        load_llava("nobody/no-llava", dtype="fp16", device_map="auto")
    with pytest.raises(ValueError, match=r"no LLaVA at no/such/folder: expected a directory .* or a name on the hub$"):
        load_llava("no/such/folder")
