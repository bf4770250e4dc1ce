"""Load an encoder strictly: a directory that ``save_pretrained`` wrote, or the run that holds one."""

from pathlib import Path

import torch
from safetensors import SafetensorError

from sf_llava.model import SparseFormerModel


def find_encoder(path: str | Path) -> Path:
    """Accept an encoder directory or a run directory with ``encoder/`` in it; return the encoder directory.

    Raises:
        ValueError: neither is there; the message says what is missing.
    """
    path = Path(path).expanduser()
    for candidate in (path, path / "encoder"):
        if (candidate / "config.json").is_file() and (candidate / "model.safetensors").is_file():
            return candidate
    raise ValueError(
        f"no encoder at {path}: expected a directory with config.json and model.safetensors, or a run with encoder/; "
        "python scripts/bootstrap_clip.py makes one"
    )


def load_encoder(
    path: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> SparseFormerModel:
    """Load an encoder for inference: no missing, unexpected or misshaped weight is accepted.

    Args:
        path: encoder or run directory.
        dtype: of weights and features; geometry stays float32.
        device: where it goes.

    Raises:
        ValueError: nothing there, a truncated file, or weights that do not fit the configuration.
    """
    path = find_encoder(path)
    try:
        model, info = SparseFormerModel.from_pretrained(path, dtype=dtype, output_loading_info=True)
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path / 'model.safetensors'} cannot be loaded, truncated or misshaped: {reason}") from error
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    problems = [f"{kind} {', '.join(sorted(map(str, keys)))}" for kind in kinds if (keys := info[kind])]
    if problems:
        raise ValueError(f"{path} does not fit its config.json: {'; '.join(problems)}")
    return model.to(device).eval()
