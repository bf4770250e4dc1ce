"""Alignment of tokens: losses against loops in float64, runs that learn, resume and stay as they were without it."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import run_settings, save_world

from sf_llava.bootstrap.align import parse_alignment
from sf_llava.bootstrap.config import BootstrapConfig
from sf_llava.bootstrap.objectives.statistics import FILE, RIDGE, TokenStatistics, measure_tokens, place_directions
from sf_llava.bootstrap.objectives.tokens import (
    NUM_QUERIES,
    draw_queries,
    position_loss,
    readout_loss,
    set_loss,
)
from sf_llava.bootstrap.run import bootstrap
from sf_llava.data import open_images
from sf_llava.data.bootstrap_images import BootstrapImages
from sf_llava.data.sampler import generator_of
from sf_llava.data.transforms import BootstrapTransform
from sf_llava.mini import MINI_CLIP_DIR
from sf_llava.model import SparseFormerModel
from sf_llava.teachers import load_teacher
from sf_llava.teachers.base import Teacher
from sf_llava.weights.digests import write_digests


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A directory with a tiny CLIP and sixty pictures."""
    return save_world(tmp_path_factory.mktemp("world"), 60)


def settings(world: Path, output: Path, **changes) -> dict:
    return run_settings(world, output, steps=8, warmup_steps=2, eval_every=8) | changes


def read_log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(values: list[float]) -> list[float]:
    weights = [math.exp(value - max(values)) for value in values]
    return [weight / sum(weights) for weight in weights]


def test_the_set_loss_is_what_its_formula_says():
    student, teacher = tokens(3, 4, 6), 0.5 * tokens(3, 7, 6, seed=1)
    expected = 0.0
    for a, b in zip(student.tolist(), teacher.tolist(), strict=True):
        distances = [[sum((x - y) ** 2 for x, y in zip(i, j, strict=True)) / 6 for j in b] for i in a]
        mean = [sum(channel) / 7 for channel in zip(*b, strict=True)]
        norms = [math.dist(j, mean) for j in b]
        for row in distances:
            weights = softmax([-value / 0.1 for value in row])
            expected += sum(w * value for w, value in zip(weights, row, strict=True)) / 4
        for norm, column in zip(norms, zip(*distances, strict=True), strict=True):
            weights = softmax([-value / 0.1 for value in column])
            expected += norm / sum(norms) * sum(w * value for w, value in zip(weights, column, strict=True))
    assert set_loss(student, teacher).item() == pytest.approx(expected / 2 / 3, rel=1e-9)


def test_the_readout_loss_is_what_its_formula_says():
    student, teacher, queries = tokens(2, 3, 5), tokens(2, 6, 5, seed=1), tokens(2, 4, 5, seed=2)

    def read(query, rows):
        scores = [sum(x * y for x, y in zip(query, row, strict=True)) / (2 * math.sqrt(5)) for row in rows]
        weights = softmax(scores)
        return [sum(w * row[channel] for w, row in zip(weights, rows, strict=True)) for channel in range(5)]

    squares = [
        (x - y) ** 2
        for image in range(2)
        for query in queries[image].tolist()
        for x, y in zip(read(query, student[image].tolist()), read(query, teacher[image].tolist()), strict=True)
    ]
    expected = 2 * sum(squares) / len(squares)
    assert readout_loss(student, teacher, queries).item() == pytest.approx(expected, rel=1e-9)


def place_statistics(num_places: int, width: int, num_directions: int) -> TokenStatistics:
    return TokenStatistics(
        mean=torch.zeros(width),
        std=torch.ones(width),
        places=tokens(num_places, width, seed=3),
        directions=tokens(width, num_directions, seed=4),
        told=torch.tensor(1.0),
    )


