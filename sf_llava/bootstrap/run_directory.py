"""The directory of one run: configuration, log, checkpoints, pictures, the final encoder, the results.

config.json   every number, what the run began with, and the machine it runs on
log.jsonl     one JSON object a line: losses, validation, skipped images (no clock: equal runs have equal logs)
tensorboard/  the same curves, images per second and the share of time spent waiting for data, where it is a tracker
tracking.json by which names other trackers know the run
teacher-cache/ what the teacher said of the images, while the run goes on (see teacher_cache.py)
checkpoints/  step-0000100/ ..., each whole or absent, with the digests of its files (``sha256sum -c SHA256SUMS``)
rois/         pictures of where the student looks
encoder/      the student, for ``from_pretrained``
results.json  what was measured at the end
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from sf_llava import files
from sf_llava.logs import describe_damage, read_lines

RESULTS = {"encoders", "zero_shot", "val_cosine", "step", "seconds", "images_per_second", "peak_memory_gb", "dtype",
           "seed", "environment", "skipped_images"}  # fmt: skip
"""What every ``results.json`` holds."""

_CHECKPOINT = re.compile(r"step-(\d{7,})")


class RunDirectory:
    """Paths and bookkeeping of one run. Only the main process writes; every process may read."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.json"
        self.log_path = self.path / "log.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.pictures = self.path / "rois"
        self.encoder = self.path / "encoder"
        self.results_path = self.path / "results.json"
        self.teacher_cache = self.path / "teacher-cache"
        self.tracking_path = self.path / "tracking.json"

    def check(
        self, config: dict[str, Any], resume: bool, may_differ: tuple[str, ...], may_change: tuple[str, ...] = ()
    ) -> dict[str, list[Any]]:
        """Check that this run may start or continue here.

        Args:
            config: of this run, and of its machine.
            resume: whether a run that is here may be continued.
            may_differ: names in ``config`` that do not matter.
            may_change: names in ``config`` that an unfinished run may change on its way.

        Returns:
            What changes: by name the value before and the value now.

        Raises:
            ValueError: a run is here already and ``resume`` was not asked for, or it has another configuration; or
                there is something else under the names that a run writes.
        """
        if not self.config_path.exists():
            ours = (self.log_path, self.checkpoints, self.pictures, self.encoder, self.results_path)
            if found := [path.name for path in ours if path.exists()]:
                raise ValueError(
                    f"{self.path} holds {', '.join(found)} without the config.json of a run: choose another `output`"
                )
            return {}
        if not resume:
            raise ValueError(f"{self.path} already holds a run; continue it with `resume` or choose another `output`")
        before = files.read_json_object(self.config_path)
        changes = {
            name: [before.get(name), value]
            for name, value in config.items()
            if name not in may_differ and before.get(name) != value and (name in before or name not in may_change)
        }
        if wrong := [
            f"{name} was {old!r} and is {new!r}" for name, (old, new) in changes.items() if name not in may_change
        ]:
            raise ValueError(
                f"{self.path} holds a run with another configuration: {'; '.join(wrong)}. Name another `output`, or "
                "ask for what that run has"
            )
        return changes

    def check_inputs(self, inputs: dict[str, str]) -> None:
        """Check that the data and models are those that the run began with.

        Args:
            inputs: digest by name, as :meth:`start` was given.

        Raises:
            ValueError: one of them is another; the message names it.
        """
        before = files.read_json_object(self.config_path).get("inputs") if self.config_path.exists() else None
        if not isinstance(before, dict):
            return
        if other := [name for name, digest in inputs.items() if before.get(name, digest) != digest]:
            raise ValueError(
                f"{self.path} began with other {' and other '.join(other)} under the same name: bring back what it "
                "began with, or start a run in another `output` (`init_from` takes over a finished run's student)"
            )

    def start(self, config: dict[str, Any], step: int, changes: dict[str, list[Any]] | None = None) -> list[str]:
        """Write the configuration, drop log lines beyond ``step`` and leftovers of a killed writer.

        Args:
            config: what ``config.json`` shall hold.
            step: the step from which the run goes on.
            changes: of :meth:`check`, for the log.

        Returns:
            Sentences on what was damaged.
        """
        if not self.config_path.exists():
            files.write_json(self.config_path, config)  # first: it marks the directory as a run's
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        lines, damaged = read_lines(self.log_path)
        kept = [line for line, record in lines if record["step"] <= step]
        if changes and (note := json.dumps({"step": step, "changed": changes}).encode()) not in kept[-1:]:
            kept.append(note)
        files.write_bytes(self.log_path, b"".join(line + b"\n" for line in kept))
        files.write_json(self.config_path, config)
        return [describe_damage(self.log_path, damaged)] if damaged else []

    def read_log(self) -> list[dict[str, Any]]:
        """Read all whole lines of the log."""
        return [record for _, record in read_lines(self.log_path)[0]]

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to the log.

        Raises:
            OSError: it could not be written; the message names the file.
        """
        with files.writing(self.log_path), open(self.log_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read_results(self) -> dict[str, Any]:
        """Read the results of a finished run.

        Raises:
            ValueError: the file is damaged or another program's.
        """
        results = files.read_json_object(self.results_path)
        if missing := RESULTS - results.keys():
            raise ValueError(
                f"{self.results_path} lacks {', '.join(sorted(missing))}: remove it, and `resume` measures again"
            )
        return results

    def checkpoint_path(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:07d}"

    def checkpoint_paths(self) -> list[Path]:
        """Return all checkpoints, the newest first."""
        found = [(int(match[1]), path) for path in self.checkpoints.glob("step-*")
                 if path.is_dir() and (match := _CHECKPOINT.fullmatch(path.name))]  # fmt: skip
        return [path for _, path in sorted(found, reverse=True)]

    def prune_checkpoints(self, keep: int, step: int) -> None:
        """Delete all but the newest ``keep`` of the checkpoints up to ``step``; later ones turned out to be damaged."""
        newest = self.checkpoint_path(step)
        paths = self.checkpoint_paths()
        for path in paths[paths.index(newest) + keep :]:
            hidden = path.with_name(f".{path.name}.old")
            path.rename(hidden)
            shutil.rmtree(hidden)

    def _remove_leftovers(self) -> None:
        patterns = {
            self.path: (
                ".config.json.*.tmp",
                ".log.jsonl.*.tmp",
                ".results.json.*.tmp",
                ".encoder.*.tmp",
                ".encoder.*.old",
            ),
            self.checkpoints: (".step-*.tmp", ".step-*.old"),
            self.pictures: (".step-*.tmp",),
        }
        for folder, names in patterns.items():
            for leftover in [path for name in names for path in folder.glob(name)]:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
