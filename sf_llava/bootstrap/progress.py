"""What is told of a run on its way: the bar, the log, TensorBoard, pictures."""

import sys
from types import TracebackType
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from sf_llava import files
from sf_llava.bootstrap.run_directory import RunDirectory
from sf_llava.extras import is_installed


class Progress:
    """Tells of every logged step; a context that closes what it opened before an error is told.

    Only the main process writes. TensorBoard files are written where that package is installed; ``log.jsonl`` holds all
    of it too.

    Args:
        run: where the log lies.
        accelerator: knows the main process.
        num_steps: of the run.
        step: where it starts.
        batch_size: images of one step.
    """

    def __init__(self, run: RunDirectory, accelerator: Accelerator, num_steps: int, step: int, batch_size: int) -> None:
        self.run, self.is_main, self.batch_size = run, accelerator.is_main_process, batch_size
        self.writer: Any = None
        if self.is_main and is_installed("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(run.path / "tensorboard", purge_step=step)
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
        if self.writer is not None:
            self.writer.close()

    def advance(self) -> None:
        """Count one step."""
        self.bar.update()

    def log(self, step: int, scores: dict[str, float], lr: float) -> None:
        """Tell the means of the scores since the last time."""
        if not self.is_main:
            return
        record = {"step": step, **scores, "lr": lr}
        self.run.log(record)
        rate = (self.bar.format_dict["rate"] or 0.0) * self.batch_size
        self.bar.set_postfix({name: f"{score:.4f}" for name, score in scores.items()}, img_s=f"{rate:.0f}")
        self._to_tensorboard(step, record | {"images_per_second": rate})

    def validated(self, step: int, scores: dict[str, float], picture: bytes) -> None:
        """Tell what a validation found, and where the student looks."""
        if not self.is_main:
            return
        self.run.log({"step": step, **scores})
        self._to_tensorboard(step, scores)
        self.bar.write(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
        files.write_bytes(self.run.path / "rois" / f"step-{step:07d}.png", picture)

    def _to_tensorboard(self, step: int, record: dict[str, float]) -> None:
        if self.writer is None:
            return
        for name, value in record.items():
            if name != "step":
                self.writer.add_scalar(name, value, step)
