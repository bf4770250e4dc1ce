"""Task folders for lmms-eval from any questions that ``open_scienceqa`` opens: a description and a table, no network.

    OUT/NAME/NAME.yaml      what lmms-eval reads, with OUT for its include_path
    OUT/NAME/test.parquet   a row a question: id, text as it is asked, image, choices, target, kind

Questions are asked in the words of ``sf-llava scienceqa``, or yes and no in POPE's. The folder may be moved.
"""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sf_llava import files
from sf_llava.extras import require
from sf_llava.harness.scores import NO, YES
from sf_llava.scienceqa.data import open_scienceqa
from sf_llava.scienceqa.problems import Problem, ScienceQA, ask, kind_of
from sf_llava.scienceqa.scoring import LETTERS

TABLE = "test.parquet"
ROWS_AT_ONCE = 256
ONE_WORD = "\nAnswer the question using a single word or phrase."  # POPE's, in lmms-eval
SCORES = "sf_llava.harness.scores"
METRICS = {
    "score_choice": {"accuracy": "mean", "unparsed": "mean"},
    "score_yes_no": {"accuracy": "mean", "unparsed": "mean"}
    | {name: f"!function {SCORES}.{name}" for name in ("precision", "recall", "f1", "yes_ratio")},
}
YAML = """\
task: {name}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {table}
test_split: test
output_type: generate_until
doc_to_visual: !function {scores}.pictures
doc_to_text: text
doc_to_target: target
generation_kwargs:
  max_new_tokens: {max_new_tokens}
  temperature: 0
  do_sample: false
  until: []
process_results: !function {scores}.{score}
metric_list:
{metrics}metadata:
  - version: 1
"""


def write_task(
    data: str,
    output: str | Path,
    *,
    split: str = "test",
    name: str | None = None,
    yes_no: bool = False,
    max_new_tokens: int = 1024,
) -> tuple[str, int]:
    """Write the folder of one task into ``output``.

    Args:
        data: name of the questions, as :func:`~sf_llava.scienceqa.data.open_scienceqa` takes it.
        output: folder of task folders, made where it is not there.
        split: of the questions.
        name: of the task; by default the data's with underscores.
        yes_no: ask for the word yes or no, as POPE does, in place of an option's letter.
        max_new_tokens: of an answer.

    Returns:
        The task's name and the number of its questions.

    Raises:
        ValueError: unknown data, questions without choices or with others than yes and no, a name that is none, or
            that is taken in ``output``.
        ModuleNotFoundError: the extra ``data`` is not installed.
    """
    require("writing task files", "datasets", "pyarrow")
    name = re.sub(r"\W+", "_", data).strip("_") if name is None else name
    if not re.fullmatch(r"\w+", name):
        raise ValueError(f"{name!r} is no name of a task: expected letters, digits and underscores")
    folder = Path(output) / name
    if folder.exists():
        raise ValueError(f"{folder} is there already: name another task, or remove it yourself")
    questions = open_scienceqa(data, split)
    for problem in questions.problems:
        _check(problem, yes_no)
    score = "score_yes_no" if yes_no else "score_choice"
    metrics = "".join(
        f"  - metric: {metric}\n    aggregation: {how}\n    higher_is_better: {str(metric != 'unparsed').lower()}\n"
        for metric, how in METRICS[score].items()
    )
    fields = dict(name=name, table=TABLE, scores=SCORES, score=score, metrics=metrics, max_new_tokens=max_new_tokens)

    def fill(directory: Path) -> None:
        _write_table(directory / TABLE, questions, yes_no)
        (directory / f"{name}.yaml").write_text(YAML.format(**fields), encoding="utf-8")

    files.write_directory(folder, fill)
    return name, len(questions.problems)


def _check(problem: Problem, yes_no: bool) -> None:
    if not problem.choices:
        raise ValueError(f"question {problem.id} has no choices: these data are for training, not for scores")
    if yes_no and sorted(choice.lower() for choice in problem.choices) != [NO, YES]:
        raise ValueError(
            f"question {problem.id} has the choices {', '.join(problem.choices)}: `yes_no` is for yes and no alone"
        )


def _write_table(path: Path, questions: ScienceQA, yes_no: bool) -> None:
    import datasets
    import pyarrow
    import pyarrow.parquet

    texts = dict.fromkeys(("id", "text", "target", "kind"), datasets.Value("string"))
    features = datasets.Features(
        texts | {"image": datasets.Image(), "choices": datasets.List(datasets.Value("string"))}
    )
    with pyarrow.parquet.ParquetWriter(path, features.arrow_schema) as writer:
        for rows in _rows(questions, yes_no):
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=features.arrow_schema))


def _rows(questions: ScienceQA, yes_no: bool) -> Iterator[list[dict[str, Any]]]:
    """Give the rows of the table, some at a time: pictures are large."""
    for start in range(0, len(questions.problems), ROWS_AT_ONCE):
        yield [_row(questions, one, yes_no) for one in questions.problems[start : start + ROWS_AT_ONCE]]


def _row(questions: ScienceQA, problem: Problem, yes_no: bool) -> dict[str, Any]:
    image = None
    if problem.has_image:
        buffer = io.BytesIO()
        questions.load_image(problem).save(buffer, "PNG")
        image = {"bytes": buffer.getvalue(), "path": None}
    return {
        "id": problem.id,
        "text": problem.question + ONE_WORD if yes_no else ask(problem),
        "target": problem.choices[problem.answer].lower() if yes_no else LETTERS[problem.answer],
        "kind": kind_of(problem.id),
        "image": image,
        "choices": list(problem.choices),
    }
