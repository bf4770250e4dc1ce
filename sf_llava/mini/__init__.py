"""The embedded default: a drawn world of shapes, and the small models trained on it.

world.py draws (photos.py and diagrams.py paint on canvas.py with the masks of shapes.py), captions.py puts it into
words; clip_teacher.py and clip_cifar10.py train small CLIPs (model in clip_model.py, loop in clip_training.py).
"""

from pathlib import Path

MINI_CLIP_DIR = Path(__file__).parent / "clip"
