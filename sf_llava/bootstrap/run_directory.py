"""The directory of one run: configuration, log, checkpoints, pictures, the final encoder, the results.

    config.json   every number, and how the teacher's blocks were used
    log.jsonl     one JSON object a line: losses, validation, skipped images (no clock: equal runs have equal logs)
    tensorboard/  the same curves, and images per second
    checkpoints/  step-000100/ ..., each whole or absent
    rois/         pictures of where the student looks
    encoder/      the student, for ``from_pretrained``
    results.json  what was measured at the end
"""

import json
import shutil
from pathlib import Path
from typing import Any

from sf_llava import files


class RunDirectory:
    """Paths and bookkeeping of one run. Only the main process writes; every process may read."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.log_path = self.path / "log.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.encoder = self.path / "encoder"
        self.results_path = self.path / "results.json"

    def check(self, config: dict[str, Any], resume: bool, may_differ: tuple[str, ...]) -> None:
        """Check that this run may start or continue here.

        Raises:
            ValueError: a run is here already and ``resume`` was not asked for, or it has another configuration.
        """
        path = self.path / "config.json"
        if not path.exists():
            return
        if not resume:
            raise ValueError(f"{self.path} already holds a run; continue it with --resume or choose another --output")
        before = files.read_json(path)
        wrong = [
            f"{name} was {before.get(name)!r} and is {value!r}"
            for name, value in config.items()
            if name not in may_differ and before.get(name) != value
        ]
        if wrong:
            raise ValueError(f"{self.path} holds a run with another configuration: {'; '.join(wrong)}")

    def start(self, config: dict[str, Any], step: int) -> None:
        """Write the configuration, drop log lines beyond ``step`` and leftovers of a killed writer."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        for leftover in [*self.path.glob(".*.tmp"), *self.checkpoints.glob(".*"), *self.path.glob(".*.old")]:
            shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink()
        files.write_json(self.path / "config.json", config)
        kept = [line for line in self.read_log() if line["step"] <= step]
        files.write_bytes(self.log_path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def read_log(self) -> list[dict[str, Any]]:
        """Read the log up to its first broken line, which a kill may have left at the end."""
        lines = []
        if self.log_path.exists():
            for line in self.log_path.read_text(encoding="utf-8").splitlines():
                try:
                    lines.append(json.loads(line))
                except json.JSONDecodeError:
                    break
        return lines

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to the log."""
        with open(self.log_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def checkpoint_path(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:07d}"

    def latest_checkpoint(self) -> Path | None:
        """Return the newest whole checkpoint, if any."""
        found = sorted(path for path in self.checkpoints.glob("step-*") if path.is_dir())
        return found[-1] if found else None

    def prune_checkpoints(self, keep: int) -> None:
        """Delete all but the newest ``keep`` checkpoints."""
        for path in sorted(self.checkpoints.glob("step-*"))[:-keep]:
            hidden = path.with_name(f".{path.name}.old")
            path.rename(hidden)
            shutil.rmtree(hidden)
