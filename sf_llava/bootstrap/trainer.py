"""The bootstrap's training loop: align a student with a frozen teacher on unlabelled images, exactly resumable.

Every step is a function of (weights, optimiser state, step): images, their order and their augmentation come from
(seed, epoch, index), learning rates from the step. A killed run therefore resumes to the bit on CPU.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor

from sf_llava.bootstrap.batches import Batch, Loading, batches
from sf_llava.bootstrap.cache_plan import CachePlan, ShownImages, plan_cache
from sf_llava.bootstrap.checkpoints import Checkpoints
from sf_llava.bootstrap.config import OptimiserConfig, RunConfig
from sf_llava.bootstrap.inherit import parameter_groups
from sf_llava.bootstrap.inputs import digest_images
from sf_llava.bootstrap.objectives.sum import HiddenStates, ObjectiveSum, Taught
from sf_llava.bootstrap.progress import Progress
from sf_llava.bootstrap.run_directory import RunDirectory
from sf_llava.bootstrap.schedule import draw_num_latents, learning_rate_factor, make_plan
from sf_llava.bootstrap.teacher_cache import TeacherCache
from sf_llava.bootstrap.validation import Validator
from sf_llava.data.bootstrap_images import BootstrapImages
from sf_llava.data.sampler import generator_of
from sf_llava.data.streaming import BootstrapStream
from sf_llava.data.transforms import resize_pixels
from sf_llava.measure.tuned import Student
from sf_llava.teachers.base import Teacher
from sf_llava.teachers.compiled import compile_frozen, pays

LATENTS_KEY = 2**32
"""Of the random numbers that decide how many latents a step has: no picture has this index."""


class Trainer:
    """Runs the steps of one bootstrap.

    Args:
        config: how long, in which batches, at which rates.
        running: what is told and kept on the way; seed and data processes.
        accelerator: devices, processes, precision.
        student: with ``requires_grad`` set by :func:`sf_llava.bootstrap.inherit.set_trainable`.
        reused: whether the student's cortex counts as inherited.
        teacher: frozen.
        images: what to train on, at the larger of both input sizes.
        objective: what for.
        run: where everything is written.
        validator: called every ``eval_every`` steps.
    """

    def __init__(
        self,
        config: OptimiserConfig,
        running: RunConfig,
        accelerator: Accelerator,
        student: Student,
        reused: bool,
        teacher: Teacher,
        images: BootstrapImages | BootstrapStream,
        objective: ObjectiveSum,
        run: RunDirectory,
        validator: Validator,
    ) -> None:
        self.config, self.running, self.accelerator = config, running, accelerator
        self.teacher, self.images, self.objective = teacher, images, objective
        self.run, self.validator = run, validator
        self.workers = images.choose_workers(running.workers, accelerator.num_processes)
        self.plan = make_plan(config, running, images.num_images, accelerator.num_processes)
        self.student_size = student.config.image_size
        self.latents_range = student.config.num_latents_range
        check_memory(self.plan.micro_batch_size, max(self.student_size, teacher.image_size))
        groups = parameter_groups(student, config.lr, config.inherited_lr_scale, config.weight_decay, reused)
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), fused=True)
        self.student, self.optimizer = accelerator.prepare(student, optimizer)
        self.look: Callable[[Tensor], HiddenStates] = partial(objective.look, teacher)
        self.is_compiled = pays(accelerator.device, teacher.dtype, self.plan.num_steps)
        micro, asked = self.plan.micro_batch_size, 0 if objective.pictures is None else config.llm_batch_size
        self.pictures_at_once = micro + asked * micro // config.batch_size
        if self.is_compiled:
            size = (self.pictures_at_once, 3, teacher.image_size, teacher.image_size)
            self.look = compile_frozen(self.look, torch.zeros(size, device=accelerator.device))
        self.checkpoints = Checkpoints(run, accelerator, self.optimizer, objective, running.keep_checkpoints)
        self.cache: TeacherCache | None = None
        self.step, self.seconds = 0, 0.0
        self.waited = 0.0  # seconds of this step until its data were there
        self.newly_skipped: set[str] = set()  # unreadable images since the last checkpoint, of this process

    def resume(self) -> list[str]:
        """Go on from the newest whole checkpoint, if there is any; see :meth:`Checkpoints.resume`."""
        remarks = self.checkpoints.resume(self._is_finite)
        self.step, self.seconds = self.checkpoints.step, self.checkpoints.seconds
        return remarks

    def plan_cache(self, inputs: dict[str, str]) -> tuple[CachePlan | None, str]:
        """Decide what is kept of the teacher; see :func:`plan_cache`. ``inputs`` are digests by name.

        Raises:
            ValueError: a directory was asked for, and the images are streamed: no view of theirs has a number.
        """
        if isinstance(self.images, BootstrapStream):
            if self.running.teacher_cache not in ("auto", "none"):
                raise ValueError(
                    f"`teacher_cache` {self.running.teacher_cache}: images that are streamed have no numbers by which "
                    "what the teacher says could be found again; use local shards, or leave it out"
                )
            return None, ""
        steps, pictures = self.plan.num_steps, self.objective.pictures
        sets = [ShownImages(self.images, steps * self.config.batch_size, inputs["training images"])]
        if pictures is not None:
            sets.append(ShownImages(pictures, steps * self.config.llm_batch_size, digest_images(pictures.source)))
        weights = next(digest for name, digest in inputs.items() if name.startswith("teacher weights"))
        layer = self.objective.layer if self.objective.needs_tokens else None
        place = self.running.teacher_cache, self.run.teacher_cache
        return plan_cache(*place, sets, self.pictures_at_once, self.teacher, weights, layer, self.is_compiled)

    def train(self) -> None:
        """Run all remaining steps."""
        sizes = (self.plan.num_steps, self.step, self.config.batch_size, self.workers)
        with Progress(self.run, self.accelerator, *sizes) as progress:
            self._take_steps(progress)
        if self.cache is not None:
            self.cache.settle()

    def _take_steps(self, progress: Progress) -> None:
        plan, stream = self.plan, self._batches()
        clock = time.perf_counter()
        window = torch.zeros(len(self.objective.names), device=self.accelerator.device)  # sums since the last log line
        while self.step < plan.num_steps:
            window += self._train_step(stream)
            self.step += 1
            took, clock = time.perf_counter() - clock, time.perf_counter()
            self.seconds += took
            progress.advance(took, self.waited)
            if plan.is_due(self.step, plan.log_every):
                self._log(window / ((self.step - 1) % plan.log_every + 1), progress)
                window.zero_()
            if plan.is_due(self.step, plan.eval_every):
                # On all processes: under FSDP a forward pass is a collective.
                progress.validated(self.step, self.validator(self.student), self.validator.draw(self.student))
            if plan.is_due(self.step, plan.save_every):
                self.checkpoints.save(self.step, self.seconds, self.newly_skipped)
                self.newly_skipped.clear()

    def _batches(self) -> Iterator[Batch]:
        """Give micro-batches from the current step on, on the device."""
        pictures = self.objective.pictures
        asked = None if pictures is None else (pictures, self.config.llm_batch_size)
        loading = Loading(self.running.seed, self.workers, self.plan.accumulation, self.cache is not None)
        return batches(self.images, self.config.batch_size, asked, loading, self.accelerator, self.step)

    def _train_step(self, stream: Iterator[Batch]) -> Tensor:
        """Take one optimiser step; return this process's scores, as the objective names them."""
        self._set_learning_rates()
        self.waited = 0.0
        scores = torch.zeros(len(self.objective.names), device=self.accelerator.device)
        for micro_step in range(self.plan.accumulation):
            started = time.perf_counter()
            batch = next(stream)
            self.waited += time.perf_counter() - started
            self.newly_skipped.update(batch.skipped)
            if micro_step == self.plan.accumulation - 1:
                scores += self._backward(batch, micro_step)
            else:
                with self.accelerator.no_sync(self.student):
                    scores += self._backward(batch, micro_step)
        self.accelerator.clip_grad_norm_(self.student.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return scores

    @torch.no_grad()
    def _teach(self, batch: Batch) -> Taught:
        def look() -> HiddenStates:
            return self.look(resize_pixels(batch.pixel_values, self.teacher.image_size))

        return self.objective.teach(self.teacher, self.cache(batch.views, look) if self.cache else look())

    def _backward(self, batch: Batch, micro_step: int) -> Tensor:
        taught = self._teach(batch)
        pixels = resize_pixels(batch.pixel_values, self.student_size)
        key = (self.running.seed, self.step, micro_step, self.accelerator.process_index)
        terms = self.objective(self.student, pixels, taught, batch, key, self._draw_num_latents())
        self.accelerator.backward(terms.loss / self.plan.accumulation)
        return terms.scores / self.plan.accumulation

    def _draw_num_latents(self) -> int | None:
        """Draw the number of latents of this step, the same on all processes; None for a student of one number."""
        if self.latents_range is None:
            return None
        lowest, highest = self.latents_range
        return draw_num_latents(lowest, highest, generator_of(self.running.seed, self.step, LATENTS_KEY))

    def _set_learning_rates(self) -> None:
        plan = self.plan
        for group in self.optimizer.param_groups:
            factor = learning_rate_factor(self.step, plan.num_steps, plan.num_warmup_steps, group["inherited"])
            group["lr"] = group["peak_lr"] * factor

    def _log(self, means: Tensor, progress: Progress) -> None:
        reduced = self.accelerator.reduce(means, "mean").tolist()
        scores = dict(zip(self.objective.names, reduced, strict=True))
        self._check_finite(scores)
        new = max((group["lr"] for group in self.optimizer.param_groups if not group["inherited"]), default=0.0)
        progress.log(self.step, scores, new)

    def _check_finite(self, scores: dict[str, float]) -> None:
        """Stop before numbers that are not finite are validated or kept.

        Raises:
            RuntimeError: a score since the last log line, a weight or the optimiser's memory is not finite.
        """
        if (finite := all(map(math.isfinite, scores.values()))) and self._is_finite():
            return
        what = "weights are no longer finite" if finite else f"loss is {scores['loss']}"
        kept = self.run.checkpoint_paths()
        where = f"goes on from {kept[0]}, which is whole" if kept else "begins again, as no checkpoint was due yet"
        raise RuntimeError(
            f"training has diverged: the {what} at step {self.step}. The same command with `resume` and a lower `lr` "
            f"(it was {self.config.lr:g}), `clip_norm` or `dtype` fp32 {where}"
        )

    @torch.no_grad()
    def _is_finite(self) -> bool:
        """Whether all trained weights and what the optimiser keeps are finite, on all processes."""
        tensors = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        tensors += [
            value for kept in self.optimizer.state.values() for value in kept.values() if torch.is_tensor(value)
        ]
        local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
        bad = sum((~tensor.isfinite().all()).to(self.accelerator.device, torch.float32) for tensor in local)
        return not self.accelerator.reduce(torch.as_tensor(bad, device=self.accelerator.device), "sum").item()

    def final_scores(self) -> dict[str, float]:
        """Return the last validation's scores as they were logged; measure once more where that line is lost."""
        known = [line for line in self.run.read_log() if "val_cosine" in line and line["step"] == self.plan.num_steps]
        return known[-1] if known else {"step": self.plan.num_steps, **self.validator(self.student)}

    def final_state(self) -> dict[str, Tensor]:
        """Return the student's full state dict, gathered from all processes, on the CPU."""
        return {name: value.cpu() for name, value in self.accelerator.get_state_dict(self.student).items()}


def check_memory(num_images: int, side: int) -> None:
    """Refuse micro-batches whose pixels alone do not fit into this machine, where a kill would follow.

    Raises:
        ValueError: ``num_images`` of ``side`` pixels do not fit.
    """
    pixels = 3 * 4 * side * side * num_images
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if pixels > memory:
        raise ValueError(
            f"{num_images:,} images of {side} pixels at once take {pixels / 1e9:,.0f} GB, and this "
            f"machine has {memory / 1e9:,.0f}: lower `batch_size` or `micro_batch_size`"
        )
