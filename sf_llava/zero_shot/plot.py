"""A plot of what encoders reach over what they cost: multiply-adds and speed, a line for every kind of encoder."""

from pathlib import Path
from typing import Any

from sf_llava.report import save_figure


def plot_costs(encoders: list[dict[str, Any]], path: Path, where: str) -> None:
    """Draw top-1 over multiply-adds, and over images/s at every batch size that was timed (else of the pass itself).

    Args:
        encoders: as ``results.json`` holds them; ``speed``, by batch size, may be there.
        path: of the PNG file.
        where: machine, dtype and batch of the pass, written below its own speed.
    """
    from matplotlib.figure import Figure

    sizes = list(encoders[0].get("speed", {}))
    panels = [("G multiply-adds of one image", [encoder["multiply_adds"] / 1e9 for encoder in encoders])]
    for size in sizes:
        speeds = [encoder["speed"][size]["images_per_second"] for encoder in encoders]
        panels.append((f"images/s, batch {size}", speeds))
    if not sizes:
        panels.append(("images/s", [encoder["images_per_second"] for encoder in encoders]))
    figure = Figure(figsize=(4.5 * len(panels), 4.5), layout="constrained")
    if not sizes:
        figure.supxlabel(where, fontsize="small")  # of the figure: below one panel it would be cut off
    kinds = dict.fromkeys(encoder["kind"] for encoder in encoders)
    for axes, (label, places) in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        for kind in kinds:
            line = sorted(
                (place, 100 * encoder["top1"], encoder["num_tokens"])
                for place, encoder in zip(places, encoders, strict=True)
                if encoder["kind"] == kind
            )
            axes.plot([x for x, _, _ in line], [y for _, y, _ in line], "o-", label=kind)
            for x, y, tokens in line:
                axes.annotate(str(tokens), (x, y), xytext=(4, -10), textcoords="offset points", fontsize="small")
        axes.set(xlabel=label, ylabel="top-1 (%)")
        axes.label_outer()
    figure.axes[0].legend(title="numbers: tokens left")
    save_figure(figure, path)
