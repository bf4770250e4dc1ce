"""``python eval/zero_shot.py``: the table and the JSON file, and one sentence for what cannot work."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor

from sf_llava.bootstrap.inherit import inherit, student_config
from sf_llava.commands.zero_shot import main as zero_shot
from sf_llava.data import CorruptImageError, open_labelled
from sf_llava.mini import MINI_CLIP_DIR
from sf_llava.model import SparseFormerModel
from sf_llava.model.v1 import SparseFormerV1Config, SparseFormerV1Model
from sf_llava.teachers import load_teacher
from sf_llava.teachers.timm_classifier import build_classifier, save_classifier

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "eval" / "zero_shot.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_help_is_fast(tmp_path):
    started = time.perf_counter()
    answer = run("--help", cwd=tmp_path)
    assert answer.returncode == 0 and "--encoder" in answer.stdout
    assert time.perf_counter() - started < 2


def test_teacher_and_student_stand_in_one_table(clip_dir, student, folder, tmp_path):
    run_directory = tmp_path / "run"
    student.save_pretrained(run_directory / "encoder")
    (run_directory / "config.json").write_text(json.dumps({"teacher": str(clip_dir)}))
    answer = run("--encoder", run_directory, "--data", f"folder:{folder}", "--batch-size", 4, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "teacher " in answer.stdout and "student " in answer.stdout and "4 + CLS" in answer.stdout
    assert "1 unreadable images left out, the first: cat/06.png" in answer.stdout
    values = json.loads((tmp_path / "runs" / "zero_shot" / "results.json").read_text())
    assert values["num_images"] == 13 and values["settings"]["teacher"] == str(clip_dir)
    assert {"device", "torch", "transformers"} <= values["environment"].keys()


def test_a_classifier_and_its_students_stand_in_one_table_with_costs(folder, tmp_path, monkeypatch, capsys):
    """The paper's Table 2 in small: more latents, more pixels, all through the teacher's own classifier."""
    torch.manual_seed(0)
    geometry = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    vit = build_classifier(3, geometry, {"mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0})
    save_classifier(vit, geometry, tmp_path / "vit")
    teacher = load_teacher(str(tmp_path / "vit"))
    for name, latents, pixels in (("a", 4, 32), ("b", 9, 48)):
        student = SparseFormerModel(student_config(teacher, num_latents=latents, image_size=pixels))
        inherit(student, teacher)
        student.save_pretrained(tmp_path / name / "encoder")
        (tmp_path / name / "config.json").write_text(json.dumps({"teacher": str(tmp_path / "vit")}))
    monkeypatch.chdir(tmp_path)
    zero_shot(["--encoder", "a", "b", "--data", f"folder:{folder}", "--device", "cpu", "--workers", "0"])
    printed = capsys.readouterr().out
    assert "9 + CLS" in printed and "the classifier's own" in printed and "mult-adds" in printed
    values = json.loads((tmp_path / "runs" / "zero_shot" / "results.json").read_text())
    encoders = values["encoders"]
    assert [encoder["name"] for encoder in encoders] == ["teacher", "a", "b"]
    assert [(e["num_tokens"], e["image_size"]) for e in encoders] == [(16, 32), (4, 32), (9, 48)]
    # a ViT's: patches, then a block of 17 tokens, 12 D^2 for its products and 2 T D for each token's attention
    tokens, width = 17, 32
    blocks = 3 * (12 * tokens * width**2 + 2 * tokens**2 * width)
    assert encoders[0]["multiply_adds"] == 16 * 3 * 64 * width + blocks  # scored without it: the classifier
    assert len(values["comparisons"]) == 2

    (tmp_path / "b" / "config.json").write_text(json.dumps({"teacher": "mini"}))
    with pytest.raises(ValueError, match="the encoders are of several teachers"):
        zero_shot(["--encoder", "a", "b", "--data", f"folder:{folder}", "--device", "cpu"])


def test_a_sparseformer_v1_is_scored_alone_by_its_own_classifier(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = open_labelled(f"folder:{folder}")
    torch.manual_seed(0)
    fields = dict(num_latents=4, hidden_size=128, focusing_size=64, num_hidden_layers=2, image_size=32)
    model = SparseFormerV1Model(SparseFormerV1Config(num_classes=len(images.class_names), **fields)).eval()
    model.save_pretrained("v1")
    zero_shot(["--encoder", "v1", "--data", f"folder:{folder}", "--batch-size", "4", "--dtype", "fp32"])
    assert "v1 on folder:" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "runs" / "zero_shot" / "results.json").read_text())["encoders"]
    right = count = 0
    processor = AutoImageProcessor.from_pretrained("v1")
    for index, label in enumerate(images.labels):
        try:
            pixel_values = processor(images.load(index), return_tensors="pt")["pixel_values"]
        except CorruptImageError:
            continue
        count += 1
        right += int(model(pixel_values).logits.argmax() == label)
    assert row["top1"] == right / count and row["num_tokens"] == 4
    with pytest.raises(
        ValueError, match="leave out other encoders, --teacher, --classes, --templates, --reduced, --latents"
    ):
        zero_shot(["--encoder", "v1", "--data", f"folder:{folder}", "--reduced", "tome:4"])
    with pytest.raises(ValueError, match="is scored alone"):
        zero_shot(["--encoder", "v1", "v1", "--data", f"folder:{folder}"])


@pytest.mark.slow
def test_two_processes_give_identical_numbers(clip_dir, student, folder, tmp_path):
    student.save_pretrained(tmp_path / "student")
    results = []
    for processes in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command += [str(ROOT / "eval" / "zero_shot.py"), "--teacher", str(clip_dir), "--data", f"folder:{folder}"]
        command += ["--encoder", str(tmp_path / "student"), "--batch-size", "3", "--device", "cpu"]
        command += ["--output", f"out{processes}", "--cache", f"cache{processes}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("retention") == 1
        values = json.loads((tmp_path / f"out{processes}" / "results.json").read_text())
        assert values["environment"]["processes"] == processes
        scores = [entry | {"images_per_second": None} for entry in values["encoders"]]
        kept = [path.read_bytes() for path in (tmp_path / f"cache{processes}").iterdir()]
        results.append((scores, *(values[key] for key in ("comparisons", "per_class", "num_images", "corrupt")), kept))
    assert results[0] == results[1]  # the scores, and the kept classifier to the last bit
    assert results[0][3] == 13 and len(results[0][4]) == 1


def test_a_teacher_alone_says_how_to_make_a_student(clip_dir, folder, tmp_path):
    answer = run("--teacher", clip_dir, "--data", folder, "--limit", 1, "--output", "out", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "the teacher alone: sf-llava bootstrap makes a student" in answer.stdout
    assert json.loads((tmp_path / "out" / "results.json").read_text())["comparisons"] == []


@pytest.mark.skipif(not (MINI_CLIP_DIR / "config.json").is_file(), reason="the mini teacher is not trained yet")
def test_without_flags_it_runs_on_the_drawn_world(tmp_path):
    answer = run("--limit", 128, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    values = json.loads((tmp_path / "runs" / "zero_shot" / "results.json").read_text())
    assert values["classes"] == "mini" and values["encoders"][0]["top1"] > 0.9


@pytest.fixture
def main(monkeypatch, tmp_path):
    """The script's ``main``, run in an empty directory."""
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("eval_zero_shot", ROOT / "eval" / "zero_shot.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher", "CLIP", "--data", "nowhere"], "unknown data set 'nowhere'"),
        (["--teacher", "nobody"], "unknown teacher 'nobody'"),
        (["--teacher", "CLIP", "--encoder", "nowhere"], "no encoder at nowhere"),
        (["--teacher", "CLIP", "--data", "FOLDER", "--classes", "imagenett"], "unknown classes 'imagenett'"),
        (["--teacher", "CLIP", "--data", "FOLDER", "--templates", "x.json"], "unknown templates 'x.json'"),
        (["--teacher", "CLIP", "--data", "FOLDER", "--classes", "cifar10"], "data set has 3 classes, cifar10 has 10"),
        (["--teacher", "CLIP", "--data", "FOLDER", "--device", "abacus"], "abacus"),
        (["--teacher", "CLIP", "--data", "FOLDER", "--output", "/dev/zero"], "/dev/zero is not a folder"),
        (["--teacher", "CLIP", "--data", "FOLDER", "--output", "/dev/null/a/b"], "cannot be written: /dev/null"),
    ],
)
def test_what_cannot_work_is_said_and_nothing_is_written(main, clip_dir, folder, tmp_path, arguments, message):
    places = {"CLIP": str(clip_dir), "FOLDER": str(folder)}
    with pytest.raises((ValueError, RuntimeError, OSError), match=message):
        main([places.get(argument, argument) for argument in arguments])
    assert not (tmp_path / "runs").exists()


def test_an_error_is_one_sentence_on_the_command_line(tmp_path):
    answer = run("--teacher", "nobody", cwd=tmp_path)
    assert answer.returncode == 2 and "Traceback" not in answer.stderr
    assert (
        answer.stderr.strip()
        .splitlines()[-1]
        .startswith("error: unknown teacher 'nobody'; expected mini, mini-siglip, open_clip:")
    )
