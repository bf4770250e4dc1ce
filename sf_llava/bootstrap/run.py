"""One bootstrap from its configuration: load, inherit, train, save, measure."""

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, broadcast_object_list

from sf_llava import files
from sf_llava.bootstrap.cache_plan import CachePlan
from sf_llava.bootstrap.config import CHANGEABLE_FIELDS, RUN_TIME_FIELDS, BootstrapConfig, RunConfig
from sf_llava.bootstrap.data import BootstrapData, open_data
from sf_llava.bootstrap.inherit import set_trainable
from sf_llava.bootstrap.inputs import digest_inputs
from sf_llava.bootstrap.model_card import model_card
from sf_llava.bootstrap.objectives.sum import make_objective
from sf_llava.bootstrap.run_directory import RunDirectory
from sf_llava.bootstrap.student import make_student
from sf_llava.bootstrap.trackers import choose_trackers
from sf_llava.bootstrap.trainer import Trainer
from sf_llava.bootstrap.validation import Validator
from sf_llava.data.loading import LoadingError
from sf_llava.data.names import find_stream
from sf_llava.devices import choose_precision
from sf_llava.measure.encoders import Candidate, teacher_candidate
from sf_llava.measure.setup import load_candidate
from sf_llava.measure.tuned import Student, TunedTeacher
from sf_llava.model.costs import count_multiply_adds
from sf_llava.report import environment
from sf_llava.teachers import load_teacher
from sf_llava.teachers.base import Teacher
from sf_llava.teachers.tiled import TiledTeacher
from sf_llava.zero_shot.run import evaluate_zero_shot

GO_ON = "the same command with `resume` goes on from the newest checkpoint"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def bootstrap(config: BootstrapConfig) -> dict[str, Any]:
    """Run (or resume) one bootstrap; return its results, as written to ``results.json`` (the main process does).

    Raises:
        ValueError: the configuration, the teacher or the data do not make a run; the message says what to change.
        RuntimeError: the run's directory is another process's, training diverged, memory or a data process was lost.
        OSError: the run's directory cannot be written, or its disk is full.
    """
    running = config.run
    if running.threads:
        torch.set_num_threads(running.threads)
    run = RunDirectory(running.output)
    if run.results_path.exists():  # written last: nothing is left to do
        run.check(config.to_dict(), running.resume, RUN_TIME_FIELDS)
        return run.read_results()
    accelerator = make_accelerator(running)
    with _lost_process_explained(), files.locked(run.path) if accelerator.is_main_process else nullcontext():
        settings = config.to_dict() | describe_machine(accelerator) | describe_stream(config, accelerator)
        changes = run.check(settings, running.resume, RUN_TIME_FIELDS, CHANGEABLE_FIELDS)
        accelerator.wait_for_everyone()
        for name, (before, now) in changes.items():
            accelerator.print(f"{running.output} goes on with another {name}: {before} before, {now} now")
        return _bootstrap(config, accelerator, run, settings, changes)


def _bootstrap(
    config: BootstrapConfig, accelerator: Accelerator, run: RunDirectory, settings: dict[str, Any], changes: dict
) -> dict[str, Any]:
    """Load, inherit, train, save, measure; see :meth:`RunDirectory.start` for the last two arguments."""
    dtype = DTYPES.get(accelerator.mixed_precision, torch.float32)
    running = config.run
    teacher = load_teacher(running.teacher, dtype=dtype, device=accelerator.device)
    if config.student.tiles is not None:
        teacher = TiledTeacher(teacher, config.student.tiles)
    torch.manual_seed(running.seed)
    student = make_student(config.student, teacher, accelerator.device.type == "cpu")
    reused = config.student.reuse_weights
    inheritance = set_trainable(student, teacher, config.student.num_tunable, reused)
    accelerator.print(f"{running.output}: {inheritance}")
    costs = measure_costs(teacher, student)

    side = max(student.config.image_size, teacher.image_size)
    data = open_data(config.data, config.objective, running.seed, teacher, side)
    validator = Validator(accelerator, data.validation, teacher, student.config.image_size, data.task)
    objective = make_objective(config.objective, teacher, student, data.images, validator, data.labels)
    trainer = Trainer(
        config.optimiser, running, accelerator, student, reused, teacher, data.images, objective, run, validator
    )
    planned: list[tuple[CachePlan | None, str]] = [(None, "")]
    if accelerator.is_main_process:
        inputs = digest_inputs(teacher, data) | objective.digests()
        run.check_inputs(inputs)
        planned = [trainer.plan_cache(inputs)]
        settings = settings | {"inputs": inputs, "teacher_cached": planned[0][0] and planned[0][0].to_dict()}
    ((cached, sentence),) = broadcast_object_list(planned)
    if sentence:
        accelerator.print(f"{running.output}: {sentence}")
    remarks = trainer.resume() if running.resume else []
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        remarks += run.start(settings, trainer.step, changes)
    for remark in remarks:
        accelerator.print(remark)
    accelerator.wait_for_everyone()
    with nullcontext() if cached is None else cached.open(accelerator) as trainer.cache:
        _train(trainer)

    state, scores = trainer.final_state(), trainer.final_scores()
    trained = accelerator.unwrap_model(trainer.student)
    if accelerator.is_main_process:
        with files.writing(run.encoder):
            files.write_directory(run.encoder, lambda path: trained.save_pretrained(path, state_dict=state))
    accelerator.wait_for_everyone()
    zero_shot = measure_zero_shot(data, teacher, load_candidate(run.encoder, teacher), trainer.workers)
    if not accelerator.is_main_process:
        return {}
    results = {
        "encoders": costs,
        **scores,
        "zero_shot": zero_shot,
        "inheritance": asdict(inheritance),
        "skipped_images": sorted(trainer.checkpoints.skipped),
        "seconds": round(trainer.seconds, 1),
        "images_per_second": round(trainer.step * config.optimiser.batch_size / trainer.seconds, 1),
        "peak_memory_gb": round(peak_memory_gb(accelerator.device), 2),
        "dtype": "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision,
        "num_processes": accelerator.num_processes,
        "seed": running.seed,
        "environment": environment(accelerator.device.type) | {"transformers": transformers.__version__},
    }
    card = model_card(config, results, trained.config.image_mean, trained.config.image_std)
    files.write_bytes(run.encoder / "README.md", card.encode())
    shutil.rmtree(run.teacher_cache, ignore_errors=True)
    files.write_json(run.results_path, results)
    return results


