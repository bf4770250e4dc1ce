"""The paper's ablations in miniature: one bootstrap a row and seed, all with the same number of steps.

Rows follow Tables 3 (losses, reuse), 8 (truncate, tune, freeze) and 6 (token counts, continuation). Every row is a run
directory of its own, so that a killed series goes on where it stopped. Letters: D teacher blocks, N latents.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from sf_llava import files
from sf_llava.bootstrap.config import BootstrapConfig
from sf_llava.bootstrap.run import bootstrap
from sf_llava.data import open_labelled
from sf_llava.measure.baselines import MergedTeacher, PooledTeacher, reduced_candidate
from sf_llava.measure.encoders import Candidate, student_candidate, teacher_candidate
from sf_llava.measure.store import EmbeddingStore
from sf_llava.model.costs import count_multiply_adds
from sf_llava.model.loading import load_encoder
from sf_llava.retrieval.captions import open_captions
from sf_llava.retrieval.run import DIRECTIONS, evaluate_retrieval
from sf_llava.teachers.base import Teacher
from sf_llava.zero_shot.run import evaluate_zero_shot
from sf_llava.zero_shot.task import zero_shot_task

DEFAULT = "default"
CONTINUATION_SHARE = 4  # the paper continues for 5 of 20 epochs, from a quarter of the learning rate
LATENTS = (8, 16, 24, 32, 64)
REDUCED_TOKENS = (8, 16, 32)


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        key: short name, also of its run directories.
        title: what it is.
        changes: of the common ``BootstrapConfig``.
        paper: where the paper has it, with top-1 and its default's, as printed there.
        paper_difference: paper's top-1 minus its default's, in points; None where it has no such row.
        reference: the row it is compared with.
        follows: the row whose student it continues.
        labelled: trains on the labelled images.
    """

    key: str
    title: str
    changes: dict[str, Any] = field(default_factory=dict)
    paper: str = ""
    paper_difference: float | None = None
    reference: str = DEFAULT
    follows: str | None = None
    labelled: bool = False


