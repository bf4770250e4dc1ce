"""Where the curves of a run go beside its log: accelerate's trackers, continued by a resumed run.

TensorBoard's files lie in the run's directory. wandb, mlflow and trackio keep theirs where their own settings say
(``WANDB_MODE=offline``, ``MLFLOW_TRACKING_URI``, ``TRACKIO_DIR``); the run notes by which name they know it.
"""

import uuid
from typing import Any

from accelerate import Accelerator

from sf_llava import files
from sf_llava.bootstrap.run_directory import RunDirectory
from sf_llava.extras import is_installed, require

PROJECT = "sf_llava"
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


def choose_trackers(asked: str) -> list[str]:
    """Read ``auto`` (TensorBoard where it is installed), ``none``, or names with commas between them.

    Raises:
        ValueError: a name that is none of ``TRACKERS``.
        ModuleNotFoundError: a tracker that is not installed.
    """
    if asked == "auto":
        return ["tensorboard"] if is_installed("tensorboard") else []
    names = [] if asked == "none" else list(dict.fromkeys(name.strip() for name in asked.split(",")))
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"`trackers`: unknown tracker {name!r}; known: auto, none, {', '.join(TRACKERS)}")
        require(f"tracking with {name}", name)
    return names


def start_trackers(accelerator: Accelerator, run: RunDirectory, step: int) -> None:
    """Begin, or go on, with the trackers that ``accelerator`` was made with; main process only.

    Args:
        accelerator: with ``log_with``.
        run: a directory whose ``config.json`` is written.
        step: where the run starts: what TensorBoard holds of later steps is dropped.
    """
    kept = files.read_json_object(run.tracking_path) if run.tracking_path.is_file() else {}
    name = run.path.resolve().name
    key = kept.get("wandb") or uuid.uuid4().hex
    accelerator.init_trackers(
        PROJECT,
        init_kwargs={
            "tensorboard": {"purge_step": step},
            "wandb": {"name": name, "id": key, "resume": "allow", "dir": str(run.path)},
            "mlflow": {"run_name": name, "run_id": kept.get("mlflow")},
            "trackio": {"name": f"{name}-{key[:8]}", "resume": "allow"},
        },
    )
    names = {tracker.name for tracker in accelerator.trackers}
    if others := names - {"tensorboard"}:
        kept |= {"wandb": key}
        if "mlflow" in others:
            kept |= {"mlflow": accelerator.get_tracker("mlflow", unwrap=True).info.run_id}
        files.write_json(run.tracking_path, kept)
        described = {name: _plain(value) for name, value in files.read_json_object(run.config_path).items()}
        for other in others:
            accelerator.get_tracker(other).store_init_configuration(described)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def finish_trackers(accelerator: Accelerator) -> None:
    """Let trackers write what they hold back. (``end_training`` would leave the other processes' group too.)"""
    for tracker in accelerator.trackers:
        tracker.finish()
