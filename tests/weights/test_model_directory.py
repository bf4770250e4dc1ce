"""Model directories that cannot be read are one sentence, before transformers sees them."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sf_llava.llava.loading import load_llava
from sf_llava.mini import MINI_CLIP_DIR, MINI_LLAVA_DIR
from sf_llava.teachers import load_teacher

READERS = {"llava": (MINI_LLAVA_DIR, load_llava), "teacher": (MINI_CLIP_DIR, lambda path: load_teacher(str(path)))}


@pytest.fixture(params=READERS)
def model(request, tmp_path):
    """A copy of a directory that ships, which a test may spoil, and what reads it."""
    source, read = READERS[request.param]
    return shutil.copytree(source, tmp_path / "model"), read


def shard(directory, **files):
    """Replace model.safetensors by two shards and an index, whose entries ``files`` change."""
    state = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(state)
    index = {}
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: state[name] for name in part}, directory / f"shard-{number}.safetensors", {"format": "pt"})
        index |= dict.fromkeys(part, files.get(f"shard_{number}", f"shard-{number}.safetensors"))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_shards_are_read(model):
    path, read = model
    shard(path)
    read(path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", "a\\b.bin", ""])
def test_an_index_that_names_files_elsewhere_is_refused(model, name):
    path, read = model
    shard(path, shard_1=name)
    with pytest.raises(ValueError, match=r"index.json names files that are not in its directory"):
        read(path)


def test_missing_shards_are_named(model):
    path, read = model
    shard(path)
    (path / "shard-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 2 weights files: shard-1.safetensors"):
        read(path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "{"])
def test_an_index_of_another_form_is_named(model, content):
    path, read = model
    shard(path)
    (path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"model.safetensors.index.json"):
        read(path)


def test_adapters_alone_are_called_adapters(model):
    path, read = model
    (path / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/vicuna"}')
    (path / "model.safetensors").rename(path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"holds LoRA adapters .* of the model somebody/vicuna: merge"):
        read(path)


def test_a_directory_without_weights_says_what_was_expected(model):
    path, read = model
    (path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no weights: expected one of model.safetensors"):
        read(path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"])
@pytest.mark.parametrize("damage", ["byte order mark", "truncated", "list", "pipe", "binary"])
def test_damaged_json_is_named(model, name, damage):
    path, read = model
    data = (path / name).read_bytes()
    (path / name).unlink()
    if damage == "pipe":
        os.mkfifo(path / name)
    else:
        spoilt = {"byte order mark": b"\xef\xbb\xbf" + data, "truncated": data[:9], "list": b"[]", "binary": b"\xff\0"}
        (path / name).write_bytes(spoilt[damage])
    with pytest.raises((ValueError, OSError), match=r"\.json"):
        read(path)


def test_windows_line_ends_are_read(model):
    path, read = model
    for file in path.glob("*.json"):
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    read(path)


@pytest.mark.parametrize("layers", [10**9, 0, -1, "4", None])
def test_layers_that_no_weights_are_of_are_refused_at_once(model, layers):
    path, read = model
    vision = json.loads((path / "config.json").read_text())["vision_config"]
    edit(path / "config.json", vision_config=vision | {"num_hidden_layers": layers})
    with pytest.raises(ValueError, match=r"vision_config has num_hidden_layers"):
        read(path)


def test_attention_from_the_hub_is_not_fetched(model):
    path, read = model
    edit(path / "config.json", attn_implementation="somebody/kernel")
    with pytest.raises(ValueError, match="names code on the hub"):
        read(path)


@pytest.mark.parametrize("special", ["pipe", "device", "folder"])
def test_weights_that_are_no_file_are_told_at_once(model, special):
    path, read = model
    file = path / "model.safetensors"
    file.unlink()
    make = {"pipe": os.mkfifo, "device": lambda file: file.symlink_to("/dev/zero"), "folder": os.mkdir}[special]
    make(file)
    with pytest.raises(OSError, match="not a file"):
        read(path)


@pytest.mark.parametrize("change", [{"vocab_size": "many"}, {"hidden_size": 10**9}, {"num_attention_heads": 0}])
def test_sizes_that_lie_are_one_sentence(model, change):
    path, read = model
    text = json.loads((path / "config.json").read_text())["text_config"]
    edit(path / "config.json", text_config=text | change)
    with pytest.raises(ValueError, match=r"could not be read|does not fit|do not make this"):
        read(path)


def test_a_teacher_with_nan_weights_is_refused(tmp_path):
    path = shutil.copytree(MINI_CLIP_DIR, tmp_path / "clip")
    state = load_file(path / "model.safetensors")
    state["visual_projection.weight"][0, 0] = float("nan")
    save_file(state, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"NaN or infinite: visual_projection.weight"):
        load_teacher(str(path))


def test_half_precision_bin_weights_are_read(model):
    path, read = model
    state = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    torch.save({name: tensor.half() for name, tensor in state.items()}, path / "pytorch_model.bin")
    read(path)
