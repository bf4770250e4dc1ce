"""No code of any file runs, whatever kind of file it is: an executing pickle is planted where each is opened."""

import ast
import contextlib
import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sf_llava.configuration import preset
from sf_llava.data import open_images
from sf_llava.llava.loading import load_llava
from sf_llava.mini import MINI_CLIP_DIR, MINI_LLAVA_DIR
from sf_llava.model import SparseFormerModel
from sf_llava.model.loading import load_encoder
from sf_llava.model.official import load_official
from sf_llava.teachers import load_teacher

PACKAGE = Path(__file__).resolve().parents[2]


class Runs:
    """An object whose unpickling leaves a mark."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def official(place, save):
    save(place / "weights.pth")
    load_official(place / "weights.pth")


def teacher_file(name):
    def read(place, save):
        save(place / "weights.pt")
        load_teacher(f"{name}/{place / 'weights.pt'}")

    return read


def directory(source, read):
    def read_copy(place, save):
        copy = shutil.copytree(source, place / "model")
        (copy / "model.safetensors").unlink()
        save(copy / "pytorch_model.bin")
        read(copy)

    return read_copy


def open_clip_directory(place, save):
    (place / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 2, "vision_cfg": {}, "text_cfg": {}}}')
    save(place / "open_clip_pytorch_model.bin")
    load_teacher(f"open_clip:{place}")


def encoder(place, save):
    SparseFormerModel(preset("sf-mini", num_hidden_layers=1)).save_pretrained(place / "encoder")
    (place / "encoder" / "model.safetensors").unlink()
    save(place / "encoder" / "pytorch_model.bin")
    load_encoder(place / "encoder")


def accelerate_checkpoint(place, save):
    from accelerate.utils import load

    save(place / "optimizer.bin")
    load(place / "optimizer.bin")


READERS = {
    "official": official,
    "open_clip file": teacher_file("open_clip:ViT-B-32-quickgelu"),
    "open_clip directory": open_clip_directory,
    "timm file": teacher_file("timm:vit_tiny_patch16_224"),
    "transformers teacher": directory(MINI_CLIP_DIR, lambda path: load_teacher(str(path))),
    "llava": directory(MINI_LLAVA_DIR, load_llava),
    "encoder": encoder,
    "checkpoint of a run": accelerate_checkpoint,
}


def numpy_bytes(save, *arrays, **named):
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()


FORMATS = {
    "zip": lambda value, path: torch.save(value, path),
    "before torch 1.6": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    "bare pickle": lambda value, path: path.write_bytes(pickle.dumps(value)),
    "numpy": lambda value, path: path.write_bytes(numpy_bytes(np.save, np.array([value], dtype=object))),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", READERS)
def test_planted_code_does_not_run(tmp_path, kind, form):
    mark = tmp_path / "ran"
    (tmp_path / "place").mkdir()
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        READERS[kind](tmp_path / "place", lambda path: FORMATS[form]({"model": Runs(mark)}, path))
    assert not mark.exists()


def test_a_planted_index_of_shards_does_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a.png").write_bytes(b"x")
    shard = str(tmp_path / "a.tar")
    with tarfile.open(shard, "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
    open_images(f"webdataset:{shard}")
    (cache,) = (tmp_path / "cache" / "sf_llava").glob("*.npz")
    planted = np.array([Runs(tmp_path / "ran")], dtype=object)
    cache.write_bytes(numpy_bytes(np.savez, data=planted, ends=planted, members=planted))
    with contextlib.suppress(ValueError):
        open_images(f"webdataset:{shard}")
    assert not (tmp_path / "ran").exists()


FORBIDDEN = ("pickle.load", "pickle.loads", "torch.jit.load", "joblib.load", "yaml.load", "eval", "exec")


def test_no_call_in_the_project_could_run_code_of_a_file():
    wrong = []
    for path in [*PACKAGE.glob("sf_llava/**/*.py"), *PACKAGE.glob("*/*.py")]:
        if "tests" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            bad = name in FORBIDDEN or options.get("trust_remote_code", "False") != "False"
            bad |= name == "torch.load" and options.get("weights_only") != "True"
            bad |= name in ("np.load", "numpy.load") and options.get("allow_pickle") != "False"
            if bad:
                wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {name}")
    assert wrong == []
