"""The committed locks are what the package's ranges say: inside them, and the oldest one at their lower ends."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
TRACKERS = ("wandb", "mlflow", "trackio")  # one service or another: the development environment has none of them
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _requirements() -> list[Requirement]:
    extras = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name not in TRACKERS}
    found = [Requirement(line) for lines in (PROJECT["dependencies"], *extras.values()) for line in lines]
    return [requirement for requirement in found if canonicalize_name(requirement.name) != "sf-llava"]


def _pins(name: str) -> dict[str, list[Requirement]]:
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / name).read_text().splitlines():
        if line and not line.startswith((" ", "#")):
            pin = Requirement(line)
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    return pins


def _version(pin: Requirement) -> Version:
    (specifier,) = pin.specifier
    assert specifier.operator == "==", pin
    return Version(specifier.version)


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-oldest.lock"])
def test_every_pin_is_inside_the_range_that_the_package_declares(lock: str) -> None:
    pins = _pins(lock)
    for requirement in _requirements():
        for pin in pins[canonicalize_name(requirement.name)]:
            assert _version(pin) in requirement.specifier, (lock, str(requirement), str(pin))


def test_the_oldest_lock_holds_every_lower_bound() -> None:
    pins = _pins("requirements-oldest.lock")
    for requirement in _requirements():
        (lower,) = [Version(one.version) for one in requirement.specifier if one.operator == ">="]
        for pin in pins[canonicalize_name(requirement.name)]:
            assert _version(pin).release[: len(lower.release)] == lower.release, f"{requirement}: {pin}"


def test_the_locks_name_no_index() -> None:
    for lock in ("requirements.lock", "requirements-oldest.lock"):
        assert not re.search(r"https?:|file:|index-url|find-links|@ ", (ROOT / lock).read_text()), lock
