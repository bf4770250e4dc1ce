"""``sf-llava benchmark export``: the encoder and its CLIP eager, in onnxruntime and in OpenVINO, float32 and int8.

Both give the embedding; weights are random, speed does not depend on them. Images a second of one CPU thread; "faster"
is the encoder's speed beside the CLIP's in the same runtime. Then what int8 costs a trained encoder: zero-shot top-1,
and the mini LLaVA's image questions, through files of its embedding and of its penultimate latents.
"""

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from sf_llava.benchmark.encoder import Built
from sf_llava.benchmark.runtimes import RUNTIMES, opened
from sf_llava.benchmark.timing import interleave
from sf_llava.data import open_labelled
from sf_llava.export import formats
from sf_llava.export.features import ImageFeatures
from sf_llava.llava.loading import load_llava
from sf_llava.llava.swapping import swapped
from sf_llava.measure.encoders import student_candidate, teacher_candidate
from sf_llava.measure.setup import teacher_of
from sf_llava.model import SparseFormerModel
from sf_llava.model.loading import load_encoder
from sf_llava.model.sparseformer import SparseFormerOutput
from sf_llava.report import device_kind, report, save
from sf_llava.scienceqa import scoring
from sf_llava.scienceqa.data import open_scienceqa
from sf_llava.scienceqa.run import Answerer, Generation, answer_all
from sf_llava.teachers import load_teacher
from sf_llava.zero_shot.run import evaluate_zero_shot
from sf_llava.zero_shot.task import zero_shot_task

LAYER = -2  # that a LLaVA reads
NEW_TOKENS = 64  # the mini LLaVA's answers have about twenty


def run(
    output: Path,
    pairs: list[str],
    batch_sizes: list[int],
    repeats: int,
    seed: int,
    encoder: str | None,
    questions: int,
) -> list[dict[str, Any]]:
    """Time every pair in every runtime, score ``encoder`` in them, print tables, write ``export_KIND_float32.json``.

    The file is written again after every pair.
    """
    for kind in formats.FILES:
        formats.require_runtime(kind, int8=True)
    torch.manual_seed(seed)
    rows: list[dict[str, Any]] = []
    file = f"export_{device_kind('cpu')}_float32"
    for name in pairs:
        rows += _time_pair(name, batch_sizes, repeats)
        path = save(output, file, "cpu", rows, repeats=repeats)
    header = ["pair", "batch", "runtime", "ours img/s", "CLIP img/s", "faster", "beside eager", "MB", "CLIP MB"]
    report("Images a second in each runtime, float32 arithmetic", header, _cells(rows), path)
    if encoder is not None:
        scores = score(encoder, questions, seed)
        path = save(output, file, "cpu", rows, repeats=repeats, encoder=encoder, scores=scores)
        header = ["runtime", "top-1", "image questions", "correct", "MB"]
        cells = [
            [
                one["runtime"],
                f"{one['top1']:.2%}",
                f"{one['image_accuracy']:.2%}",
                f"{one['correct']} of {one['questions']}",
                f"{one['bytes'] / 1e6:.1f}",
            ]
            for one in scores
        ]
        report(f"{encoder} in each runtime", header, cells, path)
    return rows


def _time_pair(name: str, batch_sizes: list[int], repeats: int) -> list[dict[str, Any]]:
    built = Built(name, "cpu", torch.float32)
    timings: dict[int, dict[str, dict[str, Any]]] = {size: {} for size in batch_sizes}
    modules = {"student": ImageFeatures(built.encoders["student"]), "teacher": built.encoders["teacher"]}
    sizes: dict[str, dict[str, int]] = {}
    for side, module in modules.items():
        with opened(module.eval(), built.pair.image_size) as runs, torch.inference_mode():
            sizes[side] = {runtime: size for runtime, (_, size) in runs.items()}
            for size in batch_sizes:
                pixels = torch.randn(size, 3, built.pair.image_size, built.pair.image_size)
                calls: dict[str, Callable[[], object]] = {
                    runtime: partial(function, pixels) for runtime, (function, _) in runs.items()
                }
                timings[size][side] = {
                    runtime: timing.to_dict() for runtime, timing in interleave(calls, "cpu", repeats).items()
                }
    return [{"pair": name, "batch_size": size, **timings[size], "weight_bytes": sizes} for size in batch_sizes]


