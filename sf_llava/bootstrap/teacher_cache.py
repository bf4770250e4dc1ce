"""The teacher once: what its blocks make of a view is kept on disk and read when the view is shown again.

    plan, sentence = plan_cache(...)          # cache_plan.py: what is kept, where, how much it is
    with plan.open(accelerator) as cache:
        hidden = cache(batch.views, look)

A batch whose views are all there is read; any other runs whole through the teacher, so that it always sees batches of
one size, and is kept. What is kept is the CLS that leaves the last block (or what attention pooling reads there), from
which embeddings are made anew in every step (see :meth:`Teacher.cls_and_tokens`), and where objectives compare them
the tokens that LLaVA reads. So training with a cache and without is the same to the bit, as long as the teacher's
blocks say the same of a picture whatever its batch. That is looked into: what is computed although it is there is
compared with it, the first batch of every process for this alone, and at a difference nothing is read any more.

Letters: B pictures of a batch, D width, T vectors of a row: CLS, and the teacher's tokens where they are kept.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sf_llava.bootstrap.objectives.sum import HiddenStates
from sf_llava.bootstrap.rows import RowFile
from sf_llava.bootstrap.views import View


@dataclass(frozen=True)
class RowShape:
    """What is kept of a view: ``tokens`` vectors, CLS first, of ``width`` numbers."""

    tokens: int
    width: int
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return self.tokens * self.width * self.dtype.itemsize


@dataclass
class Computed:
    """A batch that the teacher has seen: its ``views`` by file, which of them were ``known``, its rows old and new."""

    views: Sequence[Sequence[View]]
    known: list[bool]
    before: Tensor
    rows: Tensor
    copied: torch.cuda.Event | None


class TeacherCache:
    """Gives the teacher's hidden states of batches, from its files or from the teacher.

    Args:
        opened: a file for each set of images of a batch.
        shape: of their rows.
        device: where hidden states are needed.
    """

    def __init__(self, opened: Sequence[RowFile], shape: RowShape, device: torch.device) -> None:
        self.files, self.shape, self.device = opened, shape, device
        self.reads = self.writes = True
        self.compared = False  # whether rows were found to be what the teacher says
        self._computed: Computed | None = None

    def __call__(self, views: Sequence[Sequence[View]], look: Callable[[], HiddenStates]) -> HiddenStates:
        """Give the hidden states of a batch.

        Args:
            views: which views the batch shows, for each file.
            look: runs the teacher on the batch.
        """
        self.settle()
        if not (self.reads or self.writes):
            return look()
        rows, known = self._read(views)
        if self.compared and all(known):
            rows = rows.to(self.device, non_blocking=True)
            return HiddenStates(rows[:, 0].contiguous(), rows[:, 1:].contiguous() if self.shape.tokens > 1 else None)
        hidden = look()
        self._computed = Computed(views, known, rows, *self._copy(hidden))
        return hidden

    def settle(self) -> None:
        """Write the rows of the last batch that the teacher saw, a step late: a GPU is not waited for."""
        computed, self._computed = self._computed, None
        if computed is None:
            return
        if computed.copied is not None:
            computed.copied.synchronize()
        places = [(file, view) for file, views in zip(self.files, computed.views, strict=True) for view in views]
        for (file, view), known, before, row in zip(
            places, computed.known, computed.before, computed.rows, strict=True
        ):
            if not known:
                self._write(file, view, row)
            elif bytes_of(before) == bytes_of(row):
                self.compared = True
            else:
                self._distrust(file, (before.float() - row.float()).abs().max().item())
                return

    def _read(self, views: Sequence[Sequence[View]]) -> tuple[Tensor, list[bool]]:
        """Read the rows that are there into (B, T, D); say for each whether it is."""
        size = (sum(map(len, views)), self.shape.tokens, self.shape.width)
        rows = torch.empty(size, dtype=self.shape.dtype, pin_memory=self.device.type == "cuda")
        places = [(file, view) for file, some in zip(self.files, views, strict=True) for view in some]
        damaged = sum(file.damaged for file in self.files)
        known = [
            self.reads and file.read(view.number, view.digest, bytes_of(row))
            for (file, view), row in zip(places, rows, strict=True)
        ]
        if not damaged and (found := [str(file.path) for file in self.files if file.damaged]):
            warnings.warn(
                f"{' and '.join(found)}: rows are damaged, or of other pictures; they are computed again", stacklevel=3
            )
        return rows, known

    def _copy(self, hidden: HiddenStates) -> tuple[Tensor, torch.cuda.Event | None]:
        """Begin to copy hidden states to rows (B, T, D) on the CPU; the event says when they are there."""
        rows = hidden.cls[:, None]
        if hidden.tokens is not None:
            rows = torch.cat([rows, hidden.tokens], dim=1)
        if self.device.type != "cuda":
            return rows.cpu(), None
        rows, copied = rows.to("cpu", non_blocking=True), torch.cuda.Event()
        copied.record()
        return rows, copied

    def _write(self, file: RowFile, view: View, row: Tensor) -> None:
        if not self.writes:
            return
        try:
            file.write(view.number, view.digest, bytes_of(row))
        except OSError as error:
            self.writes = False
            warnings.warn(f"{error}: what the teacher says is not kept any more, training goes on", stacklevel=4)

    def _distrust(self, file: RowFile, difference: float) -> None:
        self.reads = self.writes = False
        warnings.warn(
            f"the teacher says something else of a picture than {file.path} holds (by up to {difference:.1e}): nothing "
            "is read there any more, training goes on as without. Remove it; if it happens again, what this teacher "
            "says depends on the batch on this machine: `teacher_cache` none",
            stacklevel=4,
        )


def bytes_of(row: Tensor) -> memoryview:
    """Give the bytes of a contiguous tensor on the CPU, without a copy."""
    return row.reshape(-1).view(torch.uint8).numpy().data
