"""``benchmark.py all``: the tests that need a GPU and every table in half precision, in about ten minutes."""

import subprocess
import sys
from pathlib import Path

import torch

from sf_llava.benchmark import bootstrap, costs, encoder, llava, ops

ROOT = Path(__file__).resolve().parents[2]
BATCH_SIZES = [1, 8, 32, 128]


def run(output: Path, device: str) -> None:
    """Run the tests marked ``gpu``, then every benchmark in float16 and bfloat16.

    Raises:
        RuntimeError: no GPU, or a test failed (the tables are written first).
    """
    if not torch.cuda.is_available():
        raise RuntimeError("benchmark.py all measures a GPU and found none; run the other sub-commands on the CPU")
    tests = subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu", str(ROOT / "tests")], cwd=ROOT)
    costs.run(output)
    for dtype in ("float16", "bfloat16"):
        common = dict(output=output, device=device, dtype=dtype, seed=0)
        ops.run(batch_sizes=[8, 128], repeats=30, **common)
        pairs = ["sf-b-49", "sf-l-64", "sf-l-128"]
        encoder.run(pairs=pairs, batch_sizes=BATCH_SIZES, repeats=10, compiled=dtype == "bfloat16", **common)
        bootstrap.run(pairs=["sf-b-49", "sf-l-64"], batch_size=128, data="mini", repeats=5, **common)
        llava.run(llm="7b", batch_size=1, repeats=10, **common)
    if tests.returncode:
        raise RuntimeError("some tests that need a GPU failed; see above")