def score(encoder: str, questions: int, seed: int) -> list[dict[str, Any]]:
    """Score a mini encoder through files: zero-shot on the drawn world, and in the mini LLaVA's place of its CLIP."""
    student = load_encoder(encoder)
    teacher = load_teacher(teacher_of(encoder) or "mini", dtype=torch.float32, device=torch.device("cpu"))
    side = student.config.image_size
    task = zero_shot_task(teacher, open_labelled("mini"), seed=seed)
    candidate = student_candidate(student, teacher)
    with opened(ImageFeatures(student).eval(), side, threads=0) as runs:
        candidates = [
            dataclasses.replace(
                candidate, name=name, module=_Reads(student, function), read=lambda embeds: (embeds, None)
            )
            for name, (function, _) in runs.items()
        ]
        found = evaluate_zero_shot(task, [teacher_candidate(teacher), *candidates]).to_dict()["encoders"]
        scores = [
            {"runtime": one["name"], "top1": one["top1"], "bytes": runs[one["name"]][1]}
            for one in found
            if one["name"] in runs
        ]
    with opened(ImageFeatures(student, [LAYER], keep_cls=True).eval(), side, threads=0) as runs:
        for one in scores:
            one |= _ask(student, runs[one["runtime"]][0], questions, seed)
    return scores


class _Reads(nn.Module):
    """A function of pixels in the place of a model; its parameters say where the model is."""

    def __init__(self, model: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.function(pixel_values)


def _ask(student: SparseFormerModel, tokens: Callable[[Tensor], Tensor], questions: int, seed: int) -> dict[str, Any]:
    """Ask the mini LLaVA image questions, the latents of ``student`` computed by ``tokens``."""
    model, processor = load_llava("mini", dtype="fp32")
    data = open_scienceqa(f"mini:{2 * questions}", "test")  # half of them have a picture
    data = dataclasses.replace(data, problems=[problem for problem in data.problems if problem.has_image])

    def forward(pixel_values: Tensor, *_: Any, **__: Any) -> SparseFormerOutput:
        states: list[Tensor | None] = [None] * (student.config.num_hidden_layers + 1)
        states[LAYER] = tokens(pixel_values)
        return SparseFormerOutput(hidden_states=tuple(states))

    with swapped(model, processor, copy.deepcopy(student)) as record, TemporaryDirectory() as folder:
        record.encoder.forward = forward  # type: ignore[method-assign]
        try:
            answerer = Answerer(model, processor, Generation(NEW_TOKENS, seed=seed))
            texts = answer_all(answerer, data, Path(folder), {}, batch_size=64)
        finally:
            del record.encoder.forward
    result = scoring.score(data.problems, texts)
    return {key: result[key] for key in ("image_accuracy", "correct")} | {"questions": result["total"]}


def _cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    cells = []
    for row in rows:
        for runtime in RUNTIMES:
            ours, clip = (row["batch_size"] / row[side][runtime]["seconds"] for side in ("student", "teacher"))
            gain = row["student"]["eager"]["seconds"] / row["student"][runtime]["seconds"]
            sizes = [f"{row['weight_bytes'][side][runtime] / 1e6:.0f}" for side in ("student", "teacher")]
            speeds = [f"{ours:.2f}", f"{clip:.2f}", f"{ours / clip:.2f}x", f"{gain:.2f}x"]
            cells.append([row["pair"], str(row["batch_size"]), runtime, *speeds, *sizes])
    return cells
