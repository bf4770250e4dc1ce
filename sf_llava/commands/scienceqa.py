"""ScienceQA with a LLaVA: its own vision tower, a SparseFormer in its place, and what the image is worth.

    sf-llava scienceqa
        the embedded default, offline: the mini LLaVA on 600 questions of the drawn world, with its own tower, with that
        tower's tokens averaged 2 x 2, and with the student of make quickstart (run --data mini:6000 asks more)
    sf-llava scienceqa run --model llava-lcs558k-scienceqa-vicuna-13b-v1.3 --encoder runs/sf-l-64 \\
            --data ScienceQA/data/scienceqa --conversation llava_v1 --dtype fp16 --controls blind shuffled grey
        both towers side by side (paper, Table 7, all / with image: CLIP 91.2 / 88.6, SF-L 64 tokens 89.2 / 84.5);
        killed and started again it continues; torchrun --nproc_per_node 8 -m sf_llava scienceqa ... shares the work
    sf-llava scienceqa run --server http://localhost:8000 --data ScienceQA/data/scienceqa --controls blind shuffled
        asks what `vllm serve LLAVA --model-impl transformers` serves, many questions at once (docs/serving.md)
    sf-llava scienceqa score --problems problems.json --splits pid_splits.json --split test \\
            --predictions answers.jsonl --json score.json
        scores our JSON lines, LLaVA's answers.jsonl or LLaVA's result file (its published one: 3863 of 4241 correct)
    sf-llava scienceqa compare A B --data ScienceQA/data/scienceqa
        the paired difference of two predictions, its 95 % interval and McNemar's test

Expected: a table with one row a tower and control: accuracy over all and over image questions with 95 % intervals, and
how many answers could not be read.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf_llava import cli
from sf_llava.catalogue import QUICKSTART
from sf_llava.scienceqa import CONTROLS

if TYPE_CHECKING:
    from sf_llava.llava.towers import Tower
    from sf_llava.scienceqa.asking import Generation

MINI = "mini"
TOKENS = cli.Number(int, 1, 2**20)
TEMPERATURE = cli.Number(float, 0, 100)
TOWERS = ("original", "pooled", "swapped")
SERVED = "served"
LOCAL = ("encoder", "towers", "positions_and_bias", "batch_size", "tower", "conversation", "device", "dtype", "bits")
"""Flags about a model in this process."""
DECISIVE = ("model", "data", "split", "limit", "seed", "dtype", "bits", "max_new_tokens", "temperature", "conversation")


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
        help="its own, its own with tokens averaged 2 x 2, the encoders (default: original, swapped with --encoder; "
        "mini: all)",
    )
    run.add_argument(
        "--positions-and-bias",
        action="store_true",
        help="swapped tower once more, its latents read by RoI centre and weighed for the LLM (no training)",
    )
    run.add_argument("--controls", nargs="+", default=[], choices=CONTROLS, help="ask image questions once more with")
    run.add_argument("--batch-size", type=cli.BATCH, metavar="N", help="questions at once (8; mini: 64)")
    run.add_argument(
        "--server", metavar="URL", help="ask a model that an OpenAI-compatible server has (--model, if many)"
    )
    run.add_argument("--concurrency", type=cli.THREADS, metavar="N", help="requests in flight to --server (32)")
    run.add_argument("--max-new-tokens", type=TOKENS, default=1024, help="answers run to 3,500 letters (%(default)s)")
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
        for name in LOCAL if arguments.server is not None else ():
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
    {"run": run, "score": score, "compare": compare}[arguments.command](arguments)


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
    if first["missing"] or second["missing"]:
        counts = f"A left {first['missing']:,} and B {second['missing']:,} unanswered, which counts as wrong"
        print(f"of {first['total']:,} questions {counts}")
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


def run(arguments: argparse.Namespace) -> None:
    """Check what can be checked at once, hold the output, and answer."""
    if arguments.server is not None:
        return ask_served(arguments)
    import torch
    from accelerate import PartialState

    from sf_llava.devices import choose_device
    from sf_llava.files import locked
    from sf_llava.model.loading import find_encoder

    if arguments.model == MINI:
        choose_mini(arguments)
    towers = choose_towers(arguments)
    for encoder in arguments.encoder or []:
        find_encoder(encoder)
    on_cpu = arguments.device == "cpu" or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=30))  # the shares of processes can differ by hours
    device = choose_device(arguments.device)
    with locked(arguments.output) if state.is_main_process else nullcontext(), cli.when_stopped(kept(arguments)):
        answer(arguments, towers, state, device)


def answer(arguments: argparse.Namespace, towers: dict[str, "Tower"], state: Any, device: Any) -> None:
    """Answer with every tower and control, score, print side by side, save."""
    import transformers

    from sf_llava.llava.towers import tower_in_place
    from sf_llava.measure.store import digest_weights
    from sf_llava.report import environment
    from sf_llava.scienceqa.run import Answerer, answer_all, digest_llm

    transformers.utils.logging.disable_progress_bar()
    data = open_data(arguments)
    model, processor = load(arguments, device)
    common = {name: getattr(arguments, name) for name in DECISIVE} | {"llm_weights": digest_llm(model)}
    scores: dict[str, dict[str, Any]] = {}
    for tower, chosen in towers.items():
        with tower_in_place(model, processor, chosen) as num_patches:
            answerer = Answerer(
                model, processor, generation(arguments), num_patches if chosen.positions_and_bias else None
            )
            for control in (None, *arguments.controls):
                if (name := name_of(tower, control)) in scores:
                    continue
                settings = dict(common)
                if control != "blind":
                    settings |= {"tower": chosen.where, "placed": answerer.num_patches is not None}
                    settings["tower_weights"] = digest_weights(answerer.model.model.vision_tower)
                ask = partial(
                    answer_all,
                    answerer,
                    settings=settings,
                    batch_size=arguments.batch_size or 8,
                    rank=state.process_index,
                    num_processes=state.num_processes,
                    wait=state.wait_for_everyone,
                )
                scores[name] = answer_and_score(ask, data, arguments, name, control, state)
    if state.is_main_process:
        conclude(arguments, data, scores, list(towers), environment(device.type))


def ask_served(arguments: argparse.Namespace) -> None:
    """Ask a served model, plainly and with every control; score, print, save."""
    from accelerate import PartialState

    from sf_llava.files import locked
    from sf_llava.scienceqa.server import CONCURRENCY, Server, ask_server

    state = PartialState(cpu=True)
    if state.num_processes > 1:
        raise ValueError(f"a server is asked by one process, not {state.num_processes}: start this without torchrun")
    with locked(arguments.output), cli.when_stopped(kept(arguments)):
        data = open_data(arguments)
        model = None if arguments.model == MINI else arguments.model
        server = Server(arguments.server, generation(arguments), model)
        settings = {name: getattr(arguments, name) for name in DECISIVE if name not in ("model", *LOCAL)}
        scores: dict[str, dict[str, Any]] = {}
        for control in (None, *arguments.controls):
            ask = partial(ask_server, server, settings=settings, concurrency=arguments.concurrency or CONCURRENCY)
            name = name_of(SERVED, control)
            scores[name] = answer_and_score(ask, data, arguments, name, control, state)
        arguments.model = server.identity["model"]
        conclude(arguments, data, scores, [SERVED], {"served": server.identity})


def kept(arguments: argparse.Namespace) -> str:
    """Say what a stopped run leaves."""
    return f"the answers so far are kept in {arguments.output}, and the same command goes on with the rest"


def generation(arguments: argparse.Namespace) -> "Generation":
    """How answers are generated."""
    from sf_llava.scienceqa.asking import Generation

    return Generation(arguments.max_new_tokens, arguments.temperature, arguments.seed, arguments.conversation)


def conclude(
    arguments: argparse.Namespace,
    data: Any,
    scores: dict[str, dict[str, Any]],
    towers: list[str],
    environment: dict[str, Any],
) -> None:
    """Print all rows side by side, and save them."""
    from sf_llava.files import write_json
    from sf_llava.scienceqa.report import print_run

    found = print_run(f"{arguments.model} on {data.name}, split {data.split}", scores, towers, data.name == MINI)
    path = Path(arguments.output) / "results.json"
    write_json(path, {"settings": vars(arguments), "environment": environment, "scores": scores} | found)
    print(f"written to {path}")


def choose_mini(arguments: argparse.Namespace) -> None:
    """Fill in what the embedded default needs: its questions, and the quickstart's student if there is one."""
    arguments.data = arguments.data or MINI
    arguments.batch_size = arguments.batch_size or 64
    if arguments.encoder is None and (arguments.towers is None or "swapped" in arguments.towers):
        arguments.encoder = [str(QUICKSTART)] if (QUICKSTART / "encoder").is_dir() else []
        if not arguments.encoder:
            print(f"no student in {QUICKSTART}, so the original tower alone: make quickstart trains one in minutes")
    if arguments.towers is None:
        arguments.towers = ["original", "pooled", "swapped"] if arguments.encoder else ["original", "pooled"]