def table_rows(depth: int, num_patches: int, steps: int, lr: float) -> list[Row]:
    """All rows for a teacher of ``depth`` blocks and ``num_patches`` patches; the first one is the default.

    Args:
        depth: D.
        num_patches: rows with more latents are left out; the default has a quarter.
        steps: of every row but the continuation.
        lr: of every row but the continuation.
    """
    default, cortex = num_patches // 4, depth - depth // 3
    rows = [
        Row(DEFAULT, f"default: {default} latents", {}, "T3, T8: 82.5"),
        Row("no-reuse", "no weight reuse", {"reuse_weights": False}, "T3: 69.5", -13.0),
        Row("kl-3", "KL of class logits, temperature 3", {"loss": "kl", "temperature": 3.0}, "T3: 81.0", -1.5),
        Row("kl-5", "KL of class logits, temperature 5", {"loss": "kl", "temperature": 5.0}, "T3: 81.5", -1.0),
        Row("labelled", "default, on the labelled images", {}, labelled=True),
        Row(
            "class-loss",
            "with class loss, on the labelled images",
            {"class_loss_weight": 1.0},
            "T3: 77.4",
            -5.1,
            "labelled",
            labelled=True,
        ),
        Row("all-frozen", "all inherited blocks frozen", {"num_tunable": 0}, "T8: 81.8", -0.7),
        Row("all-tunable", "all inherited blocks tunable", {"num_tunable": cortex}, "T8: 82.4", -0.1),
        Row("no-truncation", "no truncation", {"num_truncated": 0}, "T8: 82.7", 0.2),
    ]
    for count in LATENTS:
        if count != default and count <= num_patches:
            # The paper's neighbours are SF-L's 64 and 128 tokens on CLIP (Table 6), the larger one continued.
            rows.append(Row(f"latents-{count}", f"{count} latents", {"num_latents": count}))
    if 2 * default <= num_patches:
        changes = {"stage": "continue", "num_latents": 2 * default, "warmup_steps": 0}
        changes |= {"steps": max(1, steps // CONTINUATION_SHARE), "lr": lr / 4}
        title = f"default, then {2 * default} latents for a quarter of the steps"
        rows.append(Row("continued", title, changes, "T6: 74.9 (64 tokens: 73.6)", 1.3, follows=DEFAULT))
    return rows


def choose_rows(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """Keep the rows called ``keys`` (all if empty) and those that they follow or are compared with.

    Raises:
        ValueError: an unknown key; the message lists the known ones.
    """
    by_key = {row.key: row for row in rows}
    if unknown := [key for key in keys if key not in by_key]:
        raise ValueError(f"unknown rows {', '.join(unknown)}; known rows: {', '.join(by_key)}")
    wanted = set(keys) or set(by_key)
    for row in reversed(rows):
        if row.key in wanted:
            wanted |= {row.reference} | ({row.follows} if row.follows else set())
    return [row for row in rows if row.key in wanted]


@dataclass(frozen=True)
class Series:
    """What all rows have in common.

    Attributes:
        common: the configuration that rows change.
        teacher: the one that ``common`` names.
        output: directory of the series, one run directory a row and seed in it.
        labelled_data: training images with labels, for the rows that need them.
        captions: data set for recall, None for no recall.
    """

    common: BootstrapConfig
    teacher: Teacher
    output: Path
    labelled_data: str
    captions: str | None

    def run_row(self, row: Row, seed: int) -> dict[str, Any]:
        """Bootstrap one row with one seed, or read what an earlier call measured.

        Returns:
            top1, top1_interval, retention, cosine, multiply_adds, parameters, tokens, seconds; with captions recall
            at 1 in both directions.
        """
        run = self.directory(row.key, seed)
        changes = dict(row.changes)
        if row.labelled:
            changes["data"] = self.labelled_data
        if row.follows:
            changes["init_from"] = str(self.directory(row.follows, seed))
        results = bootstrap(self.common.but(output=str(run), seed=seed, resume=True, **changes))
        summary = run / "row.json"
        if summary.exists():
            return files.read_json_object(summary)
        own = next(entry for entry in results["encoders"] if entry["name"] == "student")
        zero_shot = results["zero_shot"]
        score = next(entry for entry in zero_shot["encoders"] if entry["name"] == "student")
        values = {
            "top1": score["top1"],
            "top1_interval": score["top1_interval"],
            "retention": zero_shot["comparisons"][0]["retention"],
            "cosine": results["val_cosine"],
            "multiply_adds": own["multiply_adds"],
            "parameters": own["parameters"],
            "tokens": own["tokens"],
            "seconds": results["seconds"],
        }
        encoder = student_candidate(load_encoder(run, device=self.teacher.device), self.teacher)
        values |= self._recalls([encoder])[0]
        files.write_json(summary, values)
        return values

    def run_references(self) -> list[dict[str, Any]]:
        """Score the teacher and its training-free reductions, or read what an earlier call measured."""
        summary = self.output / "references.json"
        if summary.exists():
            return _read_rows(summary)
        teacher = self.teacher
        encoders = [teacher_candidate(teacher)]
        cortex = teacher.num_hidden_layers // 3
        for count in (count for count in REDUCED_TOKENS if count < teacher.num_patches):
            for name, module in (
                ("pooled at the input", PooledTeacher(teacher, count)),
                (f"pooled after {cortex} blocks", PooledTeacher(teacher, count, cortex)),
                ("merged in every block", MergedTeacher(teacher, count)),
            ):
                encoders.append(reduced_candidate(f"{name}, {count} tokens", module))
        data = self.common.data
        if data.val_data is None:
            raise ValueError("a series is scored on `val_data`: name labelled images")
        task = zero_shot_task(teacher, open_labelled(data.val_data), data.classes)
        scores = evaluate_zero_shot(task, encoders).to_dict()["encoders"]
        found = [
            {
                "name": encoder.name,
                "top1": score["top1"],
                "top1_interval": score["top1_interval"],
                "multiply_adds": count_multiply_adds(encoder.module, teacher.image_size),
                "parameters": encoder.num_parameters,
                "tokens": encoder.num_tokens,
            }
            | recall
            for encoder, score, recall in zip(encoders, scores, self._recalls(encoders), strict=True)
        ]
        files.write_json(summary, found)
        return found

    def directory(self, key: str, seed: int) -> Path:
        """Where one row with one seed lives."""
        return self.output / f"{key}-seed{seed}"

    def _recalls(self, encoders: Sequence[Candidate]) -> list[dict[str, float]]:
        """Recall at 1 in both directions."""
        if self.captions is None:
            return [{} for _ in encoders]
        store = EmbeddingStore(self.output / "embeddings")
        result = evaluate_retrieval(open_captions(self.captions), self.teacher, encoders, store).to_dict()
        return [{name: entry[name]["recall@1"] for name in DIRECTIONS} for entry in result["encoders"]]


def _read_rows(path: Path) -> list[dict[str, Any]]:
    found = files.read_json(path)
    if not isinstance(found, list) or not found or not all(isinstance(row, dict) and "top1" in row for row in found):
        raise ValueError(f"{path} is damaged: remove it, and the same command measures again")
    return found


def compare_orderings(rows: Sequence[Row], measured: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Say for every row that the paper has whether it stands on the same side of its reference as there.

    The verdict is ``unclear`` where the seeds' results overlap, or the difference is within the intervals of both.
    """
    found = []
    for row in rows:
        if row.paper_difference is None or not {row.key, row.reference} <= measured.keys():
            continue
        pair = measured[row.key], measured[row.reference]
        own, reference = ([100 * run["top1"] for run in runs] for runs in pair)
        half_widths = [mean(50 * (run["top1_interval"][1] - run["top1_interval"][0]) for run in runs) for runs in pair]
        difference = mean(own) - mean(reference)
        overlap = min(own) <= max(reference) and min(reference) <= max(own)
        unclear = overlap or abs(difference) <= math.hypot(*half_widths)
        agrees = (difference > 0) == (row.paper_difference > 0)
        verdict = "unclear" if unclear else "as in the paper" if agrees else "unlike the paper"
        found.append(
            {"row": row.key, "difference": difference, "paper_difference": row.paper_difference, "verdict": verdict}
        )
    return found


def draw_labelled(folder: Path, size: int = 12_800) -> str:
    """Write training pictures of the drawn world with one shape each, one folder a class, once; return their name.

    The folders' order is that of the classes (``mini`` with labels is the test split, which must not be trained on).
    """

    def fill(path: Path) -> None:
        world = open_labelled("mini-train:both")
        for index in range(size):
            label = world.labels[index]
            place = path / f"{label:02} {world.class_names[label]}" / f"{index:05}.png"
            place.parent.mkdir(exist_ok=True)
            world.source.load(index).save(place, compress_level=1)

    if not folder.exists():
        files.write_directory(folder, fill)
    return f"folder:{folder}"
