"""Whatever a program sends as a setting is a setting, or gets a sentence."""

import pytest

from sf_llava.demo.conversation import BOTH, CLIP, SPARSEFORMER
from sf_llava.demo.engine import Sampling
from sf_llava.demo.settings import Choices
from sf_llava.demo.uploads import RefusedError

CHOICES = Choices([BOTH, SPARSEFORMER, CLIP], [16, 24], longest=256)
GOOD = {"mode": BOTH, "whole": True, "temperature": 0.7, "length": 8, "latents": 16}
NAN, INFINITE = float("nan"), float("inf")
ODD = {
    "mode": ["", "Both", "language model", None, 0, True, ["both"], {"both": 1}],
    "whole": [None, 1, 0, "true", [], NAN],
    "temperature": [NAN, INFINITE, -INFINITE, -0.1, 2.1, 1e-320, 1e308, 10**400, "1", None, True, False, [], {}],
    "length": [NAN, INFINITE, 0, -8, 0.5, 257, 1e308, 10**400, "8", None, True, [8], {}],
    "latents": [0, -16, 17, 16.5, NAN, INFINITE, 10**400, "17", [16], {}, True],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in ODD.items() for value in values], ids=str
)
def test_an_odd_setting_gets_a_sentence_that_says_what_it_may_be(name, value):
    with pytest.raises(RefusedError, match=r", not .*\.$"):
        CHOICES.read(**{**GOOD, name: value})


def test_settings_are_read_as_they_were_sent():
    chosen = CHOICES.read(**GOOD)
    assert (chosen.mode, chosen.whole, chosen.latents, chosen.sampling) == (BOTH, True, 16, Sampling(0.7, 8))
    chosen = CHOICES.read(**{**GOOD, "latents": None, "temperature": 0, "length": 12.0})
    assert chosen.latents is None and chosen.sampling == Sampling(0.0, 12)
    assert CHOICES.read(**{**GOOD, "latents": "24"}).latents == 24  # as gradio's own description of the page has it
