"""Semantic segmentation on an encoder: train a head on its latents, score it, draw masks (paper: Eq. 6-7, Table 5).

    sf-llava segment train
        the embedded default, offline: the masks of the drawn world on the quickstart's student, in minutes
    sf-llava segment train --encoder runs/sf-b --data ade20k:/data/ADEChallengeData2016 --dtype bf16 --output runs/ade
        the paper's recipe: 80,000 steps of 32 views at 512 px, 256 latents from an encoder of 49 (paper: SF-B 49.3,
        SF-L 51.5 mIoU); accelerate launch -m sf_llava segment train ... on many GPUs. Killed, the same command with
        --resume goes on, on a CPU to the same bits
    sf-llava segment train --data folder:/data/roads/train --val-data folder:/data/roads/val --encoder runs/sf-b
        images/ and masks/ (PNG, the number of a class in each pixel, 255 not counted) with files of the same names, and
        classes.txt, one a line; parquet:FILES and hub:NAME with columns image and mask need --classes
    sf-llava segment train --backbone teacher ...
        for comparison: the same head on the teacher's patches; random: on an encoder of new weights; unet: a U-Net of
        the same multiply-adds
    sf-llava segment eval runs/segment runs/segment-teacher
        side by side on the same pictures, with paired intervals
    sf-llava segment predict runs/segment --images folder:photos --output masks

Expected: mIoU with its 95 % interval, aAcc and mAcc by mmsegmentation's protocol (one confusion matrix over the set in
the masks' own size, ignored pixels left out), a row a class; DIR/segmenter, DIR/results.json, DIR/predictions.png.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sf_llava import cli

MINI = "mini"
PIXELS = cli.Number(int, 8, 2**13)
SHARE = cli.Number(float, 0, 0.99)
PREDICTED_AT_ONCE = 16


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_train(commands.add_parser("train", help="train a head and the encoder below it"))
    scored = commands.add_parser("eval", help="score segmenters side by side")
    scored.add_argument("runs", nargs="+", metavar="RUN", help="run or segmenter; the first one is compared with")
    _add_data(scored, "data", "pictures with masks (default: what the first run was validated on)")
    scored.add_argument("--mode", choices=["slide", "whole"], default="slide", help="windows, or pictures whole")
    cli.add_flags(scored, "output", output="runs/segment-eval")
    drawn = commands.add_parser("predict", help="write masks of pictures")
    drawn.add_argument("runs", nargs=1, metavar="RUN", help="run or segmenter")
    drawn.add_argument("--images", default="mini-test", metavar="NAME", help="pictures: folder:DIR, ... (drawn ones)")
    drawn.add_argument("--mode", choices=["slide", "whole"], default="slide", help="windows, or pictures whole")
    cli.add_flags(drawn, "output", output="runs/masks")
    for one in (scored, drawn):
        one.add_argument("--num-images", type=cli.POSITIVE_INT, metavar="N", help="the first N alone (all)")
        cli.add_flags(one, "batch-size", "device", batch_size=8)
    return cli.parse(parser, argv)


def _add_data(parser: argparse.ArgumentParser, name: str, text: str) -> None:
    parser.add_argument(f"--{name}", metavar="NAME", help=text)
    parser.add_argument("--classes", metavar="NAMES", help="names with commas between, or a file with one a line")
    parser.add_argument(
        "--ignored", type=cli.COUNT, nargs="+", metavar="N", help="numbers in the masks not counted, beside 255"
    )


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_data(parser, "data", "pictures with masks: ade20k:ROOT, folder:ROOT, parquet:FILES, hub:NAME (mini)")
    parser.add_argument("--val-data", metavar="NAME", help="to score on (default: the validation part of --data)")
    parser.add_argument("--val-images", type=cli.POSITIVE_INT, metavar="N", help="the first N of them alone (all)")
    parser.add_argument("--encoder", metavar="DIR", help="SparseFormer, or its run (the quickstart's)")
    parser.add_argument(
        "--backbone", choices=["student", "random", "teacher", "unet"], default="student", help="(%(default)s)"
    )
    parser.add_argument("--recipe", choices=["mini", "small", "ade20k"], help="(mini on the drawn world, else ade20k)")
    parser.add_argument("--num-latents", type=cli.LATENTS, metavar="N", help="of the encoder (ade20k: 256; others: 32)")
    parser.add_argument("--image-size", type=PIXELS, metavar="N", help="side of a view (ade20k: 512; others: 64)")
    parser.add_argument("--freeze", action="store_true", help="train the head alone")
    parser.add_argument("--steps", type=cli.POSITIVE_INT, metavar="N", help="(ade20k: 80,000; others: 600)")
    parser.add_argument("--micro-batch-size", type=cli.BATCH, metavar="N", help="of a batch, at once in a process")
    parser.add_argument("--lr", type=cli.POSITIVE, metavar="X", help="of the head (ade20k: 2e-4; others: 2e-3)")
    parser.add_argument(
        "--encoder-lr-scale",
        type=cli.NON_NEGATIVE,
        metavar="X",
        help="of the encoder, relative (ade20k: 0.1; others: 0.25)",
    )
    parser.add_argument(
        "--drop-path", type=SHARE, metavar="X", help="in the last block (ade20k: 0.3; small: 0.1; mini: 0)"
    )
    parser.add_argument("--save-every", type=cli.POSITIVE_INT, default=500, metavar="N", help="steps (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output; start it if it is none")
    parser.add_argument(
        "--batch-size", type=cli.BATCH, metavar="N", help="views a step, of all processes (ade20k: 32; others: 16)"
    )
    cli.add_flags(parser, "teacher", "output", "seed", "device", "dtype", "workers", output="runs/segment")


def main(argv: list[str]) -> None:
    """Parse, run, print."""
    arguments = parse(argv)

    cli.hide_loading_bars()
    {"train": train, "eval": score, "predict": predict}[arguments.command](arguments)


def train(arguments: argparse.Namespace) -> None:
    """Train, score, print."""
    from accelerate import PartialState

    from sf_llava.catalogue import default_encoder
    from sf_llava.data.loading import choose_workers
    from sf_llava.data.masked import has_splits
    from sf_llava.devices import choose_device, choose_precision
    from sf_llava.segmentation.config import SegmentConfig
    from sf_llava.segmentation.run import train as run

    asked = dict(vars(arguments))
    data = asked["data"] = asked["data"] or MINI
    if asked["val_data"] is None and not has_splits(data):
        raise ValueError(f"{data} is one set: name pictures to score on with `val_data`")
    asked["val_data"] = asked["val_data"] or data
    if asked["encoder"] is None:
        asked["encoder"], remark = default_encoder()
        print(remark or f"encoder: {asked['encoder']}")
    device = choose_device(arguments.device)
    asked |= dict(
        ignored=tuple(asked["ignored"] or ()),
        dtype=choose_precision(arguments.dtype, device),
        workers=choose_workers(arguments.workers),
        device=device.type,
    )
    recipe = asked.pop("recipe") or (MINI if data.partition(":")[0] == MINI else "ade20k")
    resume = asked.pop("resume")
    del asked["command"]
    config = SegmentConfig.of(recipe, **asked)
    kept = f"what {config.output} holds is whole, and the same command with `resume` goes on from its newest checkpoint"
    with cli.when_stopped(kept):
        results = run(config, resume)
    if PartialState().is_main_process:
        print_scores(f"{config.backbone} on {config.val_data}", results)
        print(f"\nsegmenter {config.output}/segmenter\nresults   {config.output}/results.json")


def score(arguments: argparse.Namespace) -> None:
    """Score, print, write."""
    from sf_llava import files
    from sf_llava.data.masked import open_masked, parse_labels
    from sf_llava.devices import choose_device
    from sf_llava.report import environment, print_table
    from sf_llava.segmentation.evaluation import evaluate
    from sf_llava.segmentation.run import describe, png
    from sf_llava.segmentation.segmenter import load_segmenter

    device, output = choose_device(arguments.device), Path(arguments.output)
    segmenters = [load_segmenter(run, device) for run in arguments.runs]
    name, classes, ignored = arguments.data, arguments.classes, arguments.ignored or []
    if name is None:
        name, classes, ignored = _validated_on(Path(arguments.runs[0]))
    source = open_masked(name, "validation", parse_labels(classes, ignored))
    print(describe(name, source))
    with _bar(len(source)) as advance, cli.when_stopped("nothing is written: start again"):
        found = evaluate(segmenters, source, arguments.mode, arguments.batch_size, arguments.num_images, advance)
    rows, results = [], {}
    for run, scores, sheet in zip(arguments.runs, found.scores, found.sheets, strict=True):
        values = results[run] = scores.to_dict()
        gap = ""
        if scores is not found.scores[0]:
            difference = values["difference_from_first"] = list(scores.difference(found.scores[0]))
            gap = "{:+.2f} ({:+.2f} to {:+.2f})".format(*(100 * value for value in difference))
        rows.append([run, *_headline(values), gap])
        files.write_bytes(output / f"{Path(run).name}.png", png(sheet))
    print_table(f"{name}, {arguments.mode}", ["run", *HEADLINE, "mIoU from the first (95 %, paired)"], rows)
    print_scores(arguments.runs[0], results[arguments.runs[0]])
    settings = {"data": name, "mode": arguments.mode, "left_out": found.left_out}
    files.write_json(output / "results.json", settings | {"runs": results, "environment": environment(device.type)})
    if found.left_out:
        print(f"\n{len(found.left_out)} left out, the first: {found.left_out[0]}")
    print(f"\npictures and results.json in {output}")


def predict(arguments: argparse.Namespace) -> None:
    """Write masks."""
    import io

    from sf_llava import files
    from sf_llava.data import CorruptImageError, open_images
    from sf_llava.devices import choose_device
    from sf_llava.segmentation.inference import predict as run
    from sf_llava.segmentation.pictures import colour_mask
    from sf_llava.segmentation.segmenter import load_segmenter

    segmenter = load_segmenter(arguments.runs[0], choose_device(arguments.device))
    images, output = open_images(arguments.images), Path(arguments.output)
    total = min(len(images), arguments.num_images or (PREDICTED_AT_ONCE if arguments.images == "mini-test" else 10**9))
    unreadable = []
    with _bar(total) as advance, cli.when_stopped(f"the masks in {output} are whole"):
        for index in range(total):
            try:
                image = images.load(index)
            except CorruptImageError as error:
                unreadable.append(str(error))
                continue
            (found,) = run(segmenter, [image], None, arguments.mode, arguments.batch_size)
            buffer = io.BytesIO()
            colour_mask(found, len(segmenter.class_names)).save(buffer, "PNG")
            files.write_bytes(output / f"{index:06d}.png", buffer.getvalue())
            advance(1)
    files.write_bytes(output / "classes.txt", "".join(f"{name}\n" for name in segmenter.class_names).encode())
    names = {f"{index:06d}.png": images.describe(index) for index in range(total)}
    files.write_json(output / "pictures.json", names)
    print(f"{total - len(unreadable)} masks in {output}, named by pictures.json, classes by classes.txt")
    if unreadable:
        print(f"{len(unreadable)} pictures cannot be read, the first: {unreadable[0]}")


HEADLINE = ("mIoU", "95 %", "aAcc", "mAcc")


def _headline(values: dict[str, Any]) -> list[str]:
    low, high = values["mIoU_interval"]
    return [
        f"{100 * values['mIoU']:.2f}",
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{100 * values['aAcc']:.2f}",
        f"{100 * values['mAcc']:.2f}",
    ]


def print_scores(title: str, values: dict[str, Any]) -> None:
    """Print a row a class, and the scores of the set."""
    from sf_llava.report import print_table

    total = sum(row["pixels"] for row in values["classes"])
    rows = [
        [row["name"], *("" if row[kind] is None else f"{100 * row[kind]:.2f}" for kind in ("IoU", "Acc")),
         f"{row['pixels'] / total:.1%}"]
        for row in values["classes"]
    ]  # fmt: skip
    print_table(f"{title}, {values['pictures']:,} pictures", ["class", "IoU", "Acc", "pixels"], rows)
    print_table("all", HEADLINE, [_headline(values)])
    if "costs" in values:
        costs = values["costs"]
        print(
            f"\n{costs['parameters'] / 1e6:.2f} M parameters, {costs['multiply_adds'] / 1e9:.3f} G multiply-adds at "
            f"{costs['image_size']} px; {values['environment']['device']}"
        )


def _validated_on(run: Path) -> tuple[str, str | None, list[int]]:
    from sf_llava import files

    if not (run / "config.json").is_file():
        raise ValueError(f"{run} is no run that says what it was validated on: name `data`")
    config = files.read_json_object(run / "config.json")
    return config["val_data"], config["classes"], config["ignored"]


@contextmanager
def _bar(total: int) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(total=total, unit="picture", disable=None, leave=False) as bar:
        yield bar.update