def test_the_position_loss_is_what_its_formula_says():
    student, teacher, statistics = tokens(2, 3, 5), tokens(2, 6, 5, seed=1), place_statistics(6, 5, 4)

    def read(place, rows):
        codes = [
            [sum((x - p) * w for x, p, w in zip(row, place, direction, strict=True)) for direction in directions]
            for row in rows
        ]
        weights = softmax([-sum(value**2 for value in code) / 2 for code in codes])
        return [sum(w * row[channel] for w, row in zip(weights, rows, strict=True)) for channel in range(5)]

    directions, expected = statistics.directions.T.tolist(), 0.0
    for a, b in zip(student.tolist(), teacher.tolist(), strict=True):
        mean = [sum(channel) / 6 for channel in zip(*b, strict=True)]
        norms = [math.dist(token, mean) for token in b]
        for norm, place in zip(norms, statistics.places.tolist(), strict=True):
            squares = [(x - y) ** 2 for x, y in zip(read(place, a), read(place, b), strict=True)]
            expected += norm / sum(norms) * sum(squares) / 5 / 2
    assert position_loss(student, teacher, statistics).item() == pytest.approx(expected, rel=1e-9)


def test_place_directions_separate_places_and_are_measured_in_deviations_of_one_place():
    between = torch.diag(torch.tensor([4.0, 0.0, 1.0], dtype=torch.float64))
    within = torch.diag(torch.tensor([100.0, 1.0, 0.01], dtype=torch.float64)) - RIDGE * torch.eye(3)
    found = place_directions(between, within.double())
    ratios = (found.T @ between @ found).diagonal()  # of the places' variance to that of tokens of one place
    torch.testing.assert_close(ratios, torch.tensor([0.0, 0.04, 50.0], dtype=torch.float64), atol=1e-9, rtol=1e-9)
    spread = found.T @ (within.double() + RIDGE * torch.eye(3)) @ found
    assert spread[1, 1].item() == pytest.approx(1) and found[:, 2].abs().argmax() == 2


def test_a_teacher_whose_tokens_carry_no_place_is_refused(world):
    teacher = load_teacher(str(world / "clip"))
    images = BootstrapImages(open_images(f"folder:{world / 'images'}"), BootstrapTransform(teacher.preprocessing), 0)
    statistics = measure_tokens(teacher, images, -2)
    statistics.require_places()
    assert statistics.told > 0.5 and statistics.places.shape == (teacher.num_patches, 32)
    with pytest.raises(ValueError, match=r"tell 7.0% of their \d+ places .by chance \d.*align with set and readout"):
        replace(statistics, told=torch.tensor(0.07)).require_places()


def test_all_losses_vanish_when_the_student_has_the_teachers_tokens_in_another_order():
    teacher = 4 * tokens(2, 9, 16)  # far apart
    student = teacher[:, torch.randperm(9, generator=torch.Generator().manual_seed(0))]
    assert set_loss(student, teacher) < 1e-6
    assert readout_loss(student, teacher, draw_queries(teacher, generator_of(0))) < 1e-20
    assert position_loss(student, teacher, place_statistics(9, 16, 4)) < 1e-20


def test_gradients_of_the_losses_leave_the_soft_matches_alone():
    student, teacher = tokens(1, 2, 4).requires_grad_(), tokens(1, 3, 4, seed=1)
    distances = ((student.detach()[0, :, None] - teacher[0]) ** 2).mean(dim=-1)
    saliency = (teacher[0] - teacher[0].mean(dim=0)).norm(dim=-1)
    weights = (-distances / 0.1).softmax(dim=1) / 2 + (-distances / 0.1).softmax(dim=0) * saliency / saliency.sum()
    expected = (weights[..., None] * (student.detach()[0, :, None] - teacher[0]) * 2 / 4 / 2).sum(dim=1)
    set_loss(student, teacher).backward()
    torch.testing.assert_close(student.grad[0], expected)


