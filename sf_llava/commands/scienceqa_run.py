"""``sf-llava scienceqa run``: a LLaVA in this process, or one that is served, answers; each row is scored and saved."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf_llava import cli
from sf_llava.catalogue import default_encoder

if TYPE_CHECKING:
    from sf_llava.llava.towers import Tower
    from sf_llava.scienceqa.asking import Generation

MINI = "mini"
SERVED = "served"
COMPARED = ("encoder", "towers", "tokens", "positions_and_bias")
LOCAL = (*COMPARED, "batch_size", "tower", "conversation", "device", "dtype", "bits")
"""Flags about a model in this process."""
DECISIVE = ("model", "data", "split", "limit", "seed", "dtype", "bits", "max_new_tokens", "temperature", "conversation")


def run(arguments: argparse.Namespace) -> None:
    """Check what can be checked at once, hold the output, and answer."""
    if arguments.server is not None:
        return ask_served(arguments)
    import torch
    from accelerate import PartialState

    from sf_llava.devices import choose_device, choose_precision
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
    arguments.dtype = choose_precision(arguments.dtype, device)
    with locked(arguments.output) if state.is_main_process else nullcontext(), cli.when_stopped(kept(arguments)):
        answer(arguments, towers, state, device)


def answer(arguments: argparse.Namespace, towers: dict[str, "Tower"], state: Any, device: Any) -> None:
    """Answer with every tower and control, score, print side by side, save."""
    from dataclasses import replace

    from sf_llava.llava.costs import count_picture_costs
    from sf_llava.llava.towers import tower_in_place
    from sf_llava.measure.store import digest_weights
    from sf_llava.report import environment
    from sf_llava.scienceqa.run import Answerer, answer_all, digest_llm

    cli.hide_loading_bars()
    data = open_data(arguments)
    model, processor = load(arguments, device)
    plain = Answerer(model, processor, generation(arguments), worded={})
    common = {name: getattr(arguments, name) for name in DECISIVE} | {"llm_weights": digest_llm(model)}
    scores: dict[str, dict[str, Any]] = {}
    costs: dict[str, dict[str, int]] = {}
    text_tokens = count_text_tokens(plain, data)
    without_picture: dict[str, str] = {}  # answers to these questions by id, in which no tower has a say
    for tower, chosen in towers.items():
        with tower_in_place(model, processor, chosen) as num_patches:
            placed = num_patches if chosen.positions_and_bias else None
            answerer = replace(plain, num_patches=placed)
            seen = {"tower": chosen.where, "placed": placed is not None}
            seen["tower_weights"] = digest_weights(model.model.vision_tower)
            if text_tokens is not None and placed is None:
                costs[tower] = count_picture_costs(model, processor, text_tokens)._asdict()
            for control in (None, *arguments.controls):
                if (name := name_of(tower, control)) in scores:
                    continue
                settings = common if control == "blind" else common | seen
                ask = partial(
                    answer_all,
                    answerer,
                    settings=settings,
                    batch_size=arguments.batch_size or 8,
                    rank=state.process_index,
                    num_processes=state.num_processes,
                    wait=state.wait_for_everyone,
                    known=without_picture,
                )
                scores[name], texts = answer_and_score(ask, data, arguments, name, control, state)
                if control is None:
                    without_picture = {one.id: texts[one.id] for one in data.problems if not one.has_image}
    if state.is_main_process:
        conclude(arguments, data, scores, list(towers), environment(device.type), costs)


def count_text_tokens(answerer: Any, data: Any) -> int | None:
    """Count the tokens of a prompt with a picture on average, the picture's left out; None where none has one."""
    prompts = [answerer.prompt(problem, True) for problem in data.problems if problem.has_image]
    return round(sum(answerer.count(prompts)) / len(prompts)) - 1 if prompts else None


