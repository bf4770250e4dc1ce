"""Retrieval of teacher and student: equal to plain embeddings, cached by content, equal over processes."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sf_llava.measure import embeddings as embeddings_module
from sf_llava.measure.embeddings import embed_images, embed_texts
from sf_llava.measure.encoders import student_candidate, teacher_candidate
from sf_llava.measure.store import EmbeddingStore, fingerprint
from sf_llava.retrieval.captions import open_captions
from sf_llava.retrieval.run import evaluate_retrieval

SCRIPT = Path(__file__).resolve().parents[2] / "eval" / "retrieval.py"
WORDS = ("a", "photo", "of", "the", "cat", "dog", "red", "ship")


@pytest.fixture(scope="module")
def captions_file(tmp_path_factory) -> Path:
    """Twenty pictures with two to four captions each, in COCO's format."""
    directory = tmp_path_factory.mktemp("coco")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(20):
        Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(directory / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png"})
        for _ in range(2 + index % 3):
            caption = " ".join(rng.choice(WORDS, 6))
            annotations.append({"id": len(annotations), "image_id": index, "caption": caption})
    path = directory / "captions_toy.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


@pytest.fixture
def encoders(clip_teacher, student):
    return [teacher_candidate(clip_teacher), student_candidate(student, clip_teacher)]


def test_scores_are_those_of_plain_embeddings(captions_file, clip_teacher, encoders, tmp_path):
    data = open_captions(str(captions_file))
    result = evaluate_retrieval(data, clip_teacher, encoders, EmbeddingStore(tmp_path), batch_size=7).to_dict()
    texts = F.normalize(clip_teacher.encode_text(data.captions), dim=-1)
    image_of = torch.tensor(data.image_of)
    for encoder, values in zip(encoders, result["encoders"], strict=True):
        pixels = torch.stack([encoder.preprocessing(data.source.load(i)) for i in range(20)])
        with torch.no_grad():
            images = F.normalize(encoder(pixels)[0], dim=-1)
        scores = images @ texts.T
        first = image_of[scores.argmax(dim=1)] == torch.arange(20)
        assert values["image_to_text"]["recall@1"] == pytest.approx(first.double().mean().item())
        top = scores.T.topk(5).indices == image_of[:, None]
        assert values["text_to_image"]["recall@5"] == pytest.approx(top.any(dim=1).double().mean().item())
        for direction in ("image_to_text", "text_to_image"):
            low, high = values[direction]["recall@10_interval"]
            assert 0 <= low <= values[direction]["recall@10"] <= high <= 1
    assert result["comparisons"][0]["image_to_text"]["recall@1_difference_interval"][0] <= 0.5


def test_a_second_run_computes_nothing(captions_file, clip_teacher, encoders, tmp_path, monkeypatch):
    data = open_captions(str(captions_file))
    first = evaluate_retrieval(data, clip_teacher, encoders, EmbeddingStore(tmp_path))
    monkeypatch.setattr(embeddings_module, "EncodingPass", None)
    monkeypatch.setattr(type(clip_teacher), "encode_text", None)
    second = evaluate_retrieval(data, clip_teacher, encoders, EmbeddingStore(tmp_path))
    for one, other in zip(first.recalls, second.recalls, strict=True):
        assert all(torch.equal(one.ranks[key], other.ranks[key]) for key in one.ranks)
    assert [recall.images_per_second for recall in second.recalls] == [None, None]
    assert second.reading is None and "cached" in second.table()[1][0]


def test_another_picture_or_weight_is_another_entry(captions_file, encoders, tmp_path):
    data = open_captions(str(captions_file))
    store = EmbeddingStore(tmp_path / "cache")
    before = embed_images(encoders[1:], data.source, store)
    picture = captions_file.parent / "3.png"
    original = picture.read_bytes()
    try:
        Image.new("RGB", (70, 90), (200, 10, 10)).save(picture)
        changed = embed_images(encoders[1:], data.source, store)
    finally:
        picture.write_bytes(original)
    assert changed.images_per_second[0] is not None
    differ = (before.embeds[0] != changed.embeds[0]).any(dim=1)
    assert differ.nonzero().flatten().tolist() == [3]
    assert embed_images(encoders[1:], data.source, store).images_per_second == [None]
    fingerprints = {fingerprint(encoder.module) for encoder in encoders}
    with torch.no_grad():
        encoders[1].module.cls_token[0] += 1e-6
    fingerprints.add(fingerprint(encoders[1].module))
    with torch.no_grad():
        encoders[1].module.cls_token[0] -= 1e-6
    assert len(fingerprints) == 3


def test_a_new_student_leaves_the_teacher_in_the_cache(captions_file, encoders, tmp_path):
    data, store = open_captions(str(captions_file)), EmbeddingStore(tmp_path)
    embed_images(encoders[:1], data.source, store)
    speeds = embed_images(encoders, data.source, store).images_per_second
    assert speeds[0] is None and speeds[1] > 0


def test_unreadable_pictures_go_with_their_captions(captions_file, clip_teacher, encoders, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(captions_file.parent, folder)
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:100])
    data = open_captions(str(folder / captions_file.name))
    result = evaluate_retrieval(data, clip_teacher, encoders, EmbeddingStore(tmp_path / "cache"), batch_size=4)
    assert len(result.data) == 19 and len(result.data.captions) == len(data.captions) - data.image_of.count(4)
    assert len(result.corrupt) == 1 and "4.png" in result.corrupt[0]
    again = evaluate_retrieval(data, clip_teacher, encoders, EmbeddingStore(tmp_path / "cache"))
    assert again.to_dict()["corrupt"] == result.corrupt
    for index in range(20):
        (folder / f"{index}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 20 images can be read"):
        evaluate_retrieval(data, clip_teacher, encoders, EmbeddingStore(tmp_path / "cache"))


