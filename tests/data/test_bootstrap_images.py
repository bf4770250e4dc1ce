"""Batches for bootstrapping: the same for any number of workers and processes, from any step, whatever is corrupt."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from sf_llava.data import CorruptImageError, open_images
from sf_llava.data.bootstrap_images import MAX_SKIPPED, BootstrapImages, collate
from sf_llava.data.sampler import BootstrapSampler
from sf_llava.data.transforms import BootstrapTransform, Preprocessing

TRANSFORM = BootstrapTransform(Preprocessing(16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
BROKEN = {"03.png": b"text, not a picture", "04.jpg": b"", "10.png": None}


@pytest.fixture
def folder(tmp_path):
    """A dozen pictures of which three cannot be read: text under a picture's name, an empty and a truncated file."""
    for index in range(12):
        name = f"{index:02}.{'jpg' if index == 4 else 'png'}"
        image = Image.fromarray(np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8))
        image.save(tmp_path / name)
        if name in BROKEN:
            data = BROKEN[name]
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:300] if data is None else data)
    return tmp_path


class Shades:
    """A source without files: picture i is one shade of grey; some are corrupt."""

    def __init__(self, size: int, corrupt: frozenset[int] = frozenset()) -> None:
        self.size, self.corrupt = size, corrupt

    def __len__(self) -> int:
        return self.size

    def load(self, index: int) -> Image.Image:
        if index in self.corrupt:
            raise CorruptImageError(f"{self.describe(index)}: torn")
        return Image.new("RGB", (20, 20), (index % 256,) * 3)

    def describe(self, index: int) -> str:
        return f"shade {index}"


def batches(images: BootstrapImages, count: int, workers: int = 0, **options) -> list[dict]:
    sampler = BootstrapSampler(len(images), **({"batch_size": 5, "seed": 3} | options))
    loader = DataLoader(images, batch_sampler=sampler, collate_fn=collate, num_workers=workers)
    return list(itertools.islice(loader, count))


def assert_same(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a["pixels"], b["pixels"])
        assert torch.equal(a["index"], b["index"])
        assert a["skipped"] == b["skipped"]


def test_batches_are_the_same_with_and_without_workers(folder):
    images = BootstrapImages(open_images(str(folder)), TRANSFORM, seed=3)
    alone = batches(images, 7)
    assert alone[0]["pixels"].shape == (5, 16, 16, 3)
    assert_same(alone, batches(images, 7, workers=2))
    assert_same(alone, batches(pickle.loads(pickle.dumps(images)), 7))


def test_resuming_at_a_step_gives_the_batches_that_were_missing(folder):
    images = BootstrapImages(open_images(str(folder)), TRANSFORM, seed=3)
    whole = batches(images, 7)
    for step in (1, 2, 5):
        assert_same(whole[step:], batches(images, 7 - step, start_step=step))
        assert_same(whole[step:], batches(images, 7 - step, workers=2, start_step=step))


def test_unreadable_pictures_are_replaced_by_the_next_and_named(folder):
    images = BootstrapImages(open_images(str(folder)), TRANSFORM, seed=0)
    items = [images[0, index] for index in range(12)]
    assert [item["index"] for item in items] == [0, 1, 2, 5, 5, 5, 6, 7, 8, 9, 11, 11]
    assert [len(item["skipped"]) for item in items] == [0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 1, 0]
    assert items[3]["skipped"] == ["03.png: not an image in a known format", "04.jpg: empty file"]
    assert items[10]["skipped"][0].startswith("10.png: ")
    assert collate(items)["skipped"] == [*items[3]["skipped"], *items[4]["skipped"], *items[10]["skipped"]]


def test_views_differ_between_epochs_indices_and_seeds():
    images = BootstrapImages(Shades(4), TRANSFORM, seed=0)
    images.transform = lambda _, generator: torch.rand(8, generator=generator)
    other = BootstrapImages(Shades(4), TRANSFORM, seed=1)
    other.transform = images.transform
    views = [images[epoch, index]["pixels"] for epoch in range(3) for index in range(4)]
    views += [other[0, index]["pixels"] for index in range(4)]
    assert len({tuple(view.tolist()) for view in views}) == 16
    assert torch.equal(images[2, 3]["pixels"], views[11])


