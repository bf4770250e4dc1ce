"""The paper's Tables 3, 6 and 8 in miniature: every row that can be run small, two seeds each, equal steps.

    sf-llava reproduce
        on the drawn world: 14 rows x 2 seeds x 400 steps of 32 images, about 50 minutes of one idle core; rows that
        are done are read again, so the same command resumes. --steps 1800 is nearer to convergence and takes hours
    sf-llava reproduce --rows default no-reuse latents-8 --seeds 1
        some rows only
    sf-llava reproduce --teacher runs/mini_cifar10/clip --data parquet:train.parquet \\
            --val-data parquet:validation.parquet --classes cifar10 --output runs/reproduce_cifar10
        on CIFAR-10, with a teacher that scripts/train_mini.py cifar10 made

Expected: a table of zero-shot top-1 (and recall at 1) beside the paper's numbers, orderings that agree and that do not,
results.json, and accuracy.png, accuracy against multiply-adds, with training-free pooling and merging of the teacher's
tokens for comparison. The paper's numbers are of ImageNet and full-size models: compare orderings, not values.
"""

import argparse
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from sf_llava import cli

if TYPE_CHECKING:
    from sf_llava.experiments.ablations import Row

SEEDS = cli.Number(int, 1, 1000)
Measured = dict[str, list[dict[str, Any]]]


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=[], metavar="KEY", help="only these (an unknown one lists all)")
    parser.add_argument("--seeds", type=SEEDS, default=2, metavar="K", help="seeds a row (%(default)s)")
    parser.add_argument("--seed", type=cli.SEED, default=0, help="the first seed (%(default)s)")
    parser.add_argument("--steps", type=cli.POSITIVE_INT, default=400, help="a row; a quarter continued (%(default)s)")
    parser.add_argument("--lr", type=cli.POSITIVE, default=3e-3, help="peak learning rate (%(default)s)")
    parser.add_argument("--teacher", default="mini", metavar="NAME", help="CLIP teacher (%(default)s)")
    parser.add_argument("--data", metavar="NAME", help="training images (default with mini: mini:both)")
    parser.add_argument("--val-data", metavar="NAME", help="labelled images to score on (default with mini: mini:both)")
    parser.add_argument("--classes", metavar="NAME", help="classes of --val-data (default: its own)")
    parser.add_argument("--captions", metavar="NAME", help="captioned images for recall (default with mini: mini:both)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu"], help="(%(default)s)")
    parser.add_argument("--dtype", default="auto", choices=["auto", "fp32", "bf16", "fp16"], help="(%(default)s)")
    cli.add_flags(parser, "batch-size", "output", "threads", batch_size=32, output="runs/reproduce")
    arguments = cli.parse(parser, argv)
    if arguments.teacher == "mini":
        for name in ("data", "val_data", "captions"):
            if getattr(arguments, name) is None:
                setattr(arguments, name, "mini:both")
    if arguments.data is None or arguments.val_data is None:
        raise ValueError(f"teacher {arguments.teacher} needs --data (training images) and --val-data (labelled images)")
    return arguments


