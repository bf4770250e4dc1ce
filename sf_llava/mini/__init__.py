"""The embedded default: a drawn world of shapes, and the small models trained on it.

world/ draws it and puts it into words, questions/ asks about it in ScienceQA's form, training/ made the models that
ship in clip/, siglip/, llava/ and student/. Nobody imports this package: it registers itself in the catalogue, as
``mini``, the SigLIP as ``mini-siglip``.
"""

from pathlib import Path

from sf_llava.mini import registration

MINI_CLIP_DIR = Path(__file__).parent / "clip"
MINI_SIGLIP_DIR = Path(__file__).parent / "siglip"
MINI_LLAVA_DIR = Path(__file__).parent / "llava"
MINI_STUDENT_DIR = Path(__file__).parent / "student"

registration.register(MINI_CLIP_DIR, MINI_SIGLIP_DIR, MINI_LLAVA_DIR, MINI_STUDENT_DIR)
