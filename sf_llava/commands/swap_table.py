"""What swapping the tower costs a LLaVA: the mini LLaVA on held-out questions through every tower, side by side.

    sf-llava swap-table
        trains 16 and 32 latents with two seeds, as the paper does it (bootstrap, continuation), with aligned tokens,
        through two layers of the LLM and through all of it, then asks 3,200 image questions through each: six to
        twelve hours of a core. What is done is read again, so the same command resumes
    sf-llava swap-table --num-latents 16 --seeds 1 --llm none --questions 1000
        a part of it
    sf-llava swap-table --compare-only --align none set readout position set+readout set+position readout+position \\
        set+readout+position --questions 2400
        what each loss is good for: alone, and left out

Of several kinds of alignment from images alone one is chosen on the validation questions, after a table of all of them
at equal pictures. Expected: a table of accuracy on image questions, share kept, paired difference to the teacher
(95 %), pictures and seconds of training; one by kind of question, the controls, results.json and a plot.
"""

import argparse
from pathlib import Path
from typing import Any

from sf_llava import cli
from sf_llava.scienceqa import CONTROLS

SEEDS = cli.Number(int, 1, 1000)
QUESTIONS = cli.Number(int, 2, 10**6)
PICTURES = cli.Number(int, 1, 10**9)
RIVALS = {"pooled": "averaged", "uniform": "evenly spaced", "random": "drawn at random"}
"""Kinds of towers that need no training, and what becomes of the teacher's tokens there; `sf-llava scienceqa run
--towers` has more."""


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-latents", type=cli.LATENTS, nargs="+", default=[16, 32], metavar="N", help="(16 32)")
    parser.add_argument("--latents", action=cli.Renamed, new="--num-latents")
    parser.add_argument("--seeds", type=SEEDS, default=2, metavar="K", help="seeds of each student (%(default)s)")
    parser.add_argument(
        "--align",
        nargs="+",
        default=["set+readout+position"],
        metavar="LOSSES",
        help="candidates for the bootstrap from images alone, as for sf-llava bootstrap --align (set+readout+position)",
    )
    parser.add_argument("--compare-only", action="store_true", help="stop when the candidates are compared")
    parser.add_argument(
        "--layers",
        default="layers",
        metavar="LOSSES",
        help="what a continuation adds to the chosen alignment where projector and first layers of the LLM are at "
        "hand; none: leave it out (%(default)s)",
    )
    parser.add_argument(
        "--llm",
        default="set+llm+placed",
        metavar="LOSSES",
        help="losses of the continuation through the LLM; none: leave it out (%(default)s)",
    )
    parser.add_argument("--questions", type=QUESTIONS, default=6400, help="half of them have an image (%(default)s)")
    parser.add_argument("--pictures", type=PICTURES, help="of every bootstrap, with any losses (the recipes': 46,080)")
    parser.add_argument(
        "--continued-steps",
        type=cli.POSITIVE_INT,
        help="of the continuations (the recipes': 220 of 128 pictures or 880 of 32, and 300 where a LLM is asked)",
    )
    parser.add_argument("--model", default="mini", metavar="DIR", help="LLaVA on the mini CLIP (%(default)s)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu"], help="(%(default)s)")
    cli.add_flags(parser, "output", "threads", output="runs/swap_table")
    return cli.parse(parser, argv)


