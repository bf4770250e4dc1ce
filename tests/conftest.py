"""Fixtures shared by all tests: development data that may be absent, and one thread per test process."""

import os
import signal
from pathlib import Path

import pytest
import torch

SHARED = Path(os.environ.get("SF_LLAVA_SHARED", Path(__file__).resolve().parents[2] / "shared"))

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell hands it to jobs in the background, and they on
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product; deterministic tests need it


def _require(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"development data {path.name} not found (set SF_LLAVA_SHARED to the folder that holds it)")
    return path


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Directory with golden values of the official model on numbers drawn elsewhere; tests/golden holds others."""
    return _require(SHARED / "golden")


@pytest.fixture(scope="session")
def imagenet_sample() -> Path:
    """Directory of 1,000 photographs, one folder a class."""
    return _require(SHARED / "data" / "imagenet_sample")


@pytest.fixture(scope="session")
def cifar10_dir() -> Path:
    """Directory with CIFAR-10 as ``train.parquet`` and ``validation.parquet``."""
    return _require(SHARED / "data" / "cifar10")
