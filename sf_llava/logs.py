"""Logs of trainings: one JSON object a line, each with its step. A damaged line takes no other with it."""

import json
from pathlib import Path
from typing import Any

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_lines(path: str | Path) -> tuple[list[tuple[bytes, dict[str, Any]]], list[int]]:
    """Read a log that may not exist.

    Returns:
        Its whole lines, as bytes and read; and the numbers of damaged ones, but for an end that a kill cut off.
    """
    path = Path(path)
    lines: list[tuple[bytes, dict[str, Any]]] = []
    damaged: list[int] = []
    if not path.exists():
        return lines, damaged
    texts = path.read_bytes().removeprefix(_BYTE_ORDER_MARK).split(b"\n")
    for number, text in enumerate(texts, 1):
        record = _parse(text)
        if record is not None:
            lines.append((text.strip(), record))
        elif number < len(texts) and text.strip():
            damaged.append(number)
    return lines, damaged


def describe_damage(path: str | Path, damaged: list[int]) -> str:
    """Say which lines are left out."""
    numbers = ", ".join(map(str, damaged[:10])) + ", ..." * (len(damaged) > 10)
    return f"{path}: {len(damaged)} damaged lines are left out ({numbers})"


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None