def test_texts_are_kept_too(clip_teacher, tmp_path):
    texts = ["a photo of the cat", "the dog"]
    first = embed_texts(clip_teacher, texts, EmbeddingStore(tmp_path))
    assert torch.equal(first, embed_texts(clip_teacher, texts, EmbeddingStore(tmp_path)))
    assert len(list(tmp_path.iterdir())) == 1
    embed_texts(clip_teacher, texts[::-1], EmbeddingStore(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


def test_the_script_prints_teacher_beside_student_and_writes_json(
    captions_file, clip_dir, student, tmp_path, monkeypatch, capsys
):
    student.save_pretrained(tmp_path / "student")
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(SCRIPT))["main"]
    flags = ["--teacher", str(clip_dir), "--data", str(captions_file), "--device", "cpu"]
    main([*flags, "--encoder", "student"])
    printed = capsys.readouterr().out
    assert "I2T R@1" in printed and "\nteacher" in printed and "\nstudent" in printed
    values = json.loads((tmp_path / "runs" / "retrieval" / "results.json").read_text())
    assert values["num_images"] == 20 and [entry["name"] for entry in values["encoders"]] == ["teacher", "student"]
    drawn = []
    for seed in ("0", "0", "1"):
        main([*flags, "--limit", "5", "--seed", seed])
        assert "5 images" in capsys.readouterr().out
        values = json.loads((tmp_path / "runs" / "retrieval" / "results.json").read_text())
        drawn.append({key: value for key, value in values["encoders"][0].items() if "to" in key or "@" in key})
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.slow
def test_two_processes_give_identical_numbers(captions_file, clip_dir, student, tmp_path):
    student.save_pretrained(tmp_path / "student")
    results = []
    for processes in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        output, cache = tmp_path / f"out{processes}", tmp_path / f"cache{processes}"
        command += [str(SCRIPT), "--teacher", str(clip_dir), "--encoder", str(tmp_path / "student")]
        command += ["--batch-size", "3"]
        command += ["--data", str(captions_file), "--device", "cpu", "--output", str(output), "--cache", str(cache)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        values = json.loads((output / "results.json").read_text())
        assert values["environment"]["processes"] == processes
        assert done.stdout.count("I2T R@5") == 1
        scores = [entry | {"images_per_second": None} for entry in values["encoders"]]
        results.append((scores, {path.name: path.read_bytes() for path in cache.iterdir()}))
    assert results[0] == results[1]  # the scores, and every kept embedding to the last bit
