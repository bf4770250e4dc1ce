"""A student that reads whole pictures, from a teacher that reads them in tiles."""

import json
from pathlib import Path

import pytest
import torch
from tiny import run_settings, save_images, save_world

from sf_llava.bootstrap.config import BootstrapConfig
from sf_llava.bootstrap.inherit import check_head
from sf_llava.bootstrap.objectives.objective import Seen
from sf_llava.bootstrap.objectives.statistics import measure_tokens
from sf_llava.bootstrap.objectives.tokens import TokenObjective
from sf_llava.bootstrap.run import bootstrap
from sf_llava.data import open_images
from sf_llava.data.bootstrap_images import BootstrapImages
from sf_llava.data.transforms import BootstrapTransform
from sf_llava.mini import MINI_STUDENT_DIR
from sf_llava.model import SparseFormerModel
from sf_llava.model.loading import load_encoder
from sf_llava.model.rois import initial_rois
from sf_llava.teachers import load_teacher
from sf_llava.teachers.tiled import TiledTeacher, by_tile

G, SIDE = 2, 32  # tiles a side, and pixels of each


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    path = save_world(tmp_path_factory.mktemp("world"), 20)
    save_images(path / "large", 20, size=2 * SIDE)
    return path


def test_its_tokens_are_those_of_the_tiles_at_their_places_and_its_embedding_that_of_the_whole(world):
    teacher = load_teacher(str(world / "clip"))
    tiled = TiledTeacher(teacher, G)
    assert (tiled.image_size, tiled.num_patches, tiled.num_tokens) == (64, 64, 65)
    assert tiled.num_parameters() == teacher.num_parameters()
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for layer in (-1, -2):
        tokens = tiled.cls_and_tokens(pixels, layer)[1]
        assert torch.equal(tokens, tiled.tokens(pixels, layer)) and tokens.shape == (3, 65, 32)
        for y in range(8):
            for x in range(8):
                tile = pixels[:, :, y // 4 * 32 : y // 4 * 32 + 32, x // 4 * 32 : x // 4 * 32 + 32]
                own = teacher.tokens(tile, layer)[:, 1 + y % 4 * 4 + x % 4]
                torch.testing.assert_close(tokens[:, 1 + 8 * y + x], own, atol=1e-5, rtol=1e-5)
        small = torch.nn.functional.interpolate(pixels, (32, 32), mode="bicubic", antialias=True)
        torch.testing.assert_close(tokens[:, 0], teacher.tokens(small, layer)[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tiled(pixels), teacher(small), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"takes \(B, \(3, 64, 64\)\) pixels"):
        tiled(small)


def test_each_tile_is_compared_with_its_own_latents(world):
    teacher = TiledTeacher(load_teacher(str(world / "clip")), G)
    transform = BootstrapTransform(teacher.preprocessing, flip=0.0, scale=None)
    images = BootstrapImages(open_images(f"folder:{world / 'large'}"), transform, 0)
    statistics = measure_tokens(teacher, images, -2)
    pixels = images.pixel_values(range(20))
    tiles = torch.cat([teacher.teacher.tokens(pixels[:, :, y : y + 32, x : x + 32], -2)[:, 1:]
                       for y in (0, 32) for x in (0, 32)])  # fmt: skip
    torch.testing.assert_close(statistics.mean, tiles.mean(dim=(0, 1)), atol=1e-4, rtol=1e-4)
    places = (tiles.mean(dim=0) - statistics.mean) / statistics.std
    torch.testing.assert_close(statistics.places, places, atol=1e-3, rtol=1e-3)

    weights = {"set": 1.0, "position": 1.0}
    latents = torch.randn(2, 1 + 12, 32, generator=torch.Generator().manual_seed(1))
    tokens, embeds = teacher.tokens(pixels[:2], -2), torch.zeros(2, 16)
    terms = TokenObjective(weights, statistics, G)(Seen(embeds, latents), Seen(embeds, tokens), torch.arange(2), None)
    alone, patches = TokenObjective(weights, statistics), by_tile(tokens[:, 1:], G).unflatten(0, (2, 4))
    for name in weights:
        of_tiles = []
        for tile in range(4):
            student = Seen(embeds, latents[:, 1 + 3 * tile : 4 + 3 * tile], has_cls=False)
            of_tiles.append(alone(student, Seen(embeds, patches[:, tile], has_cls=False), torch.arange(2), None)[name])
        torch.testing.assert_close(terms[name], torch.stack(of_tiles).mean(), atol=1e-5, rtol=1e-5)


def run(world: Path, output: Path, **changes) -> SparseFormerModel:
    settings = dict(steps=2, warmup_steps=0, eval_every=2, trackers="none", align="set+readout", flip=0.0)
    settings |= dict(data=f"folder:{world / 'large'}", crop_scale_min=1.0)
    bootstrap(BootstrapConfig.of(**run_settings(world, output, **settings | changes)))
    return SparseFormerModel.from_pretrained(output / "encoder")


def test_a_student_of_tiles_goes_on_as_one_of_whole_pictures(world, tmp_path):
    first = run(world, tmp_path / "first", num_latents=3)
    assert first.config.teacher_tiles == 1 and first.config.image_size == 32
    changes = dict(stage="continue", init_from=str(tmp_path / "first"), tiles=G, image_size=64)
    start = run(world, tmp_path / "start", num_latents=12, lr=1e-12, **changes)
    assert (start.config.teacher_tiles, start.config.num_latents, start.config.image_size) == (2, 12, 64)
    own = first.focusing.initial_rois
    for tile, (x, y) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        on_tile = (own + torch.tensor([x, y, x, y])) / 2
        torch.testing.assert_close(start.focusing.initial_rois[3 * tile : 3 * tile + 3], on_tile, atol=1e-6, rtol=0)
    fewer = run(world, tmp_path / "fewer", num_latents=8, lr=1e-12, **changes)
    torch.testing.assert_close(fewer.focusing.initial_rois[:2], initial_rois(2) / 2, atol=1e-6, rtol=0)
    again = run(world, tmp_path / "again", **changes | dict(init_from=str(tmp_path / "start"), lr=1e-12))
    torch.testing.assert_close(again.focusing.initial_rois, start.focusing.initial_rois, atol=1e-6, rtol=0)
    teacher, student = json.loads((tmp_path / "start" / "results.json").read_text())["encoders"]
    assert (teacher["tokens"], teacher["image_size"], student["tokens"]) == (64, 64, 12)


def test_a_student_from_nothing_takes_the_size_of_all_tiles(world, tmp_path):
    encoder = run(world, tmp_path / "run", tiles=G, steps=1)
    assert (encoder.config.image_size, encoder.config.num_latents, encoder.config.teacher_tiles) == (64, 16, 2)


def test_the_student_that_ships_is_known_as_its_teachers_though_it_is_rounded():
    student, teacher = load_encoder(MINI_STUDENT_DIR), load_teacher("mini")
    check_head(student, teacher)
    with torch.no_grad():
        student.norm.weight.mul_(1.1)
    with pytest.raises(ValueError, match=r"the student's norm.weight is not that of mini"):
        check_head(student, teacher)


@pytest.mark.parametrize("changes", [dict(num_latents=6), dict(num_latents=8, elastic="4-8")])
def test_latents_that_make_no_equal_parts_are_one_sentence(world, tmp_path, changes):
    with pytest.raises(ValueError, match=r"`tiles` 2 of a student with \d latents: expected a multiple of 4, as many"):
        run(world, tmp_path, tiles=G, **changes)
