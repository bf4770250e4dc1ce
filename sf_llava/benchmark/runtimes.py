"""One module in every runtime: eager, and exported to onnxruntime and OpenVINO, in float32 and with 8-bit weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from sf_llava.export import formats

RUNTIMES = {
    "eager": None,
    "onnxruntime": (formats.ONNX, False),
    "openvino": (formats.OPENVINO, False),
    "onnxruntime int8": (formats.ONNX, True),
    "openvino int8": (formats.OPENVINO, True),
}


def installed() -> bool:
    """Tell whether all runtimes are there."""
    try:
        for kind in formats.FILES:
            formats.require_runtime(kind, int8=True)
    except ModuleNotFoundError:
        return False
    return True


@contextmanager
def opened(module: nn.Module, image_size: int, threads: int = 1) -> Iterator[dict[str, tuple[Callable, int]]]:
    """Export a module once and open it in every runtime: functions of pixels, and the bytes of their weights."""
    with TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / name.replace(" ", "-") for name in RUNTIMES}
        plain = folders["onnxruntime"]
        plain.mkdir()
        formats.write(module, formats.ONNX, plain, image_size, "output")
        size = sum(parameter.nbytes for parameter in module.parameters())
        runs: dict[str, tuple[Callable, int]] = {"eager": (module, size)}
        for name, form in RUNTIMES.items():
            if form is None:
                continue
            kind, int8 = form
            if folders[name] != plain:
                folders[name].mkdir()
                formats.convert(plain / formats.FILES[formats.ONNX], kind, folders[name], int8)
            size = sum(file.stat().st_size for file in folders[name].iterdir())
            runs[name] = formats.open_file(kind, folders[name], threads), size
        yield runs
