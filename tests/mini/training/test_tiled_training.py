"""A mini LLaVA-NeXT on pictures of four diagrams: training sees what the model sees, and every word is known."""

import numpy as np
import pytest
import torch

from sf_llava.data import open_images
from sf_llava.mini.questions.mosaics import draw_mosaic, join, mosaic_problems, open_mosaics
from sf_llava.mini.training.clip_training import TrainingConfig
from sf_llava.mini.training.llava_training import Packer, read_pictures
from sf_llava.mini.training.tiled_training import build_tiled, draw_pool, make_batch, train_tiled
from sf_llava.scienceqa.problems import ask, explain

TOKENS = 64 + 16 * 17  # the whole picture, and rows of the grid with a newline each


def test_a_picture_is_four_diagrams_and_a_question_is_about_one():
    data = open_mosaics("test", 8)
    assert data.problems == open_mosaics("test", 8).problems
    assert len({problem.id.split("-", 3)[3].rpartition("-")[0] for problem in data.problems}) > 2  # corners
    scenes = draw_mosaic(3, "test")
    picture = np.asarray(data.load_image(data.problems[3]))
    assert picture.shape == (128, 128, 3) and np.array_equal(picture, np.asarray(join(scenes)))
    for scene, (y, x) in zip(scenes, ((0, 0), (0, 64), (64, 0), (64, 64)), strict=True):
        assert np.array_equal(picture[y : y + 64, x : x + 64], scene.image)
    assert len(list(mosaic_problems(scenes, 3, "test"))) == 4


def test_the_pictures_are_there_without_questions():
    images = open_images("mini-mosaics:test")
    assert np.array_equal(np.asarray(images.load(3)), np.asarray(join(draw_mosaic(3, "test"))))
    assert images.describe(3) == "mini-mosaics/test/3" and len(images) == len(open_images("mini-mosaics"))
    with pytest.raises(ValueError, match="no split 'tests' of mini-mosaics; splits: train, validation, test"):
        open_images("mini-mosaics:tests")


def test_training_reads_what_the_model_reads_and_the_tokenizer_knows_every_word(tmp_path):
    model, processor = build_tiled()
    pool = draw_pool(model, processor, 2)
    inputs = processor(images=[join(four) for four in pool.scenes], text=[processor.image_token] * 2,
                       return_tensors="pt")  # fmt: skip
    assert (inputs["input_ids"] == processor.image_token_id).sum(dim=1).tolist() == [TOKENS, TOKENS]
    with torch.no_grad():
        own = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
        read = read_pictures(model, pool.features.float())
    assert (read - torch.cat(own)).norm() < 0.03 * torch.cat(own).norm()  # the pool is made and kept in bf16
    packer = Packer(processor, TOKENS)
    batch = make_batch(0, packer, pool, 2)
    assert (batch.input_ids == processor.image_token_id).sum() == 2 * TOKENS and batch.segments.max() == 4
    texts = [text for problem in open_mosaics("train", 20).problems for text in (ask(problem), explain(problem))]
    assert processor.tokenizer.unk_token_id not in {i for ids in processor.tokenizer(texts).input_ids for i in ids}
    config = TrainingConfig(steps=2, batch_size=1, evaluate_every=2)
    results = train_tiled(config, tmp_path, lambda model, processor, split: {split: 1.0})
    assert results["test"] == 1.0 and (tmp_path / "llava" / "config.json").is_file()