def test_the_next_readable_picture_of_the_last_is_the_first():
    images = BootstrapImages(Shades(5, frozenset({4})), TRANSFORM, seed=0)
    assert images[0, 4]["index"] == 0


def test_nothing_readable_is_an_error_at_once():
    with pytest.raises(ValueError, match=r"3 pictures in a row cannot be read \(of 3\): shade 0: torn; "):
        BootstrapImages(Shades(3, frozenset(range(3))), TRANSFORM, seed=0)
    images = BootstrapImages(Shades(1000, frozenset(range(1, 900))), TRANSFORM, seed=0)
    with pytest.raises(ValueError, match=rf"{MAX_SKIPPED} pictures in a row.*shade 3: torn \.\.\."):
        images[0, 1]


def test_every_picture_comes_once_an_epoch_in_another_order_each_time():
    sampler = BootstrapSampler(12, batch_size=4, seed=0)
    assert sampler.steps_per_epoch == 3
    epochs = [[pair for step in range(3 * e, 3 * e + 3) for pair in sampler.batch(step)] for e in range(3)]
    for number, pairs in enumerate(epochs):
        assert {epoch for epoch, _ in pairs} == {number}
        assert sorted(index for _, index in pairs) == list(range(12))
    assert len({tuple(index for _, index in pairs) for pairs in epochs}) == 3
    assert BootstrapSampler(12, batch_size=4, seed=1).batch(0) != sampler.batch(0)


def test_the_rest_of_an_epoch_is_dropped_and_differs_between_epochs():
    sampler = BootstrapSampler(10, batch_size=4, seed=0)
    assert sampler.steps_per_epoch == 2
    rests = []
    for epoch in range(4):
        pairs = sampler.batch(2 * epoch) + sampler.batch(2 * epoch + 1)
        assert {e for e, _ in pairs} == {epoch}
        rests.append(frozenset(range(10)) - {index for _, index in pairs})
        assert len(rests[-1]) == 2
    assert len(set(rests)) > 1


def test_a_set_smaller_than_the_batch_fills_it_from_several_epochs():
    sampler = BootstrapSampler(3, batch_size=7, seed=0)
    assert sampler.steps_per_epoch == 1
    pairs = [pair for step in range(3) for pair in sampler.batch(step)]
    assert [epoch for epoch, _ in pairs] == [position // 3 for position in range(21)]
    for epoch in range(7):
        assert sorted(index for e, index in pairs if e == epoch) == [0, 1, 2]


@pytest.mark.parametrize("num_images", [3, 10, 17, 100])
@pytest.mark.parametrize("world_size", [2, 4])
def test_many_processes_see_together_what_one_with_their_batches_sees(num_images, world_size):
    one = BootstrapSampler(num_images, batch_size=2 * world_size, seed=5)
    many = [BootstrapSampler(num_images, 2, 5, rank, world_size) for rank in range(world_size)]
    assert {sampler.steps_per_epoch for sampler in many} == {one.steps_per_epoch}
    for step in range(12):
        assert [pair for sampler in many for pair in sampler.batch(step)] == one.batch(step)


def test_a_sampler_starts_anywhere_without_walking_there():
    far = BootstrapSampler(1000, batch_size=8, seed=0, start_step=10**9)
    assert next(iter(far)) == BootstrapSampler(1000, batch_size=8, seed=0).batch(10**9)


def test_impossible_samplers_are_errors():
    with pytest.raises(ValueError, match="at least 1"):
        BootstrapSampler(0, 4, 0)
    with pytest.raises(ValueError, match=r"rank must be in 0 \.\. 1, got 2"):
        BootstrapSampler(4, 4, 0, rank=2, world_size=2)
