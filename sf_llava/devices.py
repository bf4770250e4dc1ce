"""Devices and precisions by name."""

from collections.abc import Sequence

import torch
from accelerate import PartialState

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
AUTO = "auto"


def as_dtype(dtype: torch.dtype | str, also: Sequence[str] = ()) -> torch.dtype:
    """Turn ``fp32``, ``fp16`` or ``bf16`` into torch's dtype; a dtype stays what it is.

    Args:
        dtype: a dtype or its name.
        also: further names, which the caller knows, for the message.

    Raises:
        ValueError: another name.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: expected {', '.join([*DTYPES, *also])} or a torch.dtype")
    return DTYPES[dtype]


def as_dtype_to_load(dtype: torch.dtype | str) -> torch.dtype | str:
    """Turn what :func:`as_dtype` takes, or ``auto``, into what transformers' ``from_pretrained`` takes.

    ``auto`` stays: weights are then in the dtype that they were saved in.

    Raises:
        ValueError: another name.
    """
    return dtype if dtype == AUTO else as_dtype(dtype, also=[AUTO])


def choose_precision(name: str, device: torch.device | str) -> str:
    """Turn ``auto`` into the precision that is fast on a device; fp32, fp16 and bf16 stay.

    On a CPU that is bf16 with AMX, whose products are several times as fast, and fp32 without: there bf16 is three to
    four times slower. On a CUDA device it is bf16, or fp16 where bf16 is emulated.

    Args:
        name: fp32, fp16, bf16 or auto.
        device: where is computed.

    Raises:
        ValueError: another name.
    """
    if name != AUTO:
        as_dtype(name, also=[AUTO])
        return name
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if kind == "cpu" and has_amx() else "fp32"


def has_amx() -> bool:
    """Tell whether the CPU has matrix units for bf16 (Intel's AMX)."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def choose_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` ... into this process's device; starts accelerate's processes, if any.

    Raises:
        ValueError: an unknown device, one that this machine lacks, or one that several processes would share.
    """
    on_cpu = name == "cpu" or (name == "auto" and not torch.accelerator.is_available())
    state = PartialState(cpu=on_cpu)
    if name in ("auto", "cpu"):
        return state.device
    if state.num_processes > 1:
        raise ValueError(f"{state.num_processes} processes would share device {name!r}: use `device` auto")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}: expected auto, cpu or a device of torch (cuda, cuda:1)") from error
    try:
        torch.ones(1, device=device).item()  # fails where there is no such device, and on meta, which holds no values
    except Exception as error:  # each backend has an error of its own
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"device {name!r} cannot be used here ({reason}): use `device` auto or cpu") from error
    return device
