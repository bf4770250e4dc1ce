"""Encoders load whole or not at all."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sf_llava.configuration import preset
from sf_llava.model import SparseFormerModel
from sf_llava.model.loading import load_encoder


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
    with pytest.raises(ValueError, match=r"no encoder at .*sf-llava bootstrap"):
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


PIXELS = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def embeds(model):
    with torch.no_grad():
        return model(PIXELS).image_embeds


def save_pickled_shards(model, path):
    model.config.save_pretrained(path)
    state = model.state_dict()
    weight_map = {name: f"pytorch_model-{1 + index % 2:05d}-of-00002.bin" for index, name in enumerate(state)}
    for shard in set(weight_map.values()):
        torch.save({name: state[name] for name in state if weight_map[name] == shard}, path / shard)
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def save_pickled(model, path):
    model.config.save_pretrained(path)
    torch.save(model.state_dict(), path / "pytorch_model.bin")


LAYOUTS = {
    "sharded": lambda model, path: model.save_pretrained(path, max_shard_size="500KB"),
    "variant": lambda model, path: model.save_pretrained(path, variant="fp16"),
    "sharded variant": lambda model, path: model.save_pretrained(path, variant="fp16", max_shard_size="500KB"),
    "pickled": save_pickled,
    "pickled shards": save_pickled_shards,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_transformers_loads_to_the_bit(tmp_path, layout):
    model = SparseFormerModel(preset("sf-mini", num_hidden_layers=1)).eval()
    LAYOUTS[layout](model, tmp_path / "encoder")
    assert torch.equal(embeds(load_encoder(tmp_path)), embeds(model))


def test_of_several_variants_one_is_to_be_named(tmp_path):
    model = SparseFormerModel(preset("sf-mini", num_hidden_layers=1)).eval()
    for variant in ("fp16", "bf16"):
        model.save_pretrained(tmp_path, variant=variant)
    with pytest.raises(ValueError, match="bf16, fp16"):
        load_encoder(tmp_path)
    assert torch.equal(embeds(load_encoder(tmp_path, variant="bf16")), embeds(model))
    with pytest.raises(ValueError, match="variant int4"):
        load_encoder(tmp_path, variant="int4")


def test_a_hub_name_is_read_from_the_cache_and_nothing_is_fetched(encoder_dir, tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--someone--encoder" / "snapshots" / "0"
    shutil.copytree(encoder_dir, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    assert torch.equal(embeds(load_encoder("someone/encoder")), embeds(load_encoder(encoder_dir)))
    with pytest.raises(ValueError, match=r"no encoder at someone/else.*hub's cache"):
        load_encoder("someone/else")


def test_a_shard_that_is_not_there_is_named(tmp_path):
    SparseFormerModel(preset("sf-mini", num_hidden_layers=1)).save_pretrained(tmp_path, max_shard_size="500KB")
    lost = sorted(tmp_path.glob("*-of-*"))[1]
    lost.unlink()
    with pytest.raises(ValueError, match=lost.name):
        load_encoder(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(encoder_dir, value):
    state = load_file(encoder_dir / "model.safetensors")
    state["focusing.initial_rois"][3, 1] = value
    save_file(state, encoder_dir / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"not finite, first focusing.initial_rois"):
        load_encoder(encoder_dir)


def test_weights_that_do_not_fit_the_dtype_are_refused(encoder_dir):
    state = load_file(encoder_dir / "model.safetensors")
    state["cls_token"][0] = 1e6
    save_file(state, encoder_dir / "model.safetensors", metadata={"format": "pt"})
    assert load_encoder(encoder_dir, dtype=torch.bfloat16).cls_token[0] > 9e5
    with pytest.raises(ValueError, match=r"cls_token \(torch.float16\)"):
        load_encoder(encoder_dir, dtype=torch.float16)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_whole_numbers_are_no_weights(encoder_dir, dtype):
    state = load_file(encoder_dir / "model.safetensors")
    state["cls_token"] = torch.ones_like(state["cls_token"]).to(dtype)
    save_file(state, encoder_dir / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="no floating-point numbers in cls_token"):
        load_encoder(encoder_dir)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (dict(num_hidden_layers=10**9), "num_hidden_layers"),
        (dict(num_hidden_layers=200), "missing: cortex"),
        (dict(num_latents=60_000), r"\(16, 4\) instead of \(60000, 4\)"),
        (dict(model_type="clip_vision_model"), "type 'clip_vision_model'"),
        (dict(quantization_config={"quant_method": "bitsandbytes"}), "quantised"),
        (dict(num_latent=3), "unknown field num_latent"),
        (dict(attn_implementation="nope"), "makes no encoder"),
    ],
)
def test_configurations_are_judged_before_any_work(encoder_dir, fields, sentence, monkeypatch):
    config = json.loads((encoder_dir / "config.json").read_text())
    (encoder_dir / "config.json").write_text(json.dumps(config | fields))
    monkeypatch.setattr(SparseFormerModel, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match=sentence):
        load_encoder(encoder_dir)


def test_code_in_a_pickled_encoder_is_not_run(tmp_path):
    class Code:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("",))

    preset("sf-mini").save_pretrained(tmp_path)
    torch.save({"cls_token": Code()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="not run"):
        load_encoder(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_outputs_have_names_whatever_the_configuration_says(encoder_dir):
    config = json.loads((encoder_dir / "config.json").read_text())
    (encoder_dir / "config.json").write_text(json.dumps(config | {"return_dict": False}))
    assert embeds(load_encoder(encoder_dir)).shape == (1, 128)
