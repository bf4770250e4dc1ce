"""What evaluators start with: the teacher that a run names, students with numbers of latents."""

import copy
import json

import pytest
import torch
from torch.testing import assert_close

from sf_llava.measure.setup import load_models, teacher_of
from sf_llava.model.rois import initial_rois


@pytest.mark.parametrize("config", [[], 5, None, {"teacher": 5}, {}])
def test_a_run_that_names_no_teacher_has_none(config, tmp_path):
    (tmp_path / "encoder").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "encoder" / name).write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert teacher_of(str(tmp_path / "encoder")) is None


def test_an_elastic_student_stands_there_with_every_number_that_was_asked_for(clip_dir, student, tmp_path):
    elastic = copy.deepcopy(student)
    elastic.config.num_latents_range = [2, 9]
    elastic.focusing.initial_rois.data = initial_rois(4)
    elastic.save_pretrained(tmp_path / "encoder")
    common = str(clip_dir), "fp32", torch.device("cpu")
    _, (_, *found) = load_models([str(tmp_path)], *common, [2, 4, 9])
    assert [(one.name, one.num_tokens) for one in found] == [("student, 2", 2), ("student, 4", 4), ("student, 9", 9)]
    pixels = torch.rand(2, 3, elastic.config.image_size, elastic.config.image_size)
    with torch.no_grad():
        for one in found:
            assert_close(one(pixels)[0], elastic(pixels, num_latents=one.num_tokens).image_embeds)
    with pytest.raises(ValueError, match="10 latents: this encoder was trained with 2 to 9"):
        load_models([str(tmp_path)], *common, [10])
    student.save_pretrained(tmp_path / "other" / "encoder")
    with pytest.raises(ValueError, match="5 latents: this encoder was trained with 4 alone"):
        load_models([str(tmp_path / "other")], *common, [5])
