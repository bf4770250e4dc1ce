"""Zero-shot classification of a teacher and its student in one run.

    python eval/zero_shot.py
        the mini teacher and the quickstart's student on the drawn world: a table within a minute or two on two cores
    python eval/zero_shot.py --encoder runs/sf-l-64 --teacher open_clip:ViT-L-14-quickgelu/openai \\
            --data folder:/data/imagenet/val --dtype fp16 --batch-size 256 --workers 12
        ImageNet with its 1,000 names and 80 templates (paper, Table 6: CLIP L/14 75.4, SF-L with 64 tokens 73.6)
    python eval/zero_shot.py --encoder runs/cifar --teacher runs/cifar_clip --data parquet:cifar10/validation.parquet

Expected: one row an encoder with top-1, its 95 % interval, top-5, retention (student / teacher), cosine to the teacher,
tokens, parameters and images/s of the forward pass; a JSON file with these, accuracies by class, where teacher and
student differ, unreadable images, device, dtype and versions. A classification teacher (timm's AugReg) and its student
are scored through their own classifier.
"""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf_llava import cli

if TYPE_CHECKING:
    from sf_llava.evaluation import Encoder, ZeroShotResult
    from sf_llava.teachers.base import Teacher

QUICKSTART = "runs/quickstart/encoder"


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", metavar="NAME", help="default: the one the student's run names, else mini")
    parser.add_argument("--encoder", metavar="DIR", help=f"student: encoder or run directory (default: {QUICKSTART})")
    parser.add_argument("--data", default="mini", metavar="NAME", help="labelled images (%(default)s)")
    parser.add_argument("--classes", metavar="NAME", help="mini, cifar10, imagenet or FILE.json (default: the data's)")
    parser.add_argument("--templates", metavar="NAME", help="a class set's, simple, FILE.json or one text with {}")
    parser.add_argument("--batch-size", type=int, default=64, help="images a forward pass (%(default)s)")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda ... (%(default)s: the GPU where there is one)"
    )
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "fp16", "bf16"], help="of weights (%(default)s)")
    parser.add_argument("--output", default="runs/zero_shot.json", metavar="FILE", help="results (%(default)s)")
    parser.add_argument(
        "--workers", type=int, default=0, help="decoding processes (%(default)s: none besides this one)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="evaluate on N images, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0, help="of --limit's draw (%(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Load, run, print, save."""
    arguments = parse(argv)

    import torch
    import transformers

    from sf_llava.data import open_labelled
    from sf_llava.evaluation import evaluate_zero_shot, zero_shot_task
    from sf_llava.teachers import load_teacher

    transformers.utils.logging.disable_progress_bar()  # of loading weights; the bars here are of the evaluation
    started = time.perf_counter()
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[arguments.dtype]
    encoder, teacher_name = choose(arguments)
    teacher = load_teacher(teacher_name, dtype=dtype, device=device)
    encoders = build_encoders(teacher, encoder, dtype, device)
    images = open_labelled(arguments.data)

    with progress(None, "prompts") as bar:
        task = zero_shot_task(
            teacher, images, arguments.classes, arguments.templates, arguments.limit, arguments.seed, bar.update
        )
    with progress(len(task.indices), "images") as bar:
        result = evaluate_zero_shot(
            task, encoders, batch_size=arguments.batch_size, workers=arguments.workers, advance=bar.update
        )
    settings = vars(arguments) | {"teacher": teacher_name, "encoder": encoder, "device": device}
    report(result, settings, time.perf_counter() - started)


def choose(arguments: argparse.Namespace) -> tuple[str | None, str]:
    """Fill in what was not asked for: the quickstart's student where it exists, and the teacher its run names."""
    from sf_llava.checkpoints.encoder import find_encoder
    from sf_llava.files import read_json

    encoder = arguments.encoder
    if encoder is None and arguments.teacher in (None, "mini") and (Path(QUICKSTART) / "config.json").is_file():
        encoder = QUICKSTART
    teacher = arguments.teacher
    if encoder is not None and teacher is None:
        run = find_encoder(encoder).parent / "config.json"
        teacher = read_json(run).get("teacher") if run.is_file() else None
    return encoder, teacher or "mini"


def build_encoders(teacher: "Teacher", encoder: str | None, dtype: Any, device: str) -> "list[Encoder]":
    """Put the teacher, and the student where there is one, side by side."""
    from sf_llava.checkpoints.encoder import load_encoder
    from sf_llava.evaluation import student_encoder, teacher_encoder

    encoders = [teacher_encoder(teacher)]
    if encoder is not None:
        encoders.append(student_encoder(load_encoder(encoder, dtype=dtype, device=device), teacher))
    return encoders


def progress(total: int | None, what: str) -> Any:
    """Open a progress bar; without a terminal it stays silent."""
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit=what.removesuffix("s"), disable=None, leave=False)


def report(result: "ZeroShotResult", settings: dict[str, Any], seconds: float) -> None:
    """Print the table and what a reader should know beside it; write the JSON file."""
    import transformers

    from sf_llava.benchmark.report import environment, print_table
    from sf_llava.files import write_json

    values = result.to_dict()
    machine = environment(settings["device"]) | {"transformers": transformers.__version__}
    prompts = f"{len(values['templates'])} prompts a class" if values["templates"] else "own classifier"
    classes = f"{values['num_classes']} classes ({values['classes']}), {prompts}"
    print_table(
        f"{settings['teacher']} on {settings['data']}: {values['num_images']} images, {classes}", *result.table()
    )
    for comparison in values["comparisons"]:
        low, high = (100 * bound for bound in comparison["top1_difference_interval"])
        print(
            f"\n{comparison['encoder']} - {comparison['reference']}: {100 * comparison['top1_difference']:+.2f} points "
            f"of top-1 (95 % {low:+.2f} to {high:+.2f}, paired); same answer on {comparison['agreement']:.1%} of images"
        )
    if settings["encoder"] is None:
        print("\nthe teacher alone: python scripts/bootstrap_clip.py makes a student, --encoder DIR names one")
    if values["labels_matched_by"] == "position":
        print("\nthe data set's class names are others: labels were matched by their order")
    if result.corrupt:
        print(f"\n{len(result.corrupt)} unreadable images left out, the first: {result.corrupt[0]}")
    threads = f", {machine['threads']} thread(s)" if "threads" in machine else ""
    where = f"{settings['dtype']}, batch {settings['batch_size']}, {machine['device']}{threads}"
    print(f"\n{where}; {seconds:.0f} s in all, images/s of the forward pass alone")
    write_json(
        settings["output"], values | {"settings": settings, "environment": machine, "seconds": round(seconds, 1)}
    )
    print(f"written to {settings['output']}")


if __name__ == "__main__":
    cli.run(main)