def main(argv: list[str]) -> None:
    """Parse, run, with the directory of the series for this process alone."""
    arguments = parse(argv)

    from sf_llava.extras import require
    from sf_llava.files import locked

    require("the plot of the series", "matplotlib")  # now, not after an hour

    kept = f"students and answers so far stay in {arguments.output}; the same command goes on"
    with locked(arguments.output), cli.when_stopped(kept):
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Train, ask, print, draw."""
    from sf_llava.bootstrap.align import parse_alignment
    from sf_llava.bootstrap.config import BootstrapConfig
    from sf_llava.devices import choose_device
    from sf_llava.experiments import swap_table
    from sf_llava.files import write_json
    from sf_llava.llava.loading import load_llava
    from sf_llava.llava.towers import ORIGINAL, Tower
    from sf_llava.report import environment

    for align in (*arguments.align, arguments.layers, arguments.llm):
        parse_alignment(align)  # an unknown name is an error now, not after an hour
    cli.hide_loading_bars()
    device = choose_device(arguments.device)
    model, processor = load_llava(arguments.model)
    series = swap_table.SwapSeries(
        BootstrapConfig.of(device=arguments.device, threads=arguments.threads),
        arguments.pictures,
        arguments.continued_steps,
        Path(arguments.output),
        arguments.model,
        model.to(device).eval(),
        processor,
        arguments.questions,
    )
    output, settings = Path(arguments.output), {"settings": vars(arguments), "environment": environment(device.type)}
    candidates = arguments.align if len(arguments.align) > 1 or arguments.compare_only else []
    compared = series.compare_alignments(candidates, arguments.num_latents[0], 0)
    if compared:
        report_alignments(compared, arguments.num_latents[0])
        write_json(output / "alignments.json", settings | {"rows": compared})
    if arguments.compare_only:
        return
    chosen = compared[0]["align"] if compared else arguments.align[0]
    teacher = Tower(ORIGINAL)
    rows: list[dict[str, Any]] = [{"name": "teacher", "short": "teacher", "scores": [series.ask(teacher)]}]
    more: list[tuple[str, str, str, str | None]] = []
    if arguments.layers != "none":
        both = f"{chosen}+{arguments.layers}"
        more.append((f"images alone, then with {arguments.layers}", "layers", chosen, both))
    if arguments.llm != "none":
        more.append((f"images alone, then {arguments.llm}", "LLM", chosen, arguments.llm))
    for count in arguments.num_latents:
        for kind, done in RIVALS.items():
            for placed in (False, True):
                name = f"{count} tokens of the teacher's, {done}" + ", placed" * placed
                row: dict[str, Any] = {
                    "name": name,
                    "scores": [series.ask(Tower(kind, num_tokens=count), placed=placed)],
                }
                rows.append(row | ({} if placed else {"short": f"{count} {kind}"}))
        for title, short, align, continued in (
            ("paper: bootstrap", "paper", "none", None),
            ("paper: continued", "cont.", "none", "none"),
            (f"images alone ({chosen})", "images", chosen, None),
            ("images alone, continued", "im. cont.", chosen, chosen),
            *more,
        ):
            students = [swap_table.Student(count, seed, align, continued) for seed in range(arguments.seeds)]
            for placed in (False, True):
                name = f"{count} latents, {title}" + ", placed" * placed
                scores = [series.ask(student, placed=placed) for student in students]
                row = {
                    "name": name,
                    "scores": scores,
                    "budgets": [series.budget(student) for student in students],
                }
                rows.append(row | ({} if placed else {"short": f"{count} {short}"}))
    best = swap_table.Student(arguments.num_latents[0], 0, chosen)
    for tower, name in ((teacher, "teacher"), (best, f"{best.num_latents} latents, aligned")):
        for control in CONTROLS if tower == teacher else CONTROLS[1:]:
            rows.append({"name": f"{name}, {control}", "scores": [series.ask(tower, control=control)]})
    report(rows)
    draw(rows, output / "swap_table.png")
    for row in rows:
        row["scores"] = [{key: value for key, value in score.items() if key != "answers"} for score in row["scores"]]
    write_json(output / "results.json", settings | {"validation": compared, "rows": rows})
    print(f"\nwritten to {output}/results.json and {output}/swap_table.png")


def report_alignments(rows: list[dict[str, Any]], num_latents: int) -> None:
    """Print the comparison of candidates."""
    from sf_llava.report import print_table

    body = [
        [row["align"], *(f"{row[key]:.2%}" for key in ("plain", "placed", "zero_shot")),
         f"{row['pictures']:,.0f}", f"{row['seconds']:,.0f}"]
        for row in rows
    ]  # fmt: skip
    header = ["losses on tokens", "swap, plain", "with positions and bias", "zero-shot", "pictures", "seconds"]
    print_table(f"bootstraps of {num_latents} latents by their losses, on validation questions", header, body)


def report(rows: list[dict[str, Any]]) -> None:
    """Print the tables; adds kept share and paired differences to the rows."""
    from sf_llava.report import print_table
    from sf_llava.scienceqa import scoring
    from sf_llava.scienceqa.report import print_kinds

    teacher = rows[0]["scores"][0]
    body = []
    for row in rows:
        accuracies = [score["image_accuracy"] for score in row["scores"]]
        row["image_accuracy"] = sum(accuracies) / len(accuracies)
        row["kept"] = row["image_accuracy"] / teacher["image_accuracy"] if teacher["image_accuracy"] else None
        row["differences"] = [scoring.compare(score, teacher)["image"] for score in row["scores"]]
        differences = "; ".join(
            f"{100 * d['difference']:+.2f} ({100 * d['interval'][0]:+.1f} to {100 * d['interval'][1]:+.1f})"
            for d in row["differences"]
        )
        each = " ".join(f"{100 * accuracy:.2f}" for accuracy in accuracies)
        kept = "-" if row["kept"] is None else f"{row['kept']:.1%}"
        budget = row["budgets"][0] if "budgets" in row else None
        costs = [f"{budget['pictures']:,.0f}", f"{budget['seconds']:,.0f}"] if budget else ["", ""]
        body.append([row["name"], each, kept, "" if row is rows[0] else differences, *costs])
    title = f"mini LLaVA, {teacher['image_total']:,} held-out image questions, accuracy in %; LLM and projector frozen"
    header = ["tower", "each seed", "kept", "points from the teacher (95 %, paired), each seed", "pictures", "seconds"]
    print_table(title, header, body)
    print_kinds({row["short"]: row["scores"][0] for row in rows if "short" in row})


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the accuracies as bars, a dot a seed."""
    from matplotlib.figure import Figure

    from sf_llava.report import save_figure

    figure = Figure(figsize=(9, 0.26 * len(rows) + 0.8), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    axes.barh(places, [100 * row["image_accuracy"] for row in rows], color="#9db7d5")
    for place, row in zip(places, rows, strict=True):
        dots = [100 * score["image_accuracy"] for score in row["scores"]]
        axes.plot(dots, [place] * len(dots), "o", color="#1f3d63", markersize=4)
        axes.text(1, place, f"{100 * row['image_accuracy']:.1f}", va="center", fontsize=8)
    axes.axvline(100 * rows[0]["image_accuracy"], color="#b04a3a", linewidth=1)
    axes.set_yticks(places, [row["name"] for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set(xlim=(0, 100), xlabel="% right (dots: seeds, line: teacher)")
    save_figure(figure, path)
