"""The student that ships: small in a wheel, and an encoder like any other."""

import math
import zlib

import pytest
import torch

from sf_llava.catalogue import default_encoder
from sf_llava.mini import MINI_STUDENT_DIR
from sf_llava.mini.training.student import SIGNIFICANT_BITS, round_significand
from sf_llava.model.loading import load_encoder
from sf_llava.teachers import load_teacher


@pytest.mark.parametrize("bits", [1, 4, 11])
def test_numbers_are_rounded_to_their_leading_bits(bits):
    draws = torch.Generator().manual_seed(0)
    values = torch.randn(500, generator=draws) * 10.0 ** torch.randint(-6, 6, (500,), generator=draws)
    for value, found in zip(values.tolist(), round_significand(values, bits).tolist(), strict=True):
        step = 2.0 ** (math.floor(math.log2(abs(value))) + 1 - bits)
        assert found % step == 0 and abs(found - value) <= step / 2
    assert torch.equal(round_significand(torch.zeros(3), bits), torch.zeros(3))


def test_the_shipped_student_is_small_and_fits_the_shipped_teacher(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, remark = default_encoder()
    assert path == str(MINI_STUDENT_DIR) and "here is the one that ships" in remark
    assert len(zlib.compress((MINI_STUDENT_DIR / "model.safetensors").read_bytes())) < 3_000_000
    student, teacher = load_encoder(path), load_teacher("mini")
    assert student.config.num_latents == teacher.num_patches // 4
    for parameter in student.parameters():
        assert torch.equal(parameter, round_significand(parameter, SIGNIFICANT_BITS))
