"""Compile kernels ahead of time, without a GPU, and print what each takes, a line of JSON a kernel.

    python tests/ops/compile_kernels.py        what a test asserts: each kernel as presets use it, some at the bounds
    python tests/ops/compile_kernels.py all    every kernel at every bound of sf_llava/ops/limits.py: an hour

A process of its own, because the interpreter of the other tests must not be chosen here. The bounds are compiled with
three points fewer than a tile holds: masks of what is missing cost registers.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sf_llava.ops import kernels
from sf_llava.ops.launch import OPTIONS, PIXELS_PER_PROGRAM, _tile
from sf_llava.ops.limits import MIXING_POINTS, POINTS

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
CAPABILITIES = (80, 90, 100, 120)
BROKEN = (100,) if triton.__version__.startswith("3.7.") else ()
"""Capabilities for which a release of Triton stops at the bounds, in a pass of its own (docs/versions.md)."""
INTEGERS = {"N": "i32", "H": "i32", "W": "i32"}
FLOAT32 = ("rois", "offsets", "d_rois", "d_offsets", "pixels", "d_samples")
PARAMETERS = ("parameters", "d_parameters", "mixed")
MISSING = 3


class Case(NamedTuple):
    """A kernel, by its name without ``_kernel``, and what it is compiled for."""

    kernel: str
    capability: int
    channels: int = 64
    points: int = 16
    mixing_points: int = 32
    atomic: bool = False
    features: str = "fp16"
    parameters: str = "fp16"


def compile_case(case: Case) -> dict[str, object]:
    """Compile one kernel; count registers, stack, bytes of shared memory and wide loads."""
    kernel = getattr(kernels, f"{case.kernel}_kernel")
    sizes = {"C": case.channels, "P": case.points, "Q": case.mixing_points, "BX": PIXELS_PER_PROGRAM}
    sizes |= {"BP": _tile(case.points), "BQ": _tile(case.mixing_points), "ATOMIC": case.atomic}
    constants = {name: sizes[name] for name in kernel.arg_names if name in sizes}
    signature = {name: "constexpr" if name in constants else _type(case, name) for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(k),): v for k, v in constants.items()}, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", case.capability, 32), options=dict(OPTIONS))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([CUOBJDUMP, what, file.name], capture_output=True, text=True, check=True).stdout
            for what in ("--dump-resource-usage", "-sass")
        )
    return case._asdict() | {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]) + int(re.search(r"LOCAL:(\d+)", usage)[1]),
        "shared": compiled.metadata.shared,
        "wide_loads": len(re.findall(r"LDG\.E\S*\.128", code)),
    }


def _type(case: Case, name: str) -> str:
    """Type one argument as the launch does."""
    if name in INTEGERS:
        return INTEGERS[name]
    gathered = case.kernel == "feature_gradient" and name == "grad"
    if name in FLOAT32 or gathered or (name == "d_features" and case.atomic):
        return "*fp32"
    of_parameters = name in PARAMETERS or (name == "grad" and case.kernel == "mix_backward")
    return f"*{case.parameters if of_parameters else case.features}"


def of_presets() -> Iterator[Case]:
    """All kernels at the size of every preset, in half precision, for one capability."""
    for kernel in ("sample_forward", "mix_forward", "feature_gradient"):
        yield Case(kernel, 90)
    for kernel, atomic in itertools.product(("sample_backward", "mix_backward"), (True, False)):
        yield Case(kernel, 90, atomic=atomic)


def some_bounds() -> Iterator[Case]:
    """The kernel that takes most, once for each capability, at other bounds each time."""
    corners = [(2, 64), (4, 64), (2, 32), (4, 32)]
    for capability, (size, channels) in zip(CAPABILITIES, corners, strict=True):
        dtype = {2: "fp16", 4: "fp32"}[size]
        sizes = (channels, POINTS[size][channels] - MISSING, MIXING_POINTS - MISSING)
        if capability not in BROKEN:
            yield Case("mix_backward", capability, *sizes, True, dtype, dtype)


def all_bounds() -> Iterator[Case]:
    """Every kernel at every bound for every capability; what takes most first, in all pairs of dtypes."""
    pairs = {2: ["fp16 fp16", "bf16 bf16"], 4: ["fp32 fp32", "fp16 fp32", "fp32 fp16", "bf16 fp32", "fp32 bf16"]}
    bounds = [
        (capability, size, channels, points - MISSING, MIXING_POINTS - MISSING)
        for capability, (size, most) in itertools.product(CAPABILITIES, POINTS.items())
        for channels, points in most.items()
    ]
    for atomic, (capability, size, *sizes) in itertools.product((True, False), bounds):
        for pair in pairs[size]:
            yield Case("mix_backward", capability, *sizes, atomic, *pair.split())
    for capability, size, *sizes in bounds:
        pair = pairs[size][0].split()
        for kernel in ("sample_forward", "mix_forward", "feature_gradient"):
            yield Case(kernel, capability, *sizes, False, *pair)
        for atomic in (True, False):
            yield Case("sample_backward", capability, *sizes, atomic, *pair)


if __name__ == "__main__":
    for case in all_bounds() if sys.argv[1:] == ["all"] else itertools.chain(of_presets(), some_bounds()):
        print(json.dumps(compile_case(case)), flush=True)
