"""The bootstrap's training loop: align a student with a frozen teacher on unlabelled images, exactly resumable.

Every step is a function of (weights, optimiser state, step): images, their order and their augmentation come from
(seed, epoch, index), learning rates from the step. A killed run therefore resumes to the bit on CPU.
"""

import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from sf_llava import files
from sf_llava.bootstrap.alignment import Alignment
from sf_llava.bootstrap.batches import micro_batches
from sf_llava.bootstrap.config import BootstrapConfig
from sf_llava.bootstrap.data import BootstrapData
from sf_llava.bootstrap.inherit import parameter_groups
from sf_llava.bootstrap.losses import cosine_loss, kl_loss
from sf_llava.bootstrap.run_directory import RunDirectory
from sf_llava.bootstrap.schedule import count_steps, learning_rate_factor
from sf_llava.bootstrap.validation import Validator, resize_pixels
from sf_llava.model import SparseFormerModel
from sf_llava.teachers.base import Teacher
from sf_llava.teachers.compiled import compile_frozen, pays
from sf_llava.weights.digests import changed_files, write_digests


class Trainer:
    """Runs the steps of one bootstrap.

    Args:
        config: completed; see :func:`sf_llava.bootstrap.config.complete`.
        accelerator: devices, processes, precision.
        student: with ``requires_grad`` set by :func:`sf_llava.bootstrap.inherit.set_trainable`.
        teacher: frozen.
        data: what to read, at the larger of both input sizes.
        run: where everything is written.
        validator: called every ``eval_every`` steps.
        alignment: losses on tokens, None for the paper's loss alone.
    """

    def __init__(
        self,
        config: BootstrapConfig,
        accelerator: Accelerator,
        student: SparseFormerModel,
        teacher: Teacher,
        data: BootstrapData,
        run: RunDirectory,
        validator: Validator,
        alignment: Alignment | None = None,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.teacher = teacher
        self.teach = teacher if alignment is None else lambda x: teacher.embeds_and_tokens(x, alignment.layer)
        self.images = data.images
        self.labels = None if data.labels is None else torch.tensor(data.labels)
        self.run = run
        self.validator = validator
        self.alignment = alignment
        self.score_names = ("loss", "cosine", *(alignment.weights if alignment else ()))
        self.num_steps, self.num_warmup_steps = count_steps(config, len(data.images))
        self.student_size = student.config.image_size
        self._check_memory()
        groups = parameter_groups(
            student, config.lr, config.inherited_lr_scale, config.weight_decay, config.reuse_weights
        )
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), fused=True)
        self.student, self.optimizer = accelerator.prepare(student, optimizer)
        if pays(accelerator.device, teacher.dtype, self.num_steps):
            pictures = self.micro_batch_size + (config.llm_batch_size or 0) * self.micro_batch_size // config.batch_size
            size = (pictures, 3, teacher.image_size, teacher.image_size)
            self.teach = compile_frozen(self.teach, torch.zeros(size, device=accelerator.device))
        self.step = 0
        self.seconds = 0.0  # of training, kept over resumptions
        self.skipped: set[str] = set()  # unreadable images up to the last checkpoint, of all processes
        self.newly_skipped: set[str] = set()  # since then, of this process

    def resume(self) -> list[str]:
        """Load the newest whole checkpoint, if there is any; return a sentence for each that is damaged.

        Raises:
            ValueError: there are checkpoints, but none is whole, or one cannot be read.
        """
        remarks: list[str] = []
        for path in self.run.checkpoint_paths():
            if changed := changed_files(path):
                remarks.append(f"checkpoint {path} is damaged ({', '.join(changed)} changed since it was written)")
                continue
            self._load(path)
            if self._is_finite():
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
                group |= settings | {"params": group["params"]}  # rates and decay are this run's, as its flags say
            if self.alignment is not None:
                self.alignment.load(path)
        except Exception as error:
            raise ValueError(
                f"checkpoint {path} cannot be read ({error}); remove it to resume from the one before"
            ) from error

    def train(self) -> None:
        """Run all remaining steps."""
        with ExitStack() as stack:  # both end before an error is told
            writer = SummaryWriter(self.run.path / "tensorboard", purge_step=self.step) if self._is_main else None
            if writer:
                stack.callback(writer.close)
            bar = tqdm(
                total=self.num_steps, initial=self.step, desc="bootstrap", unit="step", disable=not self._is_main,
                dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else 30,
            )  # fmt: skip
            self._take_steps(stack.enter_context(bar), writer)

    def _take_steps(self, bar: tqdm, writer: SummaryWriter | None) -> None:
        batches = self._batches()
        clock = time.perf_counter()
        window = torch.zeros(len(self.score_names), device=self.accelerator.device)  # sums since the last log line
        while self.step < self.num_steps:
            window += self._train_step(batches)
            self.step += 1
            self.seconds, clock = self.seconds + time.perf_counter() - clock, time.perf_counter()
            last = self.step == self.num_steps
            bar.update()
            if self.step % self.config.log_every == 0 or last:
                self._log(window / ((self.step - 1) % self.config.log_every + 1), bar, writer)
                window.zero_()
            if self.step % self.eval_every == 0 or last:
                self._validate(bar, writer)
            if self.step % self.save_every == 0 or last:
                self.save_checkpoint()

    @property
    def eval_every(self) -> int:
        return _multiple(self.config.eval_every or self.num_steps / 10, self.config.log_every)

    @property
    def save_every(self) -> int:
        """Checkpoints fall on log lines, so that no half-summed window needs saving."""
        return _multiple(self.config.save_every or self.num_steps / 20, self.config.log_every)

    @property
    def _is_main(self) -> bool:
        return self.accelerator.is_main_process

    def _batches(self) -> Iterator[dict]:
        """Give micro-batches from the current step on, on the device."""
        config, device = self.config, self.accelerator.device
        sets = [(self.images, config.batch_size)]
        if self.alignment is not None and self.alignment.llm is not None:
            sets.append((self.alignment.llm.pictures, config.llm_batch_size))
        loaders = [
            micro_batches(images, config, self.accelerator, size, self.accumulation, self.step) for images, size in sets
        ]
        for batch, *asked in zip(*loaders, strict=True):
            pixel_values = [part["pixel_values"].to(device, non_blocking=True) for part in (batch, *asked)]
            if asked:
                batch["questions"] = asked[0]["index"]
                batch["skipped"] += asked[0]["skipped"]
            batch["pixel_values"] = torch.cat(pixel_values) if asked else pixel_values[0]
            yield batch

    @property
    def micro_batch_size(self) -> int:
        """Images a process sees at once."""
        processes = self.accelerator.num_processes
        micro = self.config.micro_batch_size or max(1, self.config.batch_size // processes)
        if self.config.batch_size % (micro * processes):
            raise ValueError(
                f"`batch_size` {self.config.batch_size} is not a multiple of {processes} processes x {micro} images"
            )
        return micro

    def _check_memory(self) -> None:
        """Refuse micro-batches whose pixels alone do not fit into this machine, where a kill would follow."""
        side = max(self.student_size, self.teacher.image_size)
        pixels = 3 * 4 * side * side * self.micro_batch_size
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if pixels > memory:
            raise ValueError(
                f"{self.micro_batch_size:,} images of {side} pixels at once take {pixels / 1e9:,.0f} GB, and this "
                f"machine has {memory / 1e9:,.0f}: lower `batch_size` or `micro_batch_size`"
            )

    @property
    def accumulation(self) -> int:
        """Micro-batches of one optimiser step."""
        return self.config.batch_size // (self.micro_batch_size * self.accelerator.num_processes)

    def _train_step(self, batches: Iterator[dict]) -> Tensor:
        """Take one optimiser step; return this process's scores, as ``score_names`` says."""
        self._set_learning_rates()
        scores = torch.zeros(len(self.score_names), device=self.accelerator.device)
        for micro_step in range(self.accumulation):
            batch = next(batches)
            self.newly_skipped.update(batch["skipped"])
            if micro_step == self.accumulation - 1:
                scores += self._backward(batch, micro_step)
            else:
                with self.accelerator.no_sync(self.student):
                    scores += self._backward(batch, micro_step)
        self.accelerator.clip_grad_norm_(self.student.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return scores

    def _backward(self, batch: dict, micro_step: int) -> Tensor:
        teacher_pixels = resize_pixels(batch["pixel_values"], self.teacher.image_size)
        student_pixels = resize_pixels(batch["pixel_values"], self.student_size)
        with torch.no_grad():
            taught = self.teach(teacher_pixels)
        terms: dict[str, Tensor] = {}
        if self.alignment is None:
            target = taught.float()
            embeds = self.student(student_pixels).image_embeds.float()
        else:
            layer, count = self.alignment.layer, len(batch["index"])  # behind them, the pictures of questions
            target, target_tokens = taught
            output = self.student(student_pixels, output_hidden_states=(layer, -1))
            target, embeds = target[:count].float(), output.image_embeds[:count].float()
            key = (self.config.seed, self.step, micro_step, self.accelerator.process_index)
            terms = self.alignment(output.hidden_states[layer], output.rois[:, -1], target_tokens, batch, key)
        loss = self._loss(embeds, target, batch["index"])
        for name, term in terms.items():
            loss = loss + self.alignment.weights[name] * term
        self.accelerator.backward(loss / self.accumulation)
        cosine = F.cosine_similarity(embeds.detach(), target, dim=-1).mean()
        return torch.stack([loss.detach(), cosine, *(term.detach() for term in terms.values())]) / self.accumulation

    def _loss(self, embeds: Tensor, target: Tensor, index: Tensor) -> Tensor:
        config = self.config
        if config.loss == "kl":
            loss = kl_loss(self.validator.class_logits(embeds), self.validator.class_logits(target), config.temperature)
        else:
            loss = cosine_loss(embeds, target)
        if config.class_loss_weight:
            labels = self.labels[index].to(embeds.device, non_blocking=True)
            loss = loss + config.class_loss_weight * F.cross_entropy(self.validator.class_logits(embeds), labels)
        return loss

    def _set_learning_rates(self) -> None:
        for group in self.optimizer.param_groups:
            factor = learning_rate_factor(self.step, self.num_steps, self.num_warmup_steps, group["inherited"])
            group["lr"] = group["peak_lr"] * factor

    def _log(self, means: Tensor, bar: tqdm, writer: SummaryWriter | None) -> None:
        scores = dict(zip(self.score_names, self.accelerator.reduce(means, "mean").tolist(), strict=True))
        self._check_finite(scores)
        new = max((group["lr"] for group in self.optimizer.param_groups if not group["inherited"]), default=0.0)
        record = {"step": self.step, **scores, "lr": new}
        if self._is_main:
            self.run.log(record)
            rate = bar.format_dict["rate"] or 0.0
            shown = {name: f"{score:.4f}" for name, score in scores.items()}
            bar.set_postfix(shown, img_s=f"{rate * self.config.batch_size:.0f}")
            self._to_tensorboard(writer, record | {"images_per_second": rate * self.config.batch_size})

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

    def _to_tensorboard(self, writer: SummaryWriter, record: dict[str, float]) -> None:
        for name, value in record.items():
            if name != "step":
                writer.add_scalar(name, value, self.step)

    def _validate(self, bar: tqdm, writer: SummaryWriter | None) -> None:
        scores = self.validator(self.student)
        picture = self.validator.draw(self.student)  # on all processes: under FSDP a forward pass is a collective
        if self._is_main:
            self.run.log({"step": self.step, **scores})
            self._to_tensorboard(writer, scores)
            bar.write(f"step {self.step}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
            files.write_bytes(self.run.path / "rois" / f"step-{self.step:07d}.png", picture)

    def save_checkpoint(self) -> None:
        """Write a checkpoint under a hidden name, then rename it: it is whole, or it is not there."""
        accelerator, final = self.accelerator, self.run.checkpoint_path(self.step)
        hidden = final.with_name(f".{final.name}.tmp")
        with files.writing(final):
            try:
                accelerator.save_state(str(hidden))
            except BaseException:
                shutil.rmtree(hidden, ignore_errors=True)
                raise
        new = sorted(set(_gather_lists(list(self.newly_skipped), accelerator)) - self.skipped)
        self.skipped.update(new)
        self.newly_skipped.clear()
        if self._is_main:
            if new:
                self.run.log({"step": self.step, "skipped_images": new})
            progress = {"step": self.step, "seconds": self.seconds, "skipped": sorted(self.skipped)}
            files.write_json(hidden / "progress.json", progress)
            if self.alignment is not None:
                self.alignment.save(hidden)
            write_digests(hidden)
            files.publish(hidden, final)
            self.run.prune_checkpoints(self.config.keep_checkpoints, self.step)
        accelerator.wait_for_everyone()

    def final_scores(self) -> dict[str, float]:
        """Return the last validation's scores as they were logged; measure once more where that line is lost."""
        known = [line for line in self.run.read_log() if "val_cosine" in line and line["step"] == self.num_steps]
        return known[-1] if known else {"step": self.num_steps, **self.validator(self.student)}

    def final_state(self) -> dict[str, Tensor]:
        """Return the student's full state dict, gathered from all processes, on the CPU."""
        return {name: value.cpu() for name, value in self.accelerator.get_state_dict(self.student).items()}


def _multiple(steps: float, unit: int) -> int:
    """Round up to a multiple of ``unit``."""
    return max(1, -(-int(steps) // unit)) * unit


def _gather_lists(items: list[str], accelerator: Accelerator) -> list[str]:
    if accelerator.distributed_type == DistributedType.NO:
        return items
    gathered: list[list[str] | None] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(gathered, items)
    return [item for part in gathered for item in part]
