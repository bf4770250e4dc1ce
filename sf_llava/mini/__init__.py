"""The embedded default: a drawn world of shapes, and the small models trained on it.

world/ draws it and puts it into words, questions/ asks about it in ScienceQA's form, training/ made the models that
ship in clip/ and llava/. Nobody imports this package: it registers itself in the catalogue, under the name ``mini``.
"""

from pathlib import Path

from sf_llava.mini import registration

MINI_CLIP_DIR = Path(__file__).parent / "clip"
MINI_LLAVA_DIR = Path(__file__).parent / "llava"

registration.register(MINI_CLIP_DIR, MINI_LLAVA_DIR)
