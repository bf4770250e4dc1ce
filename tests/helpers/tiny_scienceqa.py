"""Writes a tiny ScienceQA in the published layout."""

import json
from pathlib import Path

from PIL import Image

SUBJECTS = ("natural science", "social science", "language science")


def write_scienceqa(directory: Path, count: int = 11) -> Path:
    """Write ``count`` test problems, every second with an image, and one training problem."""
    problems = {}
    for number in range(count + 1):
        split = "test" if number < count else "train"
        problems[str(number + 100)] = dict(
            question="what is " + "red blue " * (number % 3) + "?",
            choices=["cat", "dog", "mat"][: 2 + number % 2],
            answer=number % 2,
            hint="the mat is red" if number % 3 == 0 else "",
            image="image.png" if number % 2 == 0 else None,
            task="closed choice",
            grade=f"grade{1 + number}",
            subject=SUBJECTS[number % 3],
            lecture="a cat is on the mat",
            solution="the answer",
            split=split,
        )
        if number % 2 == 0:
            folder = directory / "images" / split / str(number + 100)
            folder.mkdir(parents=True)
            Image.effect_noise((40 + number, 40), 20 + 9 * number).convert("RGB").save(folder / "image.png")
    (directory / "problems.json").write_text(json.dumps(problems))
    ids = list(problems)
    (directory / "pid_splits.json").write_text(json.dumps(dict(train=ids[count:], test=ids[:count])))
    return directory
