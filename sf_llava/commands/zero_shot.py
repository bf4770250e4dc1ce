"""Zero-shot classification of a teacher and its student in one run.

    sf-llava zero-shot
        the mini teacher and the quickstart's student on the drawn world: a table within a minute or two on two cores
    sf-llava zero-shot --encoder runs/sf-l-64 --teacher open_clip:ViT-L-14-quickgelu/openai \\
            --data folder:/data/imagenet/val --dtype fp16 --batch-size 256
        ImageNet with its 1,000 names and 80 templates (paper, Table 6: CLIP L/14 75.4, SF-L with 64 tokens 73.6);
        the flat validation folder too, with val.txt or LOC_val_solution.csv beside it. ImageNet-Sketch, -A and -R are
        recognised by their folders; name the classes of ImageNet-V2, parquet and hub sets: --classes imagenet
    sf-llava zero-shot --encoder runs/cifar --teacher runs/cifar_clip --data parquet:cifar10/validation.parquet
    sf-llava zero-shot --reduced tome:4 tome:8 diffrate:4 diffrate:8
        beside them the teacher with 4 or 8 tokens fewer in every block, off the shelf, and a plot of accuracy over
        multiply-adds and over speed (paper, Table 4: ViT-B/16 84.6, with ToMe at 16 80.4, SF-B with 80 tokens 83.4)
    sf-llava zero-shot --encoder runs/sf-b-80 runs/tome-16 --reduced tome:16 --speed 1 32
        the same tuned (sf-llava bootstrap --reduce tome:16), off the shelf and as a SparseFormer, each timed in turn
    sf-llava zero-shot --encoder runs/sf-b-49 runs/sf-b-80 runs/sf-b-80-320 --data folder:/data/imagenet/val
        the paper's Table 2: a classification teacher (timm's AugReg) and its students, each through its own classifier
        (ViT-B/16 84.6, SF-B with 49 tokens 82.5, with 80 83.4, at 320 px 83.7)
    sf-llava zero-shot --encoder runs/sf-l-elastic --latents 16 64 196
        one encoder of --elastic 16-196 with several numbers of latents, a row each
    sf-llava --processes 8 zero-shot ...   identical numbers on eight devices

Expected: one row an encoder with top-1, its 95 % interval, top-5, retention (student / teacher), cosine to the teacher,
tokens, pixels of a side, parameters, multiply-adds and images/s of the forward pass; a JSON file with these, accuracies
by class, where teacher and student differ, unreadable images, device, dtype and versions. The text classifier is kept
in --cache. A SparseFormer v1 is scored alone, through its own classifier.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf_llava import cli

if TYPE_CHECKING:
    import torch

    from sf_llava.data import LabelledImages
    from sf_llava.measure.encoders import Candidate
    from sf_llava.zero_shot.run import ZeroShotResult
    from sf_llava.zero_shot.task import ZeroShotTask

RESULTS = "results.json"  # in the directory of the output


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--encoder", nargs="+", default=[], metavar="DIR", help="students: encoders or runs (default: the quickstart's)"
    )
    parser.add_argument("--data", default="mini", metavar="NAME", help="labelled images (%(default)s)")
    parser.add_argument(
        "--classes",
        metavar="NAME",
        help="mini, cifar10, imagenet, imagenet-a, -r, imagenette, FILE.json (default: the data's)",
    )
    parser.add_argument("--templates", metavar="NAME", help="a class set's, simple, FILE.json or one text with {}")
    parser.add_argument(
        "--reduced",
        nargs="+",
        default=[],
        metavar="KIND:R",
        help="the teacher with R tokens fewer in every block: tome:R, diffrate:R",
    )
    parser.add_argument(
        "--speed",
        nargs="+",
        type=cli.BATCH,
        default=[],
        metavar="N",
        help="time all forward passes apart, in turn, on N pictures at once (on a CPU: its processor time)",
    )
    cli.add_flags(parser, "latents", "teacher", "output", "cache", "limit", "seed", output="runs/zero_shot")
    cli.add_flags(parser, "batch-size", "device", "dtype", "workers", batch_size=64)
    return cli.parse(parser, argv)


def main(argv: list[str]) -> None:
    """Load, run, print, save."""
    arguments = parse(argv)

    from accelerate import PartialState

    from sf_llava.benchmark.candidates import time_candidates
    from sf_llava.data import open_labelled
    from sf_llava.data.loading import choose_workers
    from sf_llava.devices import choose_device, choose_precision
    from sf_llava.extras import require
    from sf_llava.files import require_writable_file
    from sf_llava.measure.baselines import reduce_teacher, reduced_candidate
    from sf_llava.measure.setup import choose_models, load_models
    from sf_llava.measure.store import EmbeddingStore
    from sf_llava.model.loading import is_v1
    from sf_llava.zero_shot.run import evaluate_zero_shot
    from sf_llava.zero_shot.task import zero_shot_task

    cli.hide_loading_bars()
    started = time.perf_counter()
    arguments.workers = choose_workers(arguments.workers)
    require_writable_file(Path(arguments.output) / RESULTS)
    if arguments.reduced:
        require("the plot beside reduced teachers", "matplotlib")
    device = choose_device(arguments.device)
    arguments.dtype = choose_precision(arguments.dtype, device)
    images = open_labelled(arguments.data)
    if any(map(is_v1, arguments.encoder)):
        names, teacher_name = arguments.encoder, None
        task, encoders = open_v1(arguments, images, device)
    else:
        names, teacher_name = choose_models(arguments.encoder, arguments.teacher)
        teacher, encoders = load_models(names, teacher_name, arguments.dtype, device, arguments.latents)
        encoders += [reduced_candidate(name, reduce_teacher(teacher, name)) for name in arguments.reduced]
        with progress("prompts", "class") as advance:
            task = zero_shot_task(
                teacher,
                images,
                arguments.classes,
                arguments.templates,
                arguments.limit,
                arguments.seed,
                advance,
                EmbeddingStore(arguments.cache),
            )
    with progress("images", "image") as advance:
        result = evaluate_zero_shot(
            task,
            encoders,
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            advance=lambda count: advance(count * PartialState().num_processes, len(task.indices)),
            state=PartialState(),
            with_costs=True,
        )
    if PartialState().is_main_process:
        settings = vars(arguments) | {"teacher": teacher_name, "encoder": names, "device": device.type}
        speeds = time_candidates(encoders, arguments.speed)
        report(result, speeds, settings, time.perf_counter() - started)


def open_v1(
    arguments: argparse.Namespace, images: "LabelledImages", device: "torch.device"
) -> "tuple[ZeroShotTask, list[Candidate]]":
    """Load a SparseFormer v1, which has no teacher, and match the data set's classes with its classifier's."""
    from sf_llava.measure.encoders import v1_candidate
    from sf_llava.model.loading import load_v1
    from sf_llava.zero_shot.task import classification_task

    encoder, *others = arguments.encoder
    own = ("teacher", "classes", "templates", "reduced", "latents")
    if others or any(getattr(arguments, name) for name in own):
        raise ValueError(
            f"{', '.join(arguments.encoder)}: a SparseFormer v1 is scored alone, by its own classifier: leave out "
            f"other encoders, {', '.join(f'--{name}' for name in own)}"
        )
    model = load_v1(encoder, dtype=arguments.dtype, device=device)
    task = classification_task(model.config.num_classes, images, arguments.limit, arguments.seed)
    return task, [v1_candidate(model)]


@contextmanager
def progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar with ETA; yields what is called with (done just now, total). Silent without a terminal."""
    from accelerate import PartialState
    from tqdm import tqdm

    disable = None if PartialState().is_main_process else True
    with tqdm(desc=what, unit=unit, disable=disable, leave=False) as bar:

        def advance(count: int, total: int) -> None:
            bar.total = total
            bar.update(count)

        yield advance