def choose_towers(arguments: argparse.Namespace) -> "dict[str, Tower]":
    """Say which towers to ask through, by the name of their row and folder.

    Raises:
        ValueError: a swap without an encoder, or two rows of one name.
    """
    from sf_llava.llava.towers import SWAPPED, Tower

    encoders = [Path(encoder) for encoder in arguments.encoder or []]
    chosen: list[tuple[str, Tower]] = []
    for kind in dict.fromkeys(arguments.towers or (["original", SWAPPED] if encoders else ["original"])):
        if kind != SWAPPED:
            chosen.append((kind, Tower(kind)))
        elif not encoders:
            raise ValueError("--towers swapped needs --encoder DIR")
        for encoder in encoders if kind == SWAPPED else []:
            name = SWAPPED if len(encoders) == 1 else f"{SWAPPED}-{encoder.name or encoder.resolve().name}"
            chosen.append((name, Tower(SWAPPED, encoder)))
            if arguments.positions_and_bias:
                chosen.append((f"{name}-placed", Tower(SWAPPED, encoder, positions_and_bias=True)))
    if arguments.positions_and_bias and not any(tower.positions_and_bias for _, tower in chosen):
        raise ValueError("--positions-and-bias is for the swapped tower: give --encoder DIR, and no other --towers")
    rows: dict[str, str] = {}
    for name, tower in chosen:
        for row in dict.fromkeys(name_of(name, control) for control in (None, *arguments.controls)):
            if row != "blind" and row in rows:
                raise ValueError(
                    f"{rows[row]} and {tower.where} would both be called {row}: name their runs, or rename one"
                )
            rows[row] = tower.where
    return dict(chosen)


