"""Questions in tables: parquet files and hub data sets, one row a problem, its picture in whichever column holds it.

Every parquet file is opened by itself, so files may differ in their columns and types. ``datasets`` copies a file once
into its cache (``HF_HOME``) and memory-maps it; pictures are read when they are asked for.
"""

import glob
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from sf_llava.data.paths import find_files
from sf_llava.extras import require
from sf_llava.scienceqa.picture_columns import find_pictures, read_picture
from sf_llava.scienceqa.problems import Problem, ScienceQA, read_id, read_problem

if TYPE_CHECKING:
    from datasets import Dataset

ID_COLUMNS = ("id", "pid", "question_id")
REQUIRED = ("question", "choices", "answer")
TEXTS = (*REQUIRED, "hint", "lecture", "solution", "subject", "grade")


@dataclass(frozen=True)
class Table:
    """The rows of one file or data set.

    Attributes:
        name: of it, for messages.
        rows: of the table.
        folder: where relative paths of pictures begin, None for the working directory.
    """

    name: str
    rows: "Dataset"
    folder: Path | None = None


def open_table(name: str, kind: str, where: str, split: str) -> ScienceQA:
    """Open tables: a problem's id is the column ``id``, ``pid`` or ``question_id``, or the row's number.

    Warns where no row has a picture.

    Raises:
        ValueError: a file cannot be read, lacks a column, or holds a row that is no problem; the message names it.
    """
    tables = list(_load(name, kind, where, split))
    if not any(len(table.rows) for table in tables):
        raise ValueError(f"{name} has no rows")
    problems: list[Problem] = []
    places: dict[str, tuple[Table, str, int]] = {}
    for table in tables:
        columns = table.rows.column_names
        if lacking := [column for column in REQUIRED if column not in columns]:
            raise ValueError(
                f"{table.name} is no ScienceQA table: it lacks the column(s) {', '.join(lacking)}; it has "
                f"{', '.join(columns)}"
            )
        id_column = next((column for column in ID_COLUMNS if column in columns), None)
        texts = [column for column in columns if column in TEXTS or column == id_column]
        picture_column, counts = find_pictures(table.rows, {*TEXTS, *ID_COLUMNS}, table.name)
        for number, row in enumerate(table.rows.select_columns(texts)):
            id = read_id(row[id_column], f"row {number} of {table.name}") if id_column else str(len(problems))
            if counts[number] > 1:
                raise ValueError(
                    f"problem {id} of {table.name} has {counts[number]} pictures in the column {picture_column!r}: a "
                    "question is asked with one"
                )
            problems.append(read_problem(id, row, bool(counts[number]), table.name))
            if picture_column is not None:
                places[id] = (table, picture_column, number)

    def read_image(problem: Problem) -> Image.Image:
        table, column, row = places[problem.id]
        cell = table.rows.data.column(column)[row].as_py()
        return read_picture(cell, table.folder, f"image of problem {problem.id} of {table.name}")

    if not any(problem.has_image for problem in problems):
        names = ", ".join(dict.fromkeys(column for table in tables for column in table.rows.column_names))
        warnings.warn(f"{name} holds no pictures (columns {names}): every question is asked as text", stacklevel=3)
    return ScienceQA(name, split, problems, read_image)


def _load(name: str, kind: str, where: str, split: str) -> Iterator[Table]:
    require("reading tables of questions", "datasets", "pyarrow")
    if kind == "hub":
        yield Table(name, _load_hub(name, where, split))
        return
    for file in find_files(where, ".parquet"):
        if (rows := _load_parquet(file)) is not None:
            yield Table(file, rows, Path(file).parent)


def _load_hub(name: str, where: str, split: str) -> "Dataset":
    import datasets

    try:
        return datasets.load_dataset(where, split=split)
    except Exception as error:  # of the hub, the network, the files, each library's own
        raise ValueError(
            f"{name} (split {split}) cannot be opened: {_reason(error)}; or give local files, parquet:PATH"
        ) from error


def _load_parquet(file: str) -> "Dataset | None":
    """Open one file, None where it has no rows, which ``datasets`` refuses."""
    import datasets
    import pyarrow.parquet

    try:
        if not pyarrow.parquet.read_metadata(file).num_rows:
            return None
        return datasets.load_dataset("parquet", data_files=glob.escape(file), split="train")
    except Exception as error:  # whatever arrow finds in broken bytes
        raise ValueError(f"{file} cannot be read as parquet: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Say what stopped ``datasets``, which wraps it."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, OSError) and cause.strerror:
        import datasets

        return f"{cause.filename or datasets.config.HF_DATASETS_CACHE}: {cause.strerror}"
    return " ".join(str(cause).split())[:300] or type(cause).__name__
