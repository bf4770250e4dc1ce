"""ScienceQA scores for a reader: one row a score, one sentence a comparison."""

from collections.abc import Mapping, Sequence
from typing import Any

from sf_llava.report import print_table
from sf_llava.scienceqa import scoring
from sf_llava.scienceqa.problems import kind_of


def print_run(title: str, scores: Mapping[str, dict[str, Any]], towers: Sequence[str], kinds: bool) -> dict[str, Any]:
    """Print all rows of a run, every tower beside the original one, and what the image is worth.

    Args:
        title: of the table.
        scores: by row: a tower, or a tower under a control.
        towers: the rows that are towers.
        kinds: print the accuracy on every kind of question too.

    Returns:
        The comparisons with the row ``original``, and the shares of the image where there is a row ``blind``.
    """
    print_scores(title, list(scores.items()))
    results: dict[str, Any] = {"comparisons": {}}
    for tower in towers:
        if "original" in scores and tower != "original":
            results["comparisons"][tower] = scoring.compare(scores[tower], scores["original"])
            print_comparison(f"{tower} - original", results["comparisons"][tower])
    if "blind" in scores:
        results["image_share"] = {}
        for tower in towers:
            share = scoring.image_share(scores[tower]["image_accuracy"], scores["blind"]["image_accuracy"])
            results["image_share"][tower] = share
            print(f"{tower}: the image earns {percent(share).strip()} % of the score on image questions")
    if kinds:
        print_kinds(scores)
    return results


def print_scores(title: str, scores: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Print one row for each score."""
    header = ["", "questions", "accuracy", "95 %", "with image", "accuracy", "95 %", "unparsed", "missing"]
    rows = [
        [
            name,
            score["total"],
            percent(score["accuracy"]),
            interval(score["interval"]),
            score["image_total"],
            percent(score["image_accuracy"]),
            interval(score["image_interval"]),
            score["unparsed"],
            score["missing"],
        ]
        for name, score in scores
    ]
    print_table(title, header, rows)


def print_comparison(title: str, result: dict[str, Any]) -> None:
    """Print the paired differences."""
    for name, part in result.items():
        if part is not None:
            low, high = (100 * bound for bound in part["interval"])
            print(
                f"{title}, {name} questions: {100 * part['difference']:+.2f} points (95 % {low:+.2f} to {high:+.2f}, "
                f"paired), {part['only_first_correct']} right only in the first, {part['only_second_correct']} only in "
                f"the second, McNemar's p {part['mcnemar_p']:.3g}"
            )


def print_costs(costs: Mapping[str, Mapping[str, int]]) -> None:
    """Print what one picture costs through every tower, in multiply-adds."""
    rows = [
        [name, one["tokens"], *(f"{one[part] / 1e9:.4g}" for part in ("tower", "prefill"))]
        for name, one in costs.items()
    ]
    header = ["", "tokens", "tower", "prefill"]
    print_table("one picture and its question, G multiply-adds", header, rows)


def print_kinds(scores: Mapping[str, dict[str, Any]]) -> None:
    """Print the accuracy on every kind of question of the drawn world, a column a tower or control."""
    right: dict[tuple[bool, str], dict[str, list[bool]]] = {}
    for name, score in scores.items():
        for id, answer in score["answers"].items():
            columns = right.setdefault((not answer["image"], kind_of(id)), {})
            columns.setdefault(name, []).append(answer["correct"])
    rows = []
    for (text_only, kind), columns in sorted(right.items()):
        shares = (columns.get(name) for name in scores)
        cells = [percent(sum(values) / len(values)) if values else "" for values in shares]
        rows.append([kind, "text" if text_only else "image", len(next(iter(columns.values()))), *cells])
    print_table("by kind of question", ["", "on", "questions", *scores], rows)


def percent(share: float | None) -> str:
    """Write a fraction as a percentage."""
    return "    - " if share is None else f"{100 * share:6.2f}"


def interval(bounds: list[float] | None) -> str:
    """Write an interval of fractions as percentages."""
    return "-" if bounds is None else f"{100 * bounds[0]:.1f}-{100 * bounds[1]:.1f}"
