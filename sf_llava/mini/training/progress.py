"""What the trainings of small models keep on their way: ``log.jsonl``, the newest checkpoint and the one before it."""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sf_llava.files import write_bytes, writing
from sf_llava.logs import describe_damage, read_lines

ADVICE = "begin again in another `output`, with another `seed`, more `steps` or a larger `batch_size`"


class Progress:
    """Saves and finds again what a training needs to go on.

    Args:
        run_dir: of the training.
        parts: what has a state: model, head, optimizers.
        settings: what must be equal for a training to be continued.
    """

    def __init__(self, run_dir: Path, parts: Mapping[str, Any], settings: dict[str, Any]) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.log_path = run_dir / "log.jsonl"
        self.newest, self.before = run_dir / "checkpoint.pt", run_dir / "checkpoint-before.pt"
        self.parts, self.settings = parts, settings

    def resume(self) -> tuple[int, float]:
        """Load the newest whole checkpoint and cut the log behind it; return the step to do next, and seconds spent.

        Raises:
            ValueError: there are checkpoints, but none is whole, or it is one of another training.
        """
        step, seconds = 0, 0.0
        found = [path for path in (self.newest, self.before) if path.exists()]
        states = ((path, _read(path)) for path in found)
        path, state = next(((path, state) for path, state in states if state is not None), (None, None))
        if state is not None:
            if path != self.newest:
                print(f"{self.newest} is damaged or missing: going on from {path}")
            self._check(path, state)
            step, seconds = state["step"], state["seconds"]
        elif found:
            raise ValueError(f"{' and '.join(map(str, found))} are damaged: remove them to begin again")
        lines, damaged = read_lines(self.log_path)
        if damaged:
            print(describe_damage(self.log_path, damaged))
        write_bytes(self.log_path, b"".join(line + b"\n" for line, record in lines if record["step"] < step))
        return step, seconds

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to the log.

        Raises:
            OSError: it could not be written; the message names the file.
        """
        with writing(self.log_path), open(self.log_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def save(self, step: int, seconds: float) -> None:
        """Write a checkpoint: ``step`` is the one to do next.

        Raises:
            RuntimeError: a number in it is not finite; the checkpoint before stays the newest.
        """
        state = {name: part.state_dict() for name, part in self.parts.items()}
        if not _is_finite(state):
            raise RuntimeError(f"training has diverged: the weights are no longer finite at step {step}; {ADVICE}")
        state |= {"step": step, "seconds": seconds, "config": self.settings, "threads": torch.get_num_threads()}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        if self.newest.exists():
            self.newest.replace(self.before)
        write_bytes(self.newest, buffer.getvalue())

    def _check(self, path: Path, state: dict[str, Any]) -> None:
        if state["config"] != self.settings:
            raise ValueError(
                f"{path} was made with {state['config']}, this run asks for {self.settings}; "
                "give the same numbers and data, or another `output`"
            )
        if (threads := state.get("threads")) not in (None, torch.get_num_threads()):
            print(f"going on with {torch.get_num_threads()} threads instead of {threads}: last digits will differ")
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def _read(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint; None where a bit of it has changed (its archive holds a checksum of each tensor)."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
        state = torch.load(path, weights_only=True)
    except Exception:  # whatever a damaged file makes of its reader
        return None
    return state if isinstance(state, dict) and {"step", "seconds", "config"} <= state.keys() else None


def _is_finite(state: Any) -> bool:
    if isinstance(state, Tensor):
        return bool(state.isfinite().all())
    return all(map(_is_finite, state.values())) if isinstance(state, Mapping) else True