def _train(trainer: Trainer) -> None:
    """Train to the end; of what the machine may lack on the way, say how to go on."""
    try:
        trainer.train()
    except (torch.OutOfMemoryError, MemoryError) as error:
        count = trainer.plan.micro_batch_size
        raise RuntimeError(
            f"out of memory with {count} images at once: lower `micro_batch_size` (the batch of a "
            "step stays as it is) or add `gradient_checkpointing`, then `resume`"
        ) from error
    except (OSError, RuntimeError) as error:
        if isinstance(error, LoadingError):
            raise RuntimeError(f"{error}; {GO_ON}") from error
        if isinstance(error, OSError):
            raise OSError(f"{str(error).rstrip()}; {GO_ON}") from error  # a traceback of another process ends a line
        raise


@contextmanager
def _lost_process_explained() -> Iterator[None]:
    """Say how to go on where a data loading process has died: torch raises wherever this process is at that moment."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        causes = list(_causes(error))
        lost = [cause for cause in causes if str(cause).startswith("DataLoader worker")]
        known = next((str(cause) for cause in causes if isinstance(cause, LoadingError)), None)  # says it better
        if not lost or (known is not None and known in str(error)):
            raise
        ended = f"a data loading process ended ({lost[0]}), perhaps for want of memory: lower `workers`"
        raise RuntimeError(f"{known or ended}; {GO_ON}") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Give an error and those that it was raised for, as where a file was being written."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def describe_machine(accelerator: Accelerator) -> dict[str, Any]:
    """Name what numbers depend on beside the configuration, to the last bits."""
    on_cpu = accelerator.device.type == "cpu"
    return {
        "num_processes": accelerator.num_processes,
        "device_type": accelerator.device.type,
        "precision": accelerator.mixed_precision,
        "cpu_threads": torch.get_num_threads() if on_cpu else None,
    }


def describe_stream(config: BootstrapConfig, accelerator: Accelerator) -> dict[str, Any]:
    """Name what the order of streamed images depends on beside the configuration."""
    stream, processes = find_stream(config.data.data), accelerator.num_processes
    if stream is None:
        return {}
    return {"lanes": processes * max(1, stream.choose_workers(config.run.workers, processes))}


def make_accelerator(config: RunConfig) -> Accelerator:
    """Set up devices, processes and precision; ``accelerate launch`` or torchrun decide how many processes.

    Raises:
        ValueError: fp16 on a CPU, or an unknown tracker.
        ModuleNotFoundError: a tracker that is not installed.
    """
    cpu = config.device == "cpu" or not torch.accelerator.is_available()
    accelerator = torch.accelerator.current_accelerator()
    precision = choose_precision(config.dtype, "cpu" if cpu or accelerator is None else accelerator)
    if precision == "fp16" and cpu:
        raise ValueError("`dtype` fp16 does not train on a CPU; use bf16 or fp32")
    AcceleratorState._reset_state()  # a process may bootstrap several times, each time with a precision of its own
    trackers = choose_trackers(config.trackers)
    return Accelerator(
        cpu=cpu,
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=trackers or None,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],  # one copy of gradients, not two
        project_config=ProjectConfiguration(logging_dir=str(Path(config.output) / "tensorboard")),
    )


def measure_costs(teacher: Teacher, student: Student) -> list[dict[str, Any]]:
    """Count visual tokens, parameters and multiply-adds (of all tokens through all blocks) of teacher and student."""
    image_size = student.config.image_size
    everything = {} if isinstance(student, TunedTeacher) else {"output_hidden_states": True}
    return [
        {
            "name": "teacher",
            "tokens": teacher.num_patches,
            "cls": teacher.use_cls,
            "parameters": teacher.num_parameters(),
            "multiply_adds": count_multiply_adds(teacher, teacher.image_size),
            "image_size": teacher.image_size,
        },
        {
            "name": "student",
            "tokens": student.config.num_latents,
            "cls": student.config.use_cls,
            "parameters": student.num_parameters(),
            "multiply_adds": count_multiply_adds(student, image_size, **everything),
            "image_size": image_size,
        },
    ]


def measure_zero_shot(data: BootstrapData, teacher: Teacher, student: Candidate, workers: int) -> dict[str, Any] | None:
    """Score teacher and student on all validation images, shared among processes, where their classes are known."""
    if data.task is None:
        return None
    encoders = [teacher_candidate(teacher), student]
    return evaluate_zero_shot(data.task, encoders, workers=workers, state=PartialState()).to_dict()


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory of this process in 1e9 bytes: the accelerator's, or the resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
