"""The small CLIPs' training: exact resuming, several right answers, ordinary directories as a result."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, CLIPModel, SiglipModel

from sf_llava.files import write_directory
from sf_llava.mini.training import clip_cifar10, clip_teacher
from sf_llava.mini.training.clip_model import build_clip, build_tokenizer, normalise, save_clip, sincos_positions
from sf_llava.mini.training.clip_training import (
    Batch,
    TrainingConfig,
    build_optimizers,
    contrastive_loss,
    learning_rate_factor,
    sigmoid_loss,
    train,
    zero_shot_accuracy,
)
from sf_llava.mini.training.siglip_model import build_siglip, save_siglip
from sf_llava.mini.world.captions import VOCABULARY
from sf_llava.mini.world.scenes import draw_scene

TINY = {"width": 64, "layers": 3, "head_dim": 32, "text_width": 64, "text_layers": 1, "projection": 16}
TINY_SIGLIP = {"width": 64, "layers": 3, "head_dim": 32, "text_width": 32, "text_layers": 1}
SHORT = TrainingConfig(steps=4, batch_size=4, evaluate_every=2, save_every=2)


def random_batch(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (4, 64, 64, 3), generator=generator, dtype=torch.uint8)
    input_ids = torch.randint(4, 20, (4, 5), generator=generator)
    input_ids[:, -1] = 3
    return Batch(images, input_ids, torch.tensor([0, 1, 2, 0]))


def tiny_run(run_dir, stop_before: int | None = None) -> CLIPModel:
    torch.manual_seed(0)
    model = build_clip(20, **TINY)

    def make_batch(step: int) -> Batch:
        if step == stop_before:
            raise KeyboardInterrupt
        return random_batch(step)

    train(model, None, make_batch, lambda model: {"accuracy": 0.0}, SHORT, run_dir)
    return model


def test_an_interrupted_run_continues_to_the_same_weights_and_log(tmp_path):
    whole = tiny_run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        tiny_run(tmp_path / "parts", stop_before=3)
    parts = tiny_run(tmp_path / "parts")
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, parts.state_dict()[name]), name

    def losses(run):
        return [json.loads(line)["loss"] for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]

    assert losses("whole") == losses("parts") and len(losses("whole")) == 4


def test_continuing_with_other_numbers_is_refused(tmp_path):
    tiny_run(tmp_path)
    with pytest.raises(ValueError, match="another `output`"):
        train(build_clip(20, **TINY), None, random_batch, lambda model: {}, replace(SHORT, steps=9), tmp_path)


def test_equal_captions_are_right_answers_for_each_other():
    images = torch.eye(3)
    texts = torch.stack([images[0], images[0], images[2]])  # rows 0 and 1 have the same caption
    images = torch.stack([images[0], images[0], images[2]])
    together = contrastive_loss(images, texts, torch.tensor(50.0), torch.tensor([0, 0, 1]))
    apart = contrastive_loss(images, texts, torch.tensor(50.0), torch.tensor([0, 1, 2]))
    best = 2 / 3 * np.log(2)  # two rows share their mass between two equal captions
    assert together.item() == pytest.approx(best, abs=1e-4) and apart.item() == pytest.approx(best, abs=1e-4)
    wrong = contrastive_loss(images, texts, torch.tensor(50.0), torch.tensor([0, 1, 0]))
    assert wrong > together + 5


def test_the_sigmoid_loss_is_its_definition_pair_by_pair():
    draws = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(4, 8, generator=draws) for _ in range(2))
    groups, scale, bias = torch.tensor([0, 1, 0, 2]), 7.0, -3.0
    wanted = 0.0
    for i in range(4):
        for j in range(4):
            cosine = F.cosine_similarity(images[i].double(), texts[j].double(), dim=0).item()
            sign = 1 if groups[i] == groups[j] else -1
            wanted += np.log1p(np.exp(-sign * (scale * cosine + bias))) / 4
    found = sigmoid_loss(images, texts, torch.tensor(scale), torch.tensor(bias), groups)
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_where_every_caption_is_another_the_sigmoid_loss_is_transformers_own():
    torch.manual_seed(0)
    model = build_siglip(20, **TINY_SIGLIP)
    batch = random_batch(0)
    ids = F.pad(batch.input_ids, (0, 59))
    with torch.no_grad():
        output = model(input_ids=ids, pixel_values=normalise(batch.images), return_loss=True)
    own = sigmoid_loss(
        output.image_embeds, output.text_embeds, model.logit_scale.exp(), model.logit_bias, torch.arange(4)
    )
    torch.testing.assert_close(own, output.loss)
    assert model.logit_scale.exp().item() == pytest.approx(10) and model.logit_bias.item() == -10


def test_a_siglip_learns_by_its_own_loss_and_goes_on_to_the_same_weights(tmp_path):
    def run(directory, stop_before=None):
        torch.manual_seed(0)
        model = build_siglip(20, **TINY_SIGLIP)

        def make_batch(step):
            if step == stop_before:
                raise KeyboardInterrupt
            batch = random_batch(step)
            return replace(batch, input_ids=F.pad(batch.input_ids, (0, 59)))

        train(model, None, make_batch, lambda model: {}, SHORT, directory)
        return model.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", stop_before=3)
    parts = run(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert whole["logit_bias"] != -10 and whole["logit_scale"] != np.float32(np.log(10))  # both are learned


def test_a_siglips_scale_and_bias_have_a_rate_of_their_own_and_every_weight_is_trained():
    model = build_siglip(20, **TINY_SIGLIP)
    muon, adamw = build_optimizers(model, None, replace(SHORT, logit_lr_scale=20.0))
    others, logits = adamw.param_groups
    assert logits["params"] == [model.logit_scale, model.logit_bias] and logits["lr_scale"] == 20
    assert len(muon.param_groups[0]["params"]) == (3 + 1) * 6  # of blocks: query, key, value, projection, MLP
    groups = (*muon.param_groups, others, logits)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_learning_rate_warms_up_and_ends_at_zero():
    config = TrainingConfig(steps=100, batch_size=1)
    factors = [learning_rate_factor(step, config) for step in range(100)]
    assert factors[0] == pytest.approx(0.2) and max(factors) == 1 and factors[-1] < 1e-3
    assert factors[5:] == sorted(factors[5:], reverse=True)


def test_saved_directory_loads_with_auto_classes_and_gives_the_same_embeddings(tmp_path):
    tokenizer = build_tokenizer(VOCABULARY)
    model = build_clip(len(tokenizer), **TINY).eval()
    write_directory(tmp_path / "clip", lambda folder: save_clip(model, tokenizer, folder, ["red star"], ["a {}"]))
    loaded = CLIPModel.from_pretrained(tmp_path / "clip", dtype=torch.float32).eval()
    assert loaded.config.zero_shot == {"class_names": ["red star"], "templates": ["a {}"]}
    image = draw_scene(0, 0).image
    processor = AutoProcessor.from_pretrained(tmp_path / "clip")
    inputs = processor(images=Image.fromarray(image), text=["a red star"], return_tensors="pt")
    assert torch.allclose(inputs["pixel_values"], normalise(torch.from_numpy(image[None])), atol=1e-5)
    with torch.no_grad():
        ours = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
        theirs = loaded(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
    assert torch.allclose(ours.image_embeds, theirs.image_embeds, atol=5e-3)
    assert torch.allclose(ours.text_embeds, theirs.text_embeds, atol=5e-3)


def test_a_saved_siglip_loads_with_auto_classes_and_gives_the_same_embeddings(tmp_path):
    tokenizer = build_tokenizer(VOCABULARY)
    model = build_siglip(len(tokenizer), **TINY_SIGLIP).eval()
    write_directory(tmp_path / "siglip", lambda folder: save_siglip(model, tokenizer, folder, ["red star"], ["a {}"]))
    loaded = SiglipModel.from_pretrained(tmp_path / "siglip", dtype=torch.float32).eval()
    assert loaded.config.zero_shot == {"class_names": ["red star"], "templates": ["a {}"]}
    image = draw_scene(0, 0).image
    processor = AutoProcessor.from_pretrained(tmp_path / "siglip")
    inputs = processor(images=Image.fromarray(image), text=["a red star"], padding="max_length", return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 64)
    assert torch.allclose(inputs["pixel_values"], normalise(torch.from_numpy(image[None])), atol=1e-5)
    with torch.no_grad():
        ours, theirs = (
            siglip(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"]) for siglip in (model, loaded)
        )
    assert torch.allclose(ours.image_embeds, theirs.image_embeds, atol=5e-3)
    assert torch.allclose(ours.text_embeds, theirs.text_embeds, atol=5e-3)


@pytest.mark.parametrize("build", [lambda: build_clip(20, **TINY), lambda: build_siglip(20, **TINY_SIGLIP)])
def test_accuracy_while_training_is_that_of_the_models_own_features(build):
    torch.manual_seed(1)
    model = build().eval()
    images = torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8)
    prompts = [torch.tensor([[1, word, 3] + [0] * 61]) for word in (5, 9)]
    with torch.no_grad():
        rows = torch.cat([model.get_text_features(ids).pooler_output for ids in prompts])
        embeds = model.get_image_features(normalise(images)).pooler_output
    predicted = F.cosine_similarity(embeds[:, None], rows[None], dim=2).argmax(dim=1)
    assert zero_shot_accuracy(model, images, predicted, prompts) >= 5 / 6  # bf16 may turn a close one


def test_tokenizer_survives_saving_and_knows_words(tmp_path):
    build_tokenizer(VOCABULARY).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(["A red star, large", "gibberish"], padding=True).input_ids
    assert tokenizer.convert_ids_to_tokens(ids[0]) == ["<start>", "a", "red", "star", ",", "large", "<end>"]
    assert tokenizer.convert_ids_to_tokens(ids[1])[:4] == ["<start>", "<unknown>", "<end>", "<pad>"]


def test_positions_are_distinct_and_near_ones_alike():
    positions = sincos_positions(8, 64)
    similarity = positions @ positions.T
    assert (similarity.fill_diagonal_(-1e9).max(dim=1).values < positions.square().sum(dim=1)).all()
    assert similarity[9, 10] > similarity[9, 14] and similarity[9, 17] > similarity[9, 49]


def test_dense_targets_describe_patches():
    scenes = [draw_scene(0, index, domain) for index in range(12) for domain in ("scene", "diagram")]
    targets = clip_teacher.dense_targets(scenes)
    assert targets.labels.shape == (24, 64, 3) and targets.silhouettes.shape == (24, 64, 64)
    for row, scene in enumerate(scenes):
        for patch in range(64):
            y, x = 8 * (patch // 8), 8 * (patch % 8)
            window = scene.owner[y : y + 8, x : x + 8]
            colour = targets.labels[row, patch, 1].item()
            if colour == 0:
                assert (window == -1).all()
            elif colour > 0:
                owner = np.bincount(window[window >= 0]).argmax()
                thing = scene.objects[owner]
                assert clip_teacher._DENSE_COLOURS[colour] == thing.colour
                assert clip_teacher._DENSE_SHAPES[targets.labels[row, patch, 0]] == thing.shape
                if thing.size:
                    middle = 8 * np.array(thing.center) - (x / 8 + 0.5, y / 8 + 0.5)
                    assert np.allclose(targets.boxes[row, patch, :2], middle, atol=1e-5)
                    assert 0.2 < targets.forms[row, patch].mean() <= 1


class Noise:
    """Twenty labelled pictures of noise."""

    labels = [index % 2 for index in range(20)]  # noqa: RUF012
    class_names = ["cat", "fire_engine"]  # noqa: RUF012

    def __len__(self) -> int:
        return 20

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def test_training_on_labelled_photographs_saves_a_clip_with_its_classes(tmp_path):
    config = TrainingConfig(steps=3, batch_size=8)  # crosses an epoch's end
    results = clip_cifar10.train_on_labelled(Noise(), Noise(), config, tmp_path)
    assert 0 <= results["validation"] <= 1 and results["images"] == 24
    saved = CLIPModel.from_pretrained(tmp_path / "clip")
    assert saved.config.zero_shot["class_names"] == ["cat", "fire engine"]
    assert saved.config.vision_config.num_hidden_layers % 3 == 0


def test_augmentation_moves_and_flips_deterministically():
    images = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)
    first = clip_cifar10.augment(images, np.random.default_rng(5))
    assert np.array_equal(first, clip_cifar10.augment(images, np.random.default_rng(5)))
    assert not np.array_equal(first, clip_cifar10.augment(images, np.random.default_rng(6)))
    assert first.shape == images.shape