def main(argv: list[str]) -> None:
    """Parse, run, with the directory of the series for this process alone."""
    arguments = parse(argv)

    from sf_llava.extras import require
    from sf_llava.files import locked

    require("the plot of the series", "matplotlib")  # now, not after an hour

    kept = f"rows that are done stay in {arguments.output}; the same command goes on"
    with locked(arguments.output), cli.when_stopped(kept):
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Run all rows, print the table, draw the plot."""
    from sf_llava.bootstrap.config import BootstrapConfig
    from sf_llava.devices import choose_device
    from sf_llava.experiments import ablations
    from sf_llava.files import write_json
    from sf_llava.teachers import load_teacher

    output = Path(arguments.output)
    teacher = load_teacher(arguments.teacher, device=choose_device(arguments.device))
    rows = ablations.table_rows(teacher.num_hidden_layers, teacher.num_patches, arguments.steps, arguments.lr)
    rows = ablations.choose_rows(rows, arguments.rows)
    common = BootstrapConfig.of(
        **{name: getattr(arguments, name) for name in ("teacher", "data", "val_data", "classes", "steps", "lr")},
        **{name: getattr(arguments, name) for name in ("batch_size", "device", "dtype", "threads")},
        align="none",
        warmup_steps=arguments.steps // 20,
        eval_every=arguments.steps,
    )
    labelled = arguments.data
    if arguments.data.startswith("mini") and any(row.labelled for row in rows):
        labelled = ablations.draw_labelled(output / "labelled")
    series = ablations.Series(common, teacher, output, labelled, arguments.captions)
    references = series.run_references()
    measured: Measured = {}
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        for row in rows:
            measured.setdefault(row.key, []).append(series.run_row(row, seed))
            print(f"{row.title}, seed {seed}: top-1 {measured[row.key][-1]['top1']:.2%}", flush=True)
    orderings = ablations.compare_orderings(rows, measured)
    report(rows, measured, references, orderings)
    draw(rows, measured, references, output / "accuracy.png")
    results = {"settings": vars(arguments), "references": references, "rows": measured, "orderings": orderings}
    write_json(output / "results.json", results)
    print(f"\nwritten to {output}/results.json and {output}/accuracy.png")


def report(rows: "list[Row]", measured: Measured, references: list[dict], orderings: list[dict]) -> None:
    """Print the table: our rows beside the paper's, then the references, then the orderings."""
    from sf_llava.report import print_table

    header = ["", "top-1 of each seed", "mean", "kept", "I2T R@1", "T2I R@1", "cosine", "tokens", "G madds", "paper"]
    teacher = references[0]

    def cells(title: str, runs: list[dict[str, Any]], cosine: str, paper: str) -> list[str]:
        top1 = mean(run["top1"] for run in runs)
        recall = [
            f"{100 * mean(run[name] for run in runs):.1f}" if name in runs[0] else ""
            for name in ("image_to_text", "text_to_image")
        ]
        each = " ".join(f"{100 * run['top1']:.2f}" for run in runs)
        kept = f"{top1 / teacher['top1']:.1%}" if teacher["top1"] else "-"
        cost = f"{runs[0]['multiply_adds'] / 1e9:.4f}"
        return [title, each, f"{100 * top1:.2f}", kept, *recall, cosine,
                f"{runs[0]['tokens']} + CLS", cost, paper]  # fmt: skip

    body = [cells(entry["name"], [entry], "", "T3: 84.6" * (entry is teacher)) for entry in references]
    for row in rows:
        runs = measured[row.key]
        body.append(cells(row.title, runs, f"{mean(run['cosine'] for run in runs):.4f}", row.paper))
    title = "zero-shot top-1 in %; paper: full-size models on ImageNet (T3, T8: SF-B of AugReg, T6: SF-L of CLIP)"
    print_table(title, header, body)
    for entry in orderings:
        print(
            f"{entry['row']}: {entry['difference']:+.2f} points here, {entry['paper_difference']:+.1f} in the paper: "
            f"{entry['verdict']}"
        )


def draw(rows: "list[Row]", measured: Measured, references: list[dict], path: Path) -> None:
    """Plot accuracy against multiply-adds: students by token count, training-free reductions, the teacher."""
    from matplotlib.figure import Figure

    from sf_llava.report import save_figure

    figure = Figure(figsize=(7.5, 5.2), dpi=160, layout="constrained")
    axes = figure.subplots()

    def line(name: str, points: list[tuple[float, float, int]], **style: Any) -> None:
        points = sorted(points)
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], label=name, **style)
        for x, y, tokens in points:
            axes.annotate(str(tokens), (x, y), textcoords="offset points", xytext=(5, -11), fontsize=8, color="#555")

    def point(entry: dict[str, Any], top1: float) -> tuple[float, float, int]:
        return entry["multiply_adds"] / 1e9, 100 * top1, entry["tokens"]

    sizes = [row for row in rows if row.key == "default" or row.key.startswith("latents-")]
    averages = [point(measured[row.key][0], mean(run["top1"] for run in measured[row.key])) for row in sizes]
    line("student (mean of seeds)", averages, color="#1f77b4", marker="o", linewidth=2)
    for row in sizes:
        for run in measured[row.key]:
            x, y, _ = point(run, run["top1"])
            axes.plot(x, y, ".", color="#1f77b4", alpha=0.45)
    if "continued" in measured:
        averages = [point(measured["continued"][0], mean(run["top1"] for run in measured["continued"]))]
        line("student, continued with more latents", averages, color="#1f77b4", marker="D", linestyle="none")
    kinds = {entry["name"].rpartition(", ")[0] for entry in references[1:]}
    for kind, colour in zip(sorted(kinds), ("#2ca02c", "#d68910", "#8e44ad"), strict=False):
        points = [point(entry, entry["top1"]) for entry in references if entry["name"].startswith(kind + ",")]
        line(f"teacher, {kind}", points, color=colour, marker="s", linestyle="--")
    line("teacher", [point(references[0], references[0]["top1"])], color="black", marker="*", markersize=12, ls="none")
    axes.set(xlabel="multiply-adds of one image (G)", ylabel="zero-shot top-1 (%)", title="numbers: visual tokens")
    axes.grid(alpha=0.3)
    axes.set_xlim(left=0)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    save_figure(figure, path, dpi=160)
