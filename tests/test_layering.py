"""Imports point one way, host libraries stay in their modules, and importing the package is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sf_llava"

LAYERS = [
    {"configuration", "files", "logs", "cli", "report", "visualize", "devices", "moved"},
    {"weights", "ops"},
    {"data", "model", "mini", "teachers", "measure", "zero_shot", "retrieval", "scienceqa", "llava"},
    {"bootstrap"},
    {"experiments", "benchmark", "demo"},
    {"commands"},
]
"""A module imports from its own layer and the ones before it."""

HOSTS = {
    "llava": {"llava"},
    "open_clip": {"teachers", "zero_shot"},
    "timm": {"teachers", "zero_shot"},
    "triton": {"ops"},
    "gradio": {"demo", "commands"},
}
"""The only parts of the package that may import a host library."""


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).with_suffix("").parts[: -node.level] if node.level else ()
            base = ".".join([*package, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def test_every_part_has_a_layer():
    assert {part_of(path) for path in FILES} == set().union(*LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    level = {part: number for number, layer in enumerate(LAYERS) for part in layer}
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "sf_llava" and len(parts) > 1 and parts[1] in level:
            assert level[parts[1]] <= level[part_of(path)], f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_host_libraries_stay_in_their_modules(path):
    for name in imports(path):
        allowed = HOSTS.get(name.split(".")[0])
        assert allowed is None or part_of(path) in allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_importing_the_package_is_light():
    code = "import sys, sf_llava; print([m for m in ('torch', 'llava', 'open_clip', 'gradio', 'triton', 'timm') " \
           "if m in sys.modules])"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_scripts_do_not_shadow_packages():
    for folder in ("scripts", "eval", "demo"):
        for path in (ROOT / folder).glob("*.py"):
            assert path.stem not in sys.stdlib_module_names
            assert path.stem not in {"torch", "transformers", "llava", "open_clip", "accelerate", "datasets", "gradio"}
