"""ScienceQA with a LLaVA: its own vision tower, a SparseFormer in its place, and what the image is worth.

    sf-llava scienceqa
        the embedded default, offline: the mini LLaVA on 600 questions of the drawn world, with its own tower, with that
        tower's tokens averaged 2 x 2 and a random quarter of them, and with the student of make quickstart (run
        --data mini:6000 asks more)
    sf-llava scienceqa run --model llava-lcs558k-scienceqa-vicuna-13b-v1.3 --encoder runs/sf-l-64 \\
            --data ScienceQA/data/scienceqa --conversation llava_v1 --dtype fp16 --controls blind shuffled grey
        both towers side by side (paper, Table 7, all / with image: CLIP 91.2 / 88.6, SF-L 64 tokens 89.2 / 84.5);
        killed and started again it continues; sf-llava --processes 8 scienceqa ... shares the work
    sf-llava scienceqa run --towers original random tome visionzip divprune prumerge swapped --tokens 8 16 32
        its own tower with 8, 16 and 32 of its tokens, as they can be had without training, beside the student; on your
        LLaVA with --model, --data and --encoder (tables with intervals and multiply-adds: docs/results.md)
    sf-llava scienceqa run --server http://localhost:8000 --data ScienceQA/data/scienceqa --controls blind shuffled
        asks what `vllm serve LLAVA --model-impl transformers` serves, many questions at once (docs/serving.md)
    sf-llava scienceqa score --problems problems.json --splits pid_splits.json --split test \\
            --predictions answers.jsonl --json score.json
        scores our JSON lines, LLaVA's answers.jsonl or LLaVA's result file (its published one: 3863 of 4241 correct)
    sf-llava scienceqa compare A B --data ScienceQA/data/scienceqa
        the paired difference of two predictions, its 95 % interval and McNemar's test

Expected: a table with one row a tower and control: accuracy over all and over image questions with 95 % intervals, and
how many answers could not be read; paired differences to its own tower; what a picture costs through each.
"""

import argparse
from contextlib import suppress
from pathlib import Path
from typing import Any

from sf_llava import cli
from sf_llava.commands import scienceqa_run
from sf_llava.scienceqa import CONTROLS

TEMPERATURE = cli.Number(float, 0, 100)
TOWERS = ("original", "pooled", "uniform", "random", "tome", "visionzip", "divprune", "prumerge", "swapped")


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="let a LLaVA answer, then score")
    cli.add_flags(run, "model")
    run.add_argument(
        "--encoder",
        nargs="+",
        metavar="DIR",
        help="SparseFormers (or their runs) for the tower's place, one after the other (mini: the quickstart's)",
    )
    run.add_argument(
        "--towers",
        nargs="+",
        choices=TOWERS,
        help="its own; its own with fewer tokens: averaged over the cells of a grid (pooled), one of each (uniform), "
        "drawn once (random), merged by likeness (tome), or chosen as published (visionzip, divprune, prumerge); the "
        "encoders (default: original, swapped with --encoder; mini: with pooled and random)",
    )
    run.add_argument(
        "--tokens", type=cli.LATENTS, nargs="+", metavar="N", help="of its own that stay, one row each (a quarter)"
    )
    cli.add_flags(run, "latents")
    run.add_argument(
        "--positions-and-bias",
        action="store_true",
        help="every tower with fewer tokens once more, these read by RoI centre and weighed for the LLM (no training)",
    )
    run.add_argument("--controls", nargs="+", default=[], choices=CONTROLS, help="ask image questions once more with")
    run.add_argument("--batch-size", type=cli.BATCH, metavar="N", help="questions at once (8; mini: 64)")
    run.add_argument(
        "--server", metavar="URL", help="ask a model that an OpenAI-compatible server has (--model, if many)"
    )
    run.add_argument("--concurrency", type=cli.THREADS, metavar="N", help="requests in flight to --server (32)")
    cli.add_flags(run, "max-new-tokens")
    run.add_argument("--temperature", type=TEMPERATURE, default=0.0, help="0: greedy (%(default)s)")
    cli.add_flags(run, "tower", "conversation", "device", "dtype", "bits")
    cli.add_flags(run, "output", "limit", "seed", output="runs/scienceqa")
    score = commands.add_parser("score", help="score predictions")
    score.add_argument(
        "--predictions", required=True, metavar="FILE", help="JSON lines (question_id, text) or LLaVA's result file"
    )
    compare = commands.add_parser("compare", help="compare two predictions (or two files of score --json)")
    compare.add_argument("first", metavar="A", help="predictions or a score")
    compare.add_argument("second", metavar="B", help="the same of the other")
    for command in (run, score, compare):
        command.add_argument("--data", metavar="NAME", help="folder as published, parquet:PATH, hub:NAME or mini[:N]")
        command.add_argument("--split", default="test", help="split (%(default)s)")
    for command in (score, compare):
        cli.add_flags(command, "json")
        command.add_argument("--problems", metavar="FILE", help="problems.json, in place of --data")
        command.add_argument("--splits", metavar="FILE", help="pid_splits.json, in place of --data")
    arguments = cli.parse(parser, argv)
    if arguments.command == "run":
        if 0 < arguments.temperature < 0.01:
            parser.error("argument --temperature: below 0.01 only the likeliest token is left: that is 0, greedy")
        arguments.model = arguments.model.rstrip("/") or arguments.model
        if arguments.server is None and arguments.concurrency is not None:
            parser.error("argument --concurrency: requests to a --server, which is not named")
        for name in scienceqa_run.LOCAL if arguments.server is not None else ():
            if getattr(arguments, name) != run.get_default(name):
                parser.error(f"argument --{name.replace('_', '-')}: a --server decides that itself, when it is started")
    elif bool(arguments.problems) != bool(arguments.splits) or (arguments.problems and arguments.data):
        parser.error("name the questions once: --problems FILE and --splits FILE, or --data NAME")
    arguments.data = arguments.data and (arguments.data.rstrip("/") or arguments.data)
    return arguments