def test_queries_are_tokens_of_other_images_and_a_function_of_the_key():
    marked = torch.arange(5.0)[:, None, None].expand(5, 7, 3)
    queries = draw_queries(marked, generator_of(1, 2))
    assert queries.shape == (5, NUM_QUERIES, 3)
    assert all(image not in queries[image] and len(queries[image].unique()) > 1 for image in range(5))
    assert torch.equal(queries, draw_queries(marked, generator_of(1, 2)))
    assert not torch.equal(queries, draw_queries(marked, generator_of(1, 3)))
    with pytest.raises(ValueError, match="`micro_batch_size`"):
        draw_queries(marked[:1], generator_of(0))


def test_tokens_are_standardised_by_the_teachers_own_statistics(world):
    teacher = load_teacher(str(world / "clip"))
    images = BootstrapImages(open_images(f"folder:{world / 'images'}"), BootstrapTransform(teacher.preprocessing), 0)
    pixels = images.pixel_values(range(60))
    patches = teacher.tokens(pixels, -2)[:, 1:]
    standard = measure_tokens(teacher, images, -2).standardise(patches).flatten(0, 1)
    torch.testing.assert_close(standard.mean(dim=0), torch.zeros(32), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.std(dim=0, correction=0), torch.ones(32), atol=1e-4, rtol=0)


def test_one_pass_of_the_teacher_gives_embeddings_and_tokens(world):
    teacher, pixels = load_teacher(str(world / "clip")), tokens(2, 3, 32, 32).float()
    for layer in (-2, -1, 0, 1):
        embeds, hidden = teacher.embeds_and_tokens(pixels, layer)
        assert torch.equal(embeds, teacher(pixels)) and torch.equal(hidden, teacher.tokens(pixels, layer))


def test_a_run_in_the_mini_world_lowers_all_losses(tmp_path, monkeypatch):
    monkeypatch.setattr("sf_llava.bootstrap.run.measure_zero_shot", lambda *arguments: None)  # on 2,560 pictures
    changes = dict(teacher=str(MINI_CLIP_DIR), data="mini", steps=30, warmup_steps=0, batch_size=16, lr=2e-3)
    bootstrap(BootstrapConfig.of(**settings(Path(), tmp_path, align="set+readout+position", **changes)))
    lines = [line for line in read_log(tmp_path) if "set" in line]
    for name in ("set", "readout", "position"):
        assert lines[-1][name] < 0.8 * lines[0][name]
    first = lines[0]
    tokens = 0.3 * first["set"] + first["readout"] + first["position"]
    assert first["loss"] == pytest.approx(1 - first["cosine"] + tokens, abs=1e-4)
    card = (tmp_path / "encoder" / "README.md").read_text()
    assert "| alignment of tokens | `set=0.3+readout=1+position=1` on hidden states -2 |" in card


