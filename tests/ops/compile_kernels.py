"""Compile every kernel ahead of time and print what it takes, as JSON: ``python compile_kernels.py 80 90``.

A process of its own, because the interpreter of the other tests must not be chosen here. No GPU is needed.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sf_llava.ops import kernels
from sf_llava.ops.launch import NUM_WARPS, PIXELS_PER_PROGRAM

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
INTEGERS = {"N": "i32", "H": "i32", "W": "i32"}
FLOATS = ("rois", "offsets", "d_rois", "d_offsets", "pixels", "d_samples")
SIZES = dict(C=64, Q=32, BQ=32, BX=PIXELS_PER_PROGRAM)


def compile_kernel(name: str, dtype: str, capability: int, atomic: bool, points: int = 16) -> dict[str, object]:
    """Compile one kernel for features of ``dtype``; count registers, stack, shared memory and wide loads."""
    kernel = getattr(kernels, name)
    sizes = SIZES | {"ATOMIC": atomic, "P": points, "BP": max(16, triton.next_power_of_2(points))}
    constants = {key: value for key, value in sizes.items() if key in kernel.arg_names}
    floats = {*FLOATS, "d_features"} if atomic else set(FLOATS)
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        else:
            signature[argument] = INTEGERS.get(argument, "*fp32" if argument in floats else f"*{dtype}")
    aligned = {(i,): [["tt.divisibility", 16]] for i, a in enumerate(kernel.arg_names) if signature[a].startswith("*")}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(k),): v for k, v in constants.items()}, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": NUM_WARPS})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
        code = subprocess.run([CUOBJDUMP, "-sass", file.name], capture_output=True, text=True).stdout
    return {
        "kernel": name,
        "dtype": dtype,
        "capability": capability,
        "atomic": atomic,
        "points": points,
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared": compiled.metadata.shared,
        "wide_loads": len(re.findall(r"LDG\.E\S*\.128", code)),
    }


def main(capabilities: list[int]) -> None:
    """Compile what is launched: half precision for every capability, both feature gradients; the last one also gets
    float32 and 36 points."""
    results = []
    for capability in capabilities:
        for dtype in ("fp16", "fp32") if capability == capabilities[-1] else ("fp16",):
            for name in ("sample_forward_kernel", "mix_forward_kernel", "feature_gradient_kernel"):
                results.append(compile_kernel(name, dtype, capability, False))
            for name in ("sample_backward_kernel", "mix_backward_kernel"):
                ways = (True, False) if dtype == "fp16" else (True,)
                results += [compile_kernel(name, dtype, capability, atomic) for atomic in ways]
    for name in ("sample_forward_kernel", "sample_backward_kernel", "mix_forward_kernel", "mix_backward_kernel"):
        results.append(compile_kernel(name, "fp16", capabilities[-1], True, points=36))
    print(json.dumps(results))


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]])