def main(argv: list[str]) -> None:
    """Run, score or compare."""
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        argv = ["run", *argv]
    arguments = parse(argv)
    {"run": scienceqa_run.run, "score": score, "compare": compare}[arguments.command](arguments)


def score(arguments: argparse.Namespace) -> None:
    """Score one file of predictions."""
    from sf_llava.files import require_writable_file, write_json
    from sf_llava.scienceqa.report import percent, print_scores

    if arguments.json:
        require_writable_file(arguments.json)
    result = score_file(arguments.predictions, arguments)
    print_scores(f"{arguments.predictions}, split {arguments.split}", [("", result)])
    for name, group in result["breakdown"].items():
        print(f"  {name:6}{percent(group['accuracy'])}  {group['correct']} of {group['total']}")
    if result.get("unknown"):
        print(f"{result['unknown']:,} predictions are for other questions, and do not count")
    if arguments.json:
        write_json(arguments.json, result)


def compare(arguments: argparse.Namespace) -> None:
    """Compare two files of predictions."""
    from sf_llava.files import require_writable_file, write_json
    from sf_llava.scienceqa import scoring
    from sf_llava.scienceqa.report import print_comparison

    if arguments.json:
        require_writable_file(arguments.json)
    first, second = (score_file(file, arguments) for file in (arguments.first, arguments.second))
    result = scoring.compare(first, second)
    print_comparison("A - B", result)
    neither = first["total"] - result["all"]["total"]
    if neither:
        print(f"{neither:,} of {first['total']:,} questions, which neither answered, are left out")
    if first["missing"] > neither or second["missing"] > neither:
        counts = [f"{one['missing'] - neither:,}" for one in (first, second)]
        print(f"A left {counts[0]} and B {counts[1]} that the other answered; these count as wrong")
    if arguments.json:
        write_json(arguments.json, result)


def score_file(path: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Read a score, or read predictions and score them."""
    from sf_llava.files import read_json
    from sf_llava.scienceqa import scoring
    from sf_llava.scienceqa.data import open_published, open_scienceqa, read_predictions

    saved = None
    if Path(path).is_file():
        with suppress(ValueError):
            saved = read_json(path)
    if isinstance(saved, dict) and isinstance(saved.get("answers"), dict):
        if not scoring.is_score(saved):
            raise ValueError(f"{path} is no score of this program: expected what score --json writes")
        return saved
    if arguments.problems and arguments.splits:
        images = Path(arguments.problems).with_name("images")
        data = open_published(arguments.problems, arguments.splits, images, arguments.split)
    elif arguments.data:
        data = open_scienceqa(arguments.data, arguments.split)
    else:
        raise ValueError("name the questions: --problems FILE --splits FILE, or --data NAME")
    return scoring.score(data.problems, read_predictions(path))