def ask_served(arguments: argparse.Namespace) -> None:
    """Ask a served model, plainly and with every control; score, print, save."""
    from accelerate import PartialState

    from sf_llava.files import locked
    from sf_llava.scienceqa.server import CONCURRENCY, Server, ask_server

    state = PartialState(cpu=True)
    if state.num_processes > 1:
        raise ValueError(f"a server is asked by one process, not {state.num_processes}: start this as one")
    with locked(arguments.output), cli.when_stopped(kept(arguments)):
        data = open_data(arguments)
        model = None if arguments.model == MINI else arguments.model
        server = Server(arguments.server, generation(arguments), model)
        settings = {name: getattr(arguments, name) for name in DECISIVE if name not in ("model", *LOCAL)}
        scores: dict[str, dict[str, Any]] = {}
        for control in (None, *arguments.controls):
            ask = partial(ask_server, server, settings=settings, concurrency=arguments.concurrency or CONCURRENCY)
            name = name_of(SERVED, control)
            scores[name], _ = answer_and_score(ask, data, arguments, name, control, state)
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
    costs: dict[str, dict[str, int]] | None = None,
) -> None:
    """Print all rows side by side, and what a picture costs through each tower, where that is known; save them."""
    from sf_llava.files import write_json
    from sf_llava.scienceqa.report import print_costs, print_run

    found = print_run(f"{arguments.model} on {data.name}, split {data.split}", scores, towers, data.name == MINI)
    if costs:
        print_costs(costs)
        found["costs"] = costs
    path = Path(arguments.output) / "results.json"
    write_json(path, {"settings": vars(arguments), "environment": environment, "scores": scores} | found)
    print(f"written to {path}")


def choose_mini(arguments: argparse.Namespace) -> None:
    """Fill in what the embedded default needs: its questions and its student."""
    arguments.data = arguments.data or MINI
    arguments.batch_size = arguments.batch_size or 64
    if arguments.encoder is None and (arguments.towers is None or "swapped" in arguments.towers):
        encoder, remark = default_encoder()
        arguments.encoder = [encoder]
        if remark:
            print(remark)
    if arguments.towers is None:
        arguments.towers = ["original", "pooled", "random", "swapped"]


def choose_towers(arguments: argparse.Namespace) -> "dict[str, Tower]":
    """Say which towers to ask through, by the name of their row and folder.

    Raises:
        ValueError: a swap without an encoder, or two rows of one name.
    """
    from sf_llava.llava.reduction import REDUCERS
    from sf_llava.llava.towers import ORIGINAL, SWAPPED, Tower

    encoders = [Path(encoder) for encoder in arguments.encoder or []]
    chosen: list[tuple[str, Tower]] = []
    for kind in dict.fromkeys(arguments.towers or (["original", SWAPPED] if encoders else ["original"])):
        if kind == ORIGINAL:
            chosen.append((kind, Tower(kind)))
            continue
        if kind == SWAPPED and not encoders:
            raise ValueError("--towers swapped needs --encoder DIR")
        for encoder in encoders if kind == SWAPPED else [None]:
            stem = kind
            if encoder is not None and len(encoders) > 1:
                stem = f"{kind}-{encoder.name or encoder.resolve().name}"
            for count in (arguments.latents if kind == SWAPPED else arguments.tokens) or [None]:
                name = stem if count is None else f"{stem}-{count}"
                chosen.append((name, Tower(kind, encoder, num_tokens=count)))
                if arguments.positions_and_bias:
                    chosen.append((f"{name}-placed", Tower(kind, encoder, True, count)))
    if arguments.positions_and_bias and not any(tower.positions_and_bias for _, tower in chosen):
        raise ValueError("--positions-and-bias is for towers with fewer tokens: give --encoder DIR, or other --towers")
    if arguments.tokens and not any(tower.kind in REDUCERS for _, tower in chosen):
        raise ValueError(f"--tokens is for towers with fewer of their own tokens: --towers {' '.join(REDUCERS)}")
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
) -> tuple[dict[str, Any], dict[str, str]]:
    """Answer under one control into the folder of its row, with progress; give the score, and the answers by id."""
    from sf_llava.files import write_json
    from sf_llava.scienceqa import scoring

    questions = [problem for problem in data.problems if problem.has_image or control is None]
    output = Path(arguments.output) / name
    with running_accuracy(name, len(questions), state) as progress:
        texts = ask(data=data, output=output, control=control, progress=progress)
    result = scoring.score(questions, texts)
    if state.is_main_process:
        write_json(output / "score.json", result)
    return result, texts


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
