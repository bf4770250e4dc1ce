"""The embedded default: a drawn world of shapes, and the small models trained on it.

world.py draws (photos.py and diagrams.py paint on canvas.py with the masks of shapes.py), captions.py puts it into
words; clip_teacher.py and clip_cifar10.py train small CLIPs (model in clip_model.py, loop in clip_training.py);
questions.py asks about diagrams (picture_questions.py) and texts (text_questions.py) in ScienceQA's form, and
llava_training.py trains the LLaVA of llava_model.py to answer.
"""

from pathlib import Path

MINI_CLIP_DIR = Path(__file__).parent / "clip"
MINI_LLAVA_DIR = Path(__file__).parent / "llava"
