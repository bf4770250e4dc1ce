"""The files themselves: ONNX and OpenVINO, in float32 or with 8-bit weights, written and run.

Both read batches of any size. OpenVINO's is made from the ONNX file: its own reader of PyTorch knows fewer operations.
"""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sf_llava.extras import require

INPUT = "pixel_values"
ONNX, OPENVINO = "onnx", "openvino"
FILES = {ONNX: "model.onnx", OPENVINO: "model.xml"}
"""Formats, and the file that a runtime opens."""
OPSET = 18
"""Of ONNX: the one that the exporter writes without a conversion, and that runtimes of years read."""
MAX_BATCH = 2**15
"""Of the exported graph; torch.export wants one."""

Run = Callable[[Tensor], Tensor]


def require_runtime(kind: str, int8: bool = False) -> None:
    """Say in one sentence what to install where a format cannot be written or run.

    Raises:
        ModuleNotFoundError: a package is missing.
        ValueError: no such format.
    """
    if kind not in FILES:
        raise ValueError(f"unknown format {kind!r}; known: {', '.join(FILES)}")
    packages = ["onnx", "onnxscript", "onnxruntime"] if kind == ONNX else ["onnx", "onnxscript", "openvino"]
    require(f"exporting to {kind}", *packages)
    if kind == OPENVINO and int8:
        require("8-bit weights in OpenVINO", "nncf")


def write(module: nn.Module, kind: str, folder: Path, image_size: int, output_name: str, int8: bool = False) -> None:
    """Write a module that maps pixels to one tensor.

    With ``int8`` the weights of all linear layers are kept in 8 bits, one scale a channel. onnxruntime rounds their
    inputs to 8 bits too when it runs (``quantize_dynamic``), OpenVINO computes in float (nncf's ``compress_weights``).

    Args:
        module: (B, 3, S, S) float32 to (B, ...), on the CPU, in eval mode.
        kind: ``ONNX`` or ``OPENVINO``.
        folder: an empty one; a file of ``FILES`` is written there, and what it refers to.
        image_size: S.
        output_name: of the tensor.
        int8: 8-bit weights.
    """
    require_runtime(kind, int8)
    if kind == ONNX and not int8:
        _write_onnx(module, folder / FILES[ONNX], image_size, output_name)
        return
    with TemporaryDirectory(dir=folder) as scratch:
        plain = Path(scratch) / FILES[ONNX]
        _write_onnx(module, plain, image_size, output_name)
        convert(plain, kind, folder, int8)


def _write_onnx(module: nn.Module, path: Path, image_size: int, output_name: str) -> None:
    with _quiet():
        program = torch.onnx.export(
            module,
            (torch.zeros(2, 3, image_size, image_size),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},),
            input_names=[INPUT],
            output_names=[output_name],
            opset_version=OPSET,
            verbose=False,
        )
        assert program is not None, "the exporter with dynamo gives a program"
        program.save(str(path))


def convert(source: Path, kind: str, folder: Path, int8: bool) -> None:
    """Make a file of another kind, or with 8-bit weights, of a float32 ONNX file; see :func:`write`."""
    with _quiet():
        if kind == OPENVINO:
            _write_openvino(source, folder / FILES[OPENVINO], int8)
        else:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            how = dict(op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8)
            quantize_dynamic(source, folder / FILES[ONNX], **how)


def _write_openvino(source: Path, target: Path, int8: bool) -> None:
    import openvino

    model = openvino.Core().read_model(source)  # openvino.convert_model does no more, and reports its use
    if int8:
        os.environ.setdefault("NNCF_CI", "1")  # or it reports its use over the network
        import nncf

        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    openvino.save_model(model, target, compress_to_fp16=False)


def open_file(kind: str, folder: Path, threads: int = 0) -> Run:
    """Open what :func:`write` wrote, on the CPU, in float32 arithmetic.

    Args:
        kind: ``ONNX`` or ``OPENVINO``.
        folder: where it lies.
        threads: of the CPU; 0: the runtime's choice.

    Returns:
        A function from pixels (B, 3, S, S) to the output, float32 both.
    """
    require_runtime(kind)
    path = folder / FILES[kind]
    try:
        return _open_onnx(path, threads) if kind == ONNX else _open_openvino(path, threads)
    except Exception as error:  # the runtimes raise kinds of their own
        raise ValueError(f"{path} cannot be opened: {' '.join(str(error).split())}") from error


def _open_onnx(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(None, {INPUT: pixels.numpy()})[0])


def _open_openvino(path: Path, threads: int) -> Run:
    import openvino

    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"} | (
        {"INFERENCE_NUM_THREADS": threads} if threads else {}
    )
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda pixels: torch.from_numpy(np.array(compiled({INPUT: pixels.numpy()})[0]))  # their memory is used again


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporters print and warn about their own work off the screen."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
