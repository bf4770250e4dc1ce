"""Weights files as data: nothing in a file is ever run, and nothing larger than the file itself is ever allocated.

Files of ``torch.save``, TorchScript archives (the format of OpenAI's CLIPs) and safetensors are read, tensors mapped
from the disk. A pickle names classes and functions to call; here a name stands for one of the few harmless builders
below, or the file is refused and the name told.
"""

import argparse
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sf_llava.files import regular_size
from sf_llava.weights.fit import some

LARGEST_PICKLE = 1 << 28  # bytes; names and shapes alone, of half a million tensors and more
LARGEST_LEGACY = 1 << 33  # bytes; the format before torch 1.6 cannot be mapped
MOST_TENSORS = 1 << 18
_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
_STORAGES = {f"{name}Storage": dtype for name, dtype in _DTYPES.items()}


def read_state_dict(path: str | Path, prefer: Sequence[str] = ()) -> dict[str, Tensor]:
    """Read the state dict in a weights file, running none of what the file may hold.

    Prefixes that every key has (``module.`` of DDP, ``_orig_mod.`` of compile) are taken off.

    Args:
        path: a file of ``torch.save``, a TorchScript archive, or safetensors.
        prefer: where the file holds several state dicts, those to take, best first.

    Returns:
        Tensors by name, mapped from the file where its format allows.

    Raises:
        OSError: not there, or no regular file.
        ValueError: broken, of another format, absurd, holding code, or without one state dict of tensors.
    """
    path = Path(path)
    content = _read(path)
    is_module = isinstance(content, _Record)
    state = dict(_tensors_of_module(content, path)) if is_module else _choose(content, path, prefer)
    if not state:
        raise ValueError(f"{path} holds no tensors")
    if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > 4 * path.stat().st_size:
        raise ValueError(f"{path}: its tensors claim to be several times as large as the file")
    return _without_common_prefix(state)


def require_numbers(state: Mapping[str, Tensor], source: str | Path) -> None:
    """Refuse weights that are no finite floating-point numbers.

    Raises:
        ValueError: names some that are integers, NaN or infinite.
    """
    wrong = [name for name, tensor in state.items() if not tensor.is_floating_point()]
    if wrong:
        raise ValueError(f"{source} holds weights that are no floating-point numbers: {some(wrong)}")
    wrong = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if wrong:
        raise ValueError(f"{source} holds weights that are NaN or infinite: {some(wrong)}")


def _read(path: Path) -> Any:
    """Read a file by what its first bytes say it is."""
    size = regular_size(path)
    with open(path, "rb") as file:
        start = file.read(9)
    try:
        if start[5:] == b"\0\0\0{":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if start.startswith(b"PK"):
            return _read_zip(path, size)
        if start.startswith(b"\x80"):
            return _read_legacy(path, size)
    except _Refused as error:
        raise ValueError(f"{path} {error}") from error
    except pickle.UnpicklingError as error:  # torch's own would advise to let code run
        raise ValueError(f"{path} could not be read (no plain pickle of tensors); it may be truncated") from error
    # Each format has errors of its own for a broken file.
    except (OSError, SafetensorError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, MemoryError,
            EOFError, zipfile.BadZipFile, NotImplementedError) as error:  # fmt: skip
        reason = (" ".join(str(error).split()) or type(error).__name__)[:120].rstrip(".:")
        raise ValueError(f"{path} could not be read ({reason}); it may be truncated or of another format") from error
    raise ValueError(
        f"{path} could not be read (neither torch.save nor TorchScript nor safetensors); it may be truncated or of "
        "another format"
    )


class _Refused(Exception):
    """What is wrong with a file, to follow its name in a sentence."""


class _Record:
    """What a pickle describes as an object of a class: the description alone."""

    def __init__(self, *arguments: Any) -> None:
        self.state: Any = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _read_zip(path: Path, size: int) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        found = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(found) != 1:
            raise _Refused("is a zip archive, but not one that torch wrote (no data.pkl in it)")
        root = found[0].removesuffix("data.pkl")
        if members[found[0]].file_size > LARGEST_PICKLE:
            raise _Refused(f"describes its tensors in {members[found[0]].file_size} bytes, which is absurd")
        if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
            raise _Refused("was written on a big-endian machine: save it again on another one")
        description = archive.read(found[0])
        mapped = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        storages: dict[str, Tensor] = {}

        def storage(identity: Any) -> Tensor:
            _, dtype, key, _, _ = identity
            if key not in storages:
                storages[key] = _map(archive, members[f"{root}data/{key}"], mapped)
            return storages[key].view(dtype)

        return _Unpickler(description, storage, torchscript=f"{root}constants.pkl" in members).load()