def name_of(tower: str, control: str | None) -> str:
    """Name one row of the table and its folder; without an image the tower does not matter."""
    if control is None:
        return tower
    return control if control == "blind" else f"{tower}-{control}"


def open_data(arguments: argparse.Namespace) -> Any:
    """Open the questions, or --limit of them."""
    import dataclasses
    import random

    from sf_llava.scienceqa.data import open_scienceqa

    if arguments.data is None:
        raise ValueError("name the questions: --data mini, or DIR with problems.json, pid_splits.json and images/")
    data = open_scienceqa(arguments.data, arguments.split)
    if first := next((problem for problem in data.problems if problem.has_image), None):
        data.load_image(first)  # or raise now, not after the model is loaded
    if arguments.limit is None:
        return data
    chosen = random.Random(arguments.seed).sample(range(len(data.problems)), min(arguments.limit, len(data.problems)))
    return dataclasses.replace(data, problems=[data.problems[index] for index in sorted(chosen)])


def load(arguments: argparse.Namespace, device: Any) -> Any:
    """Load the LLaVA and its processor."""
    from sf_llava.devices import as_dtype
    from sf_llava.llava.loading import load_llava

    placement: dict[str, Any] = {"device_map": {"": device}}
    if arguments.bits:
        from sf_llava.llava.quantisation import quantisation_config

        placement["quantization_config"] = quantisation_config(arguments.bits, as_dtype(arguments.dtype))
    return load_llava(arguments.model, dtype=arguments.dtype, tower=arguments.tower, **placement)


def answer_and_score(
    ask: Callable[..., dict[str, str]],
    data: Any,
    arguments: argparse.Namespace,
    name: str,
    control: str | None,
    state: Any,
) -> dict[str, Any]:
    """Answer under one control into the folder of its row, with progress, and score."""
    from sf_llava.files import write_json
    from sf_llava.scienceqa import scoring

    questions = [problem for problem in data.problems if problem.has_image or control is None]
    output = Path(arguments.output) / name
    with running_accuracy(name, len(questions), state) as progress:
        texts = ask(data=data, output=output, control=control, progress=progress)
    result = scoring.score(questions, texts)
    if state.is_main_process:
        write_json(output / "score.json", result)
    return result


@contextmanager
def running_accuracy(name: str, total: int, state: Any) -> Iterator[Callable[[Any, str], None]]:
    """Show a bar with the accuracy of this process's answers so far; silent without a terminal."""
    from tqdm import tqdm

    from sf_llava.scienceqa.scoring import parse_answer

    right = []
    total = -(-total // state.num_processes)
    with tqdm(desc=name, total=total, unit="question", disable=None if state.is_main_process else True) as bar:

        def progress(problem: Any, text: str) -> None:
            right.append(parse_answer(text, len(problem.choices)) == problem.answer)
            bar.update()
            bar.set_postfix(accuracy=f"{sum(right) / len(right):.1%}")

        yield progress
