"""Checkpoints of a run: each whole or absent, with digests, from which training goes on to the bit."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.optim import Optimizer

from sf_llava import files
from sf_llava.bootstrap.run_directory import RunDirectory
from sf_llava.weights.digests import changed_files, write_digests


class Stateful(Protocol):
    """Has state of its own beside model and optimiser, which a checkpoint keeps as files."""

    def save(self, directory: Path) -> None: ...

    def load(self, directory: Path) -> None: ...


class Checkpoints:
    """Writes checkpoints of what ``accelerator`` prepared, and goes on from the newest whole one.

    Args:
        run: where they lie.
        accelerator: holds model and optimiser.
        optimizer: as the accelerator prepared it.
        objective: has state of its own; None where nothing has.
        keep: how many of them stay.

    Attributes:
        step: of the last one, written or read.
        seconds: of training up to then, kept over resumptions.
        skipped: unreadable images up to then, of all processes.
    """

    def __init__(
        self, run: RunDirectory, accelerator: Accelerator, optimizer: Optimizer, objective: Stateful | None, keep: int
    ) -> None:
        self.run, self.accelerator, self.optimizer = run, accelerator, optimizer
        self.objective, self.keep = objective, keep
        self.step, self.seconds = 0, 0.0
        self.skipped: set[str] = set()

    def resume(self, is_finite: Callable[[], bool]) -> list[str]:
        """Load the newest whole checkpoint, if there is any; return a sentence for each that is damaged.

        Args:
            is_finite: looks through the numbers that were loaded.

        Raises:
            ValueError: there are checkpoints, but none is whole, or one cannot be read.
        """
        remarks: list[str] = []
        for path in self.run.checkpoint_paths():
            if changed := changed_files(path):
                remarks.append(f"checkpoint {path} is damaged ({', '.join(changed)} changed since it was written)")
                continue
            self._load(path)
            if is_finite():
                return [*remarks, f"going on from {path}"] if remarks else []
            remarks.append(f"checkpoint {path} holds numbers that are not finite")
        if remarks:
            raise ValueError(
                f"{'; '.join(remarks)}: none is left to resume from; remove {self.run.checkpoints} to begin again"
            )
        return []

    def _load(self, path: Path) -> None:
        try:
            progress = files.read_json(path / "progress.json")
            self.step, self.seconds, self.skipped = progress["step"], progress["seconds"], set(progress["skipped"])
            asked = [{**group, "params": None} for group in self.optimizer.param_groups]
            self.accelerator.load_state(str(path))
            for group, settings in zip(self.optimizer.param_groups, asked, strict=True):
                group |= settings | {"params": group["params"]}  # rates and decay are this run's, as it was asked
            if self.objective is not None:
                self.objective.load(path)
        except Exception as error:
            raise ValueError(
                f"checkpoint {path} cannot be read ({error}); remove it to resume from the one before"
            ) from error

    def save(self, step: int, seconds: float, newly_skipped: set[str]) -> None:
        """Write a checkpoint under a hidden name, then rename it: it is whole, or it is not there."""
        accelerator, final = self.accelerator, self.run.checkpoint_path(step)
        hidden = final.with_name(f".{final.name}.tmp")
        with files.writing(final):
            try:
                accelerator.save_state(str(hidden))
            except BaseException:
                shutil.rmtree(hidden, ignore_errors=True)
                raise
        new = sorted(set(_gather_lists(list(newly_skipped), accelerator)) - self.skipped)
        self.step, self.seconds = step, seconds
        self.skipped.update(new)
        if accelerator.is_main_process:
            if new:
                self.run.log({"step": step, "skipped_images": new})
            files.write_json(
                hidden / "progress.json", {"step": step, "seconds": seconds, "skipped": sorted(self.skipped)}
            )
            if self.objective is not None:
                self.objective.save(hidden)
            write_digests(hidden)
            files.publish(hidden, final)
            self.run.prune_checkpoints(self.keep, step)
        accelerator.wait_for_everyone()


def _gather_lists(items: list[str], accelerator: Accelerator) -> list[str]:
    if accelerator.distributed_type == DistributedType.NO:
        return items
    gathered: list[list[str]] = [[] for _ in range(accelerator.num_processes)]
    torch.distributed.all_gather_object(gathered, items)
    return [item for part in gathered for item in part]
