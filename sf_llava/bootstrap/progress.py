"""What is told of a run on its way: the bar, the log, trackers, pictures."""

import sys
from types import TracebackType

from accelerate import Accelerator
from tqdm import tqdm

from sf_llava import files
from sf_llava.bootstrap.pace import Pace
from sf_llava.bootstrap.run_directory import RunDirectory
from sf_llava.bootstrap.trackers import finish_trackers, start_trackers


class Progress:
    """Tells of every logged step; a context that closes what it opened before an error is told.

    Only the main process writes. ``log.jsonl`` holds what trackers are told, but for the two measures of speed: equal
    runs have equal logs.

    Args:
        run: where the log lies.
        accelerator: knows the main process, and the trackers.
        num_steps: of the run.
        step: where it starts.
        batch_size: images of one step.
        workers: data loading processes of this process.
    """

    def __init__(
        self, run: RunDirectory, accelerator: Accelerator, num_steps: int, step: int, batch_size: int, workers: int
    ) -> None:
        self.run, self.accelerator, self.is_main = run, accelerator, accelerator.is_main_process
        self.pace = Pace(batch_size, workers)
        self.told: set[bool] = set()  # that it is starved, that it is fed: each is told once
        if self.is_main:
            start_trackers(accelerator, run, step)
        self.bar = tqdm(
            total=num_steps, initial=step, desc="bootstrap", unit="step", disable=not self.is_main,
            dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else 30,
        )  # fmt: skip

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.close()
        finish_trackers(self.accelerator)

    def advance(self, seconds: float, waited: float) -> None:
        """Count one step, the seconds it took, and those of them in which it waited for data."""
        self.bar.update()
        self.pace.add(seconds, waited)

    def log(self, step: int, scores: dict[str, float], lr: float) -> None:
        """Tell the means of the scores since the last time."""
        if not self.is_main:
            return
        record = {"step": step, **scores, "lr": lr}
        self.run.log(record)
        rate, waiting = self.pace.images_per_second, self.pace.waiting
        self.bar.set_postfix(
            {name: f"{score:.4f}" for name, score in scores.items()}, img_s=f"{rate:.0f}", wait=f"{waiting:.0%}"
        )
        self._track(step, record | {"images_per_second": rate, "waiting_for_data": waiting})
        if self.pace.steps and self.pace.is_starved not in self.told:
            self.told.add(self.pace.is_starved)
            self.bar.write(f"step {step}: {self.pace.advice()}")
        self.pace.restart()

    def validated(self, step: int, scores: dict[str, float], picture: bytes | None) -> None:
        """Tell what a validation found, and where the student looks, if it has RoIs."""
        if not self.is_main:
            return
        self.run.log({"step": step, **scores})
        self._track(step, scores)
        self.bar.write(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
        if picture is not None:
            files.write_bytes(self.run.path / "rois" / f"step-{step:07d}.png", picture)

    def _track(self, step: int, record: dict[str, float]) -> None:
        self.accelerator.log({name: value for name, value in record.items() if name != "step"}, step=step)