def _map(archive: zipfile.ZipFile, member: zipfile.ZipInfo, mapped: Tensor) -> Tensor:
    """Give the bytes of an uncompressed member as (n,) uint8, a part of the mapped file."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise _Refused("holds compressed tensors, which torch never writes")
    header = member.header_offset  # 30 bytes, name, extra field, data
    lengths = bytes(mapped[header + 26 : header + 30].tolist())
    start = header + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    if len(lengths) < 4 or start + member.file_size > len(mapped):
        raise _Refused("is truncated")
    part = mapped[start : start + member.file_size]
    return part if start % 8 == 0 else part.clone()


def _read_legacy(path: Path, size: int) -> Any:
    """Read the format before torch 1.6: pickles one after the other, then the tensors' bytes."""
    if size > LARGEST_LEGACY:
        raise _Refused(f"is {size / 2**30:.0f} GiB in torch's format before 1.6: load it and torch.save it again")
    with open(path, "rb") as file:
        for _ in range(4):  # a magic number, the protocol, sizes of C types, the content
            for module, name in _globals_in(file):
                _builder(module, name)
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


class _Unpickler(pickle.Unpickler):
    """Reads a description of tensors: no name in it leads to anything but the builders of this module."""

    def __init__(self, description: bytes, storage: Callable[[Any], Tensor], torchscript: bool) -> None:
        for _ in _globals_in(BytesIO(description)):  # absurd numbers in it are found before they are used
            pass
        super().__init__(BytesIO(description))
        self._storage = storage
        self.torchscript = torchscript

    def persistent_load(self, pid: Any) -> Tensor:
        return self._storage(pid)

    def find_class(self, module: str, name: str) -> Any:
        if self.torchscript and module.partition(".")[0] == "__torch__":
            return _Record
        return _builder(module, name)


def _globals_in(stream: BinaryIO) -> Iterator[tuple[str, str]]:
    """List what a pickle names, without running it."""
    limit = LARGEST_PICKLE >> 3
    for operation, argument, _ in pickletools.genops(stream):
        if operation.name in ("GLOBAL", "INST"):
            module, _, name = str(argument).partition(" ")
            yield module, name
        elif "PUT" in operation.name and argument is not None and argument > limit:
            raise _Refused("is a pickle made to take endless memory")


def _builder(module: str, name: str) -> Any:
    """Give the harmless stand-in for what a pickle names."""
    if module in ("torch", "torch.storage") and name in _STORAGES:
        return _STORAGES[name]
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    if f"{module}.{name}" in _BUILDERS:
        return _BUILDERS[f"{module}.{name}"]
    if module == "torch.jit._pickle":
        return _Record
    raise _Refused(
        f"could not be read: it names {module}.{name}, as no plain state dict does, and a file can run code by such "
        "names; where you trust it, save its state dict alone, by torch.save(model.state_dict(), FILE)"
    )


def _rebuild_tensor(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    """Lay a tensor into a part of the mapped file."""
    count = 1
    for length in size:
        count *= length
    end = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) + 1
    if min(offset, *size, *stride, 0) < 0 or count > len(storage) or (count and end > len(storage)):
        raise _Refused(f"claims a tensor of shape {tuple(size)} where it holds {len(storage)} numbers")
    return torch.as_strided(storage, size, stride, storage.storage_offset() + offset)


def _rebuild_parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


_BUILDERS = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch.nn.parameter.Parameter": _rebuild_parameter,
    "torch.Size": _Record,
    "torch.device": _Record,
    "argparse.Namespace": _Record,  # the options of a training run, beside its weights
}


def _choose(content: Any, path: Path, prefer: Sequence[str]) -> dict[str, Tensor]:
    """Find the one state dict in what a file holds."""
    if _is_state_dict(content):
        return dict(content)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no state dict of tensors but a {type(content).__name__.strip('_')}")
    nested = [str(name) for name, value in content.items() if _is_state_dict(value)]
    chosen = next((name for name in prefer if name in nested), nested[0] if len(nested) == 1 else None)
    if chosen is not None:
        return dict(content[chosen])
    if nested:
        raise ValueError(f"{path} holds several state dicts ({some(nested)}): save the one that you want alone")
    odd = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    raise ValueError(
        f"{path} holds no state dict of tensors, nor one under a key like 'model'; found "
        + (some(odd) if odd else f"{len(content)} entries")
    )


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in value.items())
    )


def _tensors_of_module(root: _Record, path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name the tensors of a TorchScript module as its state dict would."""
    waiting, count = [("", root)], 0
    while waiting:
        prefix, module = waiting.pop()
        for name, value in module.state.items() if isinstance(module.state, dict) else ():
            count += 1
            if count > MOST_TENSORS:
                raise ValueError(f"{path} names more than {MOST_TENSORS} tensors and modules, which is absurd")
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
            elif isinstance(value, _Record):
                waiting.append((f"{prefix}{name}.", value))


def _without_common_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off what stands before every key: DDP's ``module.``, compile's ``_orig_mod.``, a wrapper's ``model.``."""
    common = os.path.commonprefix(list(state))  # noqa: RUF071 (of texts, not paths)
    length = common.rfind(".") + 1
    return {name[length:]: tensor for name, tensor in state.items()}
