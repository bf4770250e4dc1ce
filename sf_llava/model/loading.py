"""Load an encoder strictly: a directory that ``save_pretrained`` wrote, the run that holds one, or a name in the hub's
cache."""

import re
from pathlib import Path
from typing import TypeVar

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from sf_llava import files
from sf_llava.devices import as_dtype_to_load
from sf_llava.model import SparseFormerModel
from sf_llava.model.v1 import SparseFormerV1Config, SparseFormerV1Model
from sf_llava.weights.fit import find_misfit, some
from sf_llava.weights.weight_files import WeightFiles, find_weights, read_shapes

Model = TypeVar("Model", bound=PreTrainedModel)

TUNED_TEACHER = "tuned_teacher"
"""``model_type`` of a teacher with fewer tokens, see :mod:`sf_llava.measure.tuned`."""
HINTS = {
    SparseFormerV1Config.model_type: "it is a classifier of its own, without a teacher: zero-shot and visualize take "
    "it, load_v1 loads it",
    TUNED_TEACHER: "it is a teacher with fewer tokens: zero-shot and retrieval take it, load_tuned loads it",
}
"""What to do with an encoder that is not a SparseFormer, by its ``model_type``."""

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def find_encoder(path: str | Path, variant: str | None = None) -> Path:
    """Accept an encoder directory, a run directory with ``encoder/`` in it, or a hub name; return the directory.

    Args:
        path: directory; or ``owner/name``, looked up in the hub's local cache (nothing is fetched).
        variant: of the weights, see :func:`load_encoder`.

    Raises:
        ValueError: neither is there; the message says what is missing.
    """
    path = Path(path).expanduser()
    for base in (path, _cached(str(path))):
        for candidate in (base, base / "encoder") if base else ():
            if (candidate / "config.json").is_file() and find_weights(candidate, variant):
                return candidate
    raise ValueError(
        f"no encoder at {path}: expected a directory with config.json and model.safetensors (or its shards, or "
        f"pytorch_model.bin{f'; variant {variant}' if variant else ''}), a run with encoder/, or a name whose snapshot "
        "lies in the hub's cache; sf-llava bootstrap makes one, hf download fetches one"
    )


def _cached(name: str) -> Path | None:
    """Find the snapshot of a hub name in the local cache."""
    if not HUB_NAME.fullmatch(name):
        return None
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):  # not in the cache, or no name that the hub would allow
        return None


def load_encoder(
    path: str | Path,
    *,
    dtype: torch.dtype | str = torch.float32,
    device: str | torch.device = "cpu",
    variant: str | None = None,
) -> SparseFormerModel:
    """Load an encoder for inference: no missing, unexpected or misshaped weight is accepted, and no value not finite.

    Its outputs have names, whatever ``return_dict`` the configuration holds: the tools read them by name.

    Args:
        path: encoder or run directory, or a hub name whose snapshot lies in the cache.
        dtype: of weights and features: fp32, fp16, bf16, a torch.dtype, or auto, in which they were saved; geometry
            stays float32.
        device: where it goes.
        variant: ``fp16`` for ``model.fp16.safetensors``; default: the weights without a variant, or the only one.

    Raises:
        ValueError: an unknown dtype, nothing there, a truncated file, or weights that do not fit the configuration.
    """
    return _load(SparseFormerModel, path, dtype, device, variant)


def load_v1(
    path: str | Path,
    *,
    dtype: torch.dtype | str = torch.float32,
    device: str | torch.device = "cpu",
    variant: str | None = None,
) -> SparseFormerV1Model:
    """Load a SparseFormer v1 as :func:`load_encoder` loads an encoder."""
    return _load(SparseFormerV1Model, path, dtype, device, variant)


def model_type_of(path: str | Path) -> str | None:
    """Read which kind of model an encoder directory holds; errors as of :func:`find_encoder`."""
    fields = files.read_json(find_encoder(path) / "config.json")
    return fields.get("model_type") if isinstance(fields, dict) else None


