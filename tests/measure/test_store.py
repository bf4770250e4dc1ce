"""Kept embeddings: used as they were written or not at all, and no reason to lose a result."""

import warnings

import pytest
import torch

from sf_llava.measure.store import EmbeddingStore

EMBEDS = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
NOTE = {"places": [0, 2, 3], "corrupt": ["1: empty file"]}


def test_every_flipped_bit_is_found(tmp_path):
    store = EmbeddingStore(tmp_path)
    store.write("key", EMBEDS, NOTE)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embeds, note = store.read("key")
    assert torch.equal(embeds, EMBEDS) and note == NOTE
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        with pytest.warns(UserWarning, match="kept embeddings .* are damaged .*: they are computed again"):
            entry = store.read("key")
        assert entry is None
    path.write_bytes(whole)
    path.rename(tmp_path / "other.safetensors")
    with pytest.warns(UserWarning, match="are damaged"):
        assert store.read("other") is None


@pytest.mark.parametrize("length", [0, 7, 60, -1])
def test_a_file_that_was_cut_is_written_anew(tmp_path, length):
    store = EmbeddingStore(tmp_path)
    store.write("key", EMBEDS, NOTE)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:length])
    with pytest.warns(UserWarning, match="are damaged"):
        assert store.read("key") is None
    store.write("key", EMBEDS, NOTE)
    assert torch.equal(store.read("key")[0], EMBEDS)


def test_a_place_that_cannot_be_written_is_said_and_costs_no_result(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match=r"could not be kept in .*file.*key.safetensors"):
        EmbeddingStore(tmp_path / "file").write("key", EMBEDS, NOTE)
