"""The core runs alone; what needs an extra says which, in one sentence, before anything is done."""

import importlib
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from sf_llava import extras
from sf_llava.data.images import LabelledImages
from sf_llava.zero_shot.task import find_class_set

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def distributions(requirements: list[str]) -> set[str]:
    """Names of distributions, as they are imported."""
    names = {line.partition(">")[0].strip().replace("-", "_") for line in requirements}
    return {"open_clip" if name == "open_clip_torch" else name for name in names}


def test_every_module_stands_in_the_extra_that_installs_it():
    declared = {
        module: extra
        for extra, requirements in PROJECT["optional-dependencies"].items()
        if extra not in ("all", "dev")
        for module in distributions(requirements)
    }
    assert declared == extras.EXTRAS
    assert not declared.keys() & distributions(PROJECT["dependencies"])


def test_all_are_all_and_development_has_them():
    optional = PROJECT["optional-dependencies"]
    (everything,) = optional["all"]
    all_of = set(everything.removeprefix("sf_llava[").removesuffix("]").split(","))
    assert all_of == optional.keys() - {"all", "dev", "wandb", "mlflow", "trackio"}  # one service or another
    assert "sf_llava[all]" in optional["dev"]


def test_what_is_installed_is_not_asked_for(monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "json", "data")
    extras.require("reading JSON", "json")
    monkeypatch.setitem(extras.EXTRAS, "no_such_package", "data")
    said = r"^reading all needs no_such_package, which is not installed: pip install 'sf_llava\[data\]'$"
    with pytest.raises(ModuleNotFoundError, match=said):
        extras.require("reading all", "json", "no_such_package")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["zero-shot", "--teacher", "open_clip:ViT-B-32/openai"], "teacher open_clip:ViT-B-32/openai needs open_clip"),
        (["zero-shot", "--teacher", "timm:vit_base_patch16_224"], "teacher timm:vit_base_patch16_224 needs timm"),
        (["zero-shot", "--classes", "imagenet"], "naming ImageNet's classes needs open_clip"),
        (["zero-shot", "--data", "SYNSETS"], "naming ImageNet's classes needs open_clip"),
        (["zero-shot", "--data", "parquet:x.parquet"], "reading parquet needs datasets"),
        (["retrieval", "--data", "hub:x"], "a data set of the hub needs datasets"),
        (["scienceqa", "run", "--data", "parquet:x"], "reading tables of questions needs datasets"),
        (["scienceqa", "run", "--bits", "4", "--data", "mini:2"], "an LLM in 4 bits needs bitsandbytes"),
        (["recover"], "recovery needs peft"),
        (["chat"], "the chat needs gradio"),
        (["reproduce"], "the plot of the series needs matplotlib"),
        (["swap-table"], "the plot of the series needs matplotlib"),
        (["benchmark", "encoder", "--device", "cpu"], "the plot of this table needs matplotlib"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_missing_extra_is_one_sentence_before_anything_is_done(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(extras, "is_installed", lambda module: module not in extras.EXTRAS)
    for synset in ("n01440764", "n01443537"):
        (tmp_path / "images" / synset).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / synset / "0.png")
    name, *rest = arguments
    main = importlib.import_module(f"sf_llava.commands.{name.replace('-', '_')}").main
    extra = extras.EXTRAS[said.split()[-1]]
    with pytest.raises(ModuleNotFoundError) as raised:
        main([f"folder:{tmp_path / 'images'}" if value == "SYNSETS" else value for value in rest])
    assert str(raised.value) == f"{said}, which is not installed: pip install 'sf_llava[{extra}]'"


def test_classes_of_ones_own_need_no_extra(monkeypatch):
    monkeypatch.setattr(extras, "is_installed", lambda module: module not in extras.EXTRAS)
    images = LabelledImages([None, None], [0, 1], ["tabby_cat", "dog"])
    assert find_class_set(images).class_names == ("tabby cat", "dog")