def test_none_is_the_run_without_alignment_and_asks_for_no_tokens(world, tmp_path, monkeypatch):
    asked = []
    forward = SparseFormerModel.forward
    monkeypatch.setattr(
        SparseFormerModel,
        "forward",
        lambda self, *rest, **named: asked.append(named.get("output_hidden_states")) or forward(self, *rest, **named),
    )
    monkeypatch.setattr(Teacher, "embeds_and_tokens", None)
    bootstrap(BootstrapConfig.of(**settings(world, tmp_path / "plain")))
    bootstrap(BootstrapConfig.of(**settings(world, tmp_path / "none", align="none")))
    assert all(wanted is None or wanted is True for wanted in asked)  # True: counting multiply-adds
    for name in ("log.jsonl", "encoder/model.safetensors"):
        assert (tmp_path / "none" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert read_log(tmp_path / "none")[0].keys() == {"step", "loss", "cosine", "lr"}


def test_an_aligned_run_resumes_to_the_bit_with_the_statistics_of_its_checkpoint(world, tmp_path):
    common = dict(align="readout+set=0.5+position", keep_checkpoints=9)
    bootstrap(BootstrapConfig.of(**settings(world, tmp_path / "whole", **common)))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for path in sorted((tmp_path / "cut" / "checkpoints").iterdir())[2:]:
        shutil.rmtree(path)
    (tmp_path / "cut" / "results.json").unlink()
    shutil.copytree(tmp_path / "cut", tmp_path / "other")
    bootstrap(BootstrapConfig.of(**settings(world, tmp_path / "cut", resume=True, **common)))
    for name in ("log.jsonl", "encoder/model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    statistics = tmp_path / "other" / "checkpoints" / "step-0000004" / FILE
    save_file({name: 2 * value for name, value in load_file(statistics).items()}, statistics)
    write_digests(statistics.parent)
    bootstrap(BootstrapConfig.of(**settings(world, tmp_path / "other", resume=True, **common)))
    assert read_log(tmp_path / "other")[-2]["set"] != read_log(tmp_path / "whole")[-2]["set"]


def test_a_bootstrapped_student_is_aligned_after_on_the_same_stage(world, tmp_path):
    bootstrap(BootstrapConfig.of(**settings(world, tmp_path / "first", steps=30)))
    changes = dict(init_from=str(tmp_path / "first"), align="set+readout", warmup_steps=0, micro_batch_size=4)
    bootstrap(BootstrapConfig.of(**settings(world, tmp_path / "second", **changes)))
    start, end = (read_log(tmp_path / "second")[place] for place in (0, -2))
    assert start["cosine"] > read_log(tmp_path / "first")[0]["cosine"] + 0.1
    assert end["set"] < start["set"] and end["readout"] < start["readout"]


def test_alignments_are_written_out():
    assert parse_alignment("readout + set=0.5") == {"set": 0.5, "readout": 1.0}
    assert parse_alignment("none") == {}
    weights = {"readout": 1, "set": 0.1234567}
    config = BootstrapConfig.of(align=weights)
    assert config.objective.align == weights and list(config.objective.align) == ["set", "readout"]
    assert config.but(seed=1).objective == config.objective  # no digit is lost on the way
    for wrong, sentence in ((dict(kv=1.0), "'kv' is unknown"), (dict(set=-1.0), "weight of set must be a positive")):
        with pytest.raises(ValueError, match=sentence):
            BootstrapConfig.of(align=wrong)
    config = SimpleNamespace(**BootstrapConfig.of(align="readout+set").to_dict())
    assert (config.align, config.align_layer) == ("set=0.3+readout=1", -2)
    config = SimpleNamespace(**BootstrapConfig.of(align="placed+llm=2").to_dict())
    assert (config.align, config.llava, config.llm_batch_size) == ("llm=2+placed=4", "mini", 32)
    assert config.questions == "mini-described:80000"
    config = SimpleNamespace(**BootstrapConfig.of(align="none").to_dict())
    assert (config.align, config.align_layer, config.llava) == (None, None, None)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(align="set+kv"), "`align` set.kv: 'kv' is unknown; expected none, or a sum"),
        (dict(align="none+set"), "'none' is unknown"),
        (dict(align="set+set=1"), "'set' is there twice"),
        (dict(align="set=-1"), "weight of set must be a positive number, not '-1'"),
        (dict(align="set=much"), "weight of set must be a positive number, not 'much'"),
        (dict(align="set", align_layer=2), "`align_layer` must count from the end"),
        (dict(align="set", align_layer=-4), "the student's cortex has 2 blocks"),
        (dict(align_layer=-1), "`align_layer` has no use without `align`$"),
        (dict(align="set", llava="x"), "`llava` has no use without `align` llm"),
        (dict(align="llm"), "`align` llm or placed needs `llava`"),
        (dict(align="readout", micro_batch_size=1), "`micro_batch_size` to 2 or more"),
    ],
)
def test_bad_input_is_one_sentence(world, tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        bootstrap(BootstrapConfig.of(**settings(world, tmp_path / "run", **changes)))