def is_v1(path: str | Path) -> bool:
    """Tell whether an encoder directory holds a SparseFormer v1; errors as of :func:`find_encoder`."""
    return model_type_of(path) == SparseFormerV1Config.model_type


def _load(
    model_class: type[Model],
    path: str | Path,
    dtype: torch.dtype | str,
    device: str | torch.device,
    variant: str | None,
) -> Model:
    dtype = as_dtype_to_load(dtype)
    path = find_encoder(path, variant)
    weights = find_weights(path, variant)
    assert weights is not None
    config, expected = _read_config(path, model_class)
    _check_shapes(path, expected, weights)
    try:
        model = model_class.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            variant=weights.variant,
            use_safetensors=weights.is_safetensors,
            local_files_only=True,
        )
    except Exception as error:  # the libraries below raise many kinds, on a disk that fails or a file that changed
        reason = " ".join(str(error).split())
        raise ValueError(f"{weights.path} cannot be loaded, truncated or misshaped: {reason}") from error
    check_finite(model, weights.path)
    for parameter in model.parameters():
        # Mapped from a file they lie unaligned: the last bit of every result would depend on the file's layout.
        parameter.data = parameter.data.clone()
    model.config.return_dict = True
    forget_code(model.config)
    return model.to(device).eval()


def forget_code(config: PretrainedConfig) -> None:
    """Forget that code lay beside a published model: it was not used, and is not saved with the model again."""
    vars(config).pop("auto_map", None)


def check_finite(model: torch.nn.Module, name: str | Path) -> None:
    """Check that every weight is a number.

    Raises:
        ValueError: some are not; the message names the first and counts them.
    """
    broken = [key for key, value in model.state_dict().items() if not _is_finite(value)]
    if broken:
        raise ValueError(
            f"{name}: {len(broken)} of its tensors hold values that are not finite, first {broken[0]} "
            f"({model.state_dict()[broken[0]].dtype}): the training diverged, the file is damaged, or the values do "
            "not fit the dtype"
        )


def _is_finite(value: Tensor) -> bool:
    return value.is_meta or bool(value.isfinite().all())


def _read_config(path: Path, model_class: type[PreTrainedModel]) -> tuple[PretrainedConfig, dict[str, tuple[int, ...]]]:
    """Read an encoder's configuration, and the shapes of the tensors that it asks for."""
    fields = files.read_json(path / "config.json")
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    expected = model_class.config_class.model_type
    if kind != expected:
        hint = f"; {HINTS[kind]}" if kind in HINTS else ""
        raise ValueError(
            f"{path / 'config.json'} describes {'no model' if kind is None else f'a model of type {kind!r}'}: expected "
            f"one with model_type {expected!r}{hint}"
        )
    if "quantization_config" in fields:
        raise ValueError(f"{path} holds a quantised encoder: expected one saved before its weights were quantised")
    try:
        config = model_class.config_class.from_dict(fields)
        with torch.device("meta"):
            state = model_class(config).state_dict()
    except Exception as error:  # ours, and what transformers raises for values of its own fields
        raise ValueError(f"{path / 'config.json'} makes no encoder: {' '.join(str(error).split())}") from error
    return config, {key: tuple(value.shape) for key, value in state.items()}


def _check_shapes(path: Path, expected: dict[str, tuple[int, ...]], weights: WeightFiles) -> None:
    """Compare what the files hold, by their headers, with what is expected, before anything is allocated.

    Raises:
        ValueError: the files cannot be read, or hold other tensors.
    """
    found = read_shapes(weights)
    problems = [misfit] if (misfit := find_misfit(expected, {key: one.shape for key, one in found.items()})) else []
    common = sorted(expected.keys() & found.keys())
    if kinds := [f"{key} ({found[key].dtype})" for key in common if not found[key].is_float]:
        problems.append(f"no floating-point numbers in {some(kinds)}; quantised weights cannot be read")
    if problems:
        raise ValueError(f"{weights.path} does not fit config.json in {path}: {'; '.join(problems)}")