def report(result: "ZeroShotResult", speeds: list[dict[str, Any]], settings: dict[str, Any], seconds: float) -> None:
    """Print the table and what a reader should know beside it; write the JSON file.

    Args:
        result: of all encoders.
        speeds: of each, by batch size, where they were timed apart.
        settings: of the command.
        seconds: that it took.
    """
    import transformers
    from accelerate import PartialState

    from sf_llava.files import write_json
    from sf_llava.report import environment, print_table

    values = result.to_dict()
    machine = environment(settings["device"])
    machine |= {"transformers": transformers.__version__, "processes": PartialState().num_processes}
    origin = values["classes"]
    if values["templates"]:
        origin += f", prompts: {len(values['templates'])}"
    counts = f"{values['num_images']:,} images, {values['num_classes']:,} classes ({origin})"
    print_table(f"{settings['teacher'] or settings['encoder'][0]} on {settings['data']}: {counts}", *result.table())
    for encoder, own in zip(values["encoders"], speeds, strict=True):
        encoder["speed"] = own
    if sizes := settings["speed"]:
        rows = [
            [encoder["name"], *(f"{one['images_per_second']:.1f} ± {one['spread']:.0%}" for one in own.values())]
            for encoder, own in zip(values["encoders"], speeds, strict=True)
        ]
        print_table("images/s of the forward pass, in turn", ["encoder", *(f"batch {n}" for n in sizes)], rows)
    for comparison in values["comparisons"]:
        low, high = (100 * bound for bound in comparison["top1_difference_interval"])
        print(
            f"\n{comparison['encoder']} - {comparison['reference']}: {100 * comparison['top1_difference']:+.2f} points "
            f"of top-1 (95 % {low:+.2f} to {high:+.2f}, paired); same answer on {comparison['agreement']:.1%} of images"
        )
        print(
            f"right on both {comparison['both_right']:,}, only on {comparison['encoder']} "
            f"{comparison['only_encoder_right']:,}, only on {comparison['reference']} "
            f"{comparison['only_reference_right']:,}, on neither {comparison['neither_right']:,} images"
        )
        for pair in comparison["commonest_disagreements"][:3]:
            print(
                f"  {pair['images']:,} x {comparison['reference']}: {pair['reference']}, "
                f"{comparison['encoder']}: {pair['encoder']}"
            )
    if not settings["encoder"]:
        print("\nthe teacher alone: sf-llava bootstrap makes a student, --encoder DIR names one")
    for note in values["notes"]:
        print(f"\nnote: {note}")
    if result.corrupt:
        print(f"\n{len(result.corrupt)} unreadable images left out, the first: {result.corrupt[0]}")
    threads = f", {machine['threads']} thread(s)" if "threads" in machine else ""
    where = f"{settings['dtype']}, batch {settings['batch_size']}, {machine['device']}{threads}"
    print(f"\n{where}; {seconds:.0f} s in all, images/s of the forward pass alone")
    path = Path(settings["output"]) / RESULTS
    write_json(path, values | {"settings": settings, "environment": machine, "seconds": round(seconds, 1)})
    print(f"written to {path}")
    if settings["reduced"]:
        from sf_llava.zero_shot.plot import plot_costs

        plot_costs(values["encoders"], path.with_suffix(".png"), where)
        print(f"and {path.with_suffix('.png')}")
