"""Imports point one way and in no circle, hosts stay in their parts, no path leads out, importing is light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sf_llava"

RANKS = [
    {"moved", "files", "logs", "devices", "catalogue", "extras", "visualize"},
    {"cli", "report", "weights", "ops", "reduction"},
    {"configuration"},
    {"data"},
    {"model"},
    {"teachers"},
    {"measure", "llava", "serving"},
    {"zero_shot", "retrieval", "scienceqa"},
    {"bootstrap", "export", "tuning"},
    {"experiments", "benchmark", "demo", "mini", "publish", "harness", "segmentation"},
    {"commands", "processes"},
    {"__main__"},
]
"""The parts of the package; one imports those of earlier rows alone."""

HOSTS = {
    "llava": {"llava"},
    "open_clip": {"teachers"},
    "timm": {"teachers"},
    "triton": {"ops"},
    "gradio": {"demo", "commands"},
    "lmms_eval": {"harness"},
    "peft": {"tuning"},
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


def part_of(name: str) -> str:
    """The part of the package that a module belongs to."""
    return name.split(".")[1]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]
MODULES = {name_of(path): path for path in FILES}
RANK = {part: rank for rank, row in enumerate(RANKS) for part in row}


def modules_imported(path: Path) -> set[str]:
    """The package's own modules among what a file imports."""
    names = {name for name in imports(path) if name.startswith("sf_llava.")}
    named = {name if name in MODULES else name.rpartition(".")[0] for name in names} & MODULES.keys()
    # ``from package import module`` is about the module; that the package is loaded on the way makes no circle
    return {name for name in named if not any(other.startswith(f"{name}.") for other in named)}


GRAPH = {name: modules_imported(path) for name, path in MODULES.items()}


def test_every_part_has_a_rank():
    assert {part_of(name) for name in MODULES} == RANK.keys()


@pytest.mark.parametrize("name", GRAPH)
def test_imports_point_down(name):
    for other in GRAPH[name]:
        down = part_of(other) == part_of(name) or RANK[part_of(other)] < RANK[part_of(name)]
        assert down, f"{name} imports {other}"


def test_there_is_no_circle():
    left = dict(GRAPH)
    while free := [name for name, others in left.items() if not others & left.keys() - {name}]:
        for name in free:
            del left[name]
    assert not left, f"these import each other: {', '.join(left)}"


def test_nobody_imports_the_drawn_world():
    outside = {name: others for name, others in GRAPH.items() if part_of(name) != "mini"}
    assert not [name for name, others in outside.items() if any(part_of(other) == "mini" for other in others)]
    training = [name for name in GRAPH if name.startswith("sf_llava.mini.training.")]
    kept = {name: others for name, others in GRAPH.items() if name not in training}
    assert training and not [name for name, others in kept.items() if others & set(training)]  # it is not in the wheel


def steps_up(node: ast.expr) -> int:
    """How many folders above this file an expression of ``__file__`` stands; 0 where it has nothing to do with it."""
    if "__file__" not in ast.unparse(node):
        return 0
    found = 0
    for part in ast.walk(node):
        if isinstance(part, ast.Subscript) and isinstance(part.value, ast.Attribute) and part.value.attr == "parents":
            found += 1 + int(ast.literal_eval(part.slice))
        elif isinstance(part, ast.Attribute) and part.attr == "parent":
            found += 1
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            found += part.value.split("/").count("..")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_path_leads_out_of_the_package(path):
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.expr):
            assert steps_up(node) <= depth, f"{path}, line {node.lineno}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            outside = re.fullmatch(r"(tests|scripts|eval)/\S*", node.value)
            assert not outside, f"{path}, line {node.lineno}: no wheel holds {node.value}"


@pytest.mark.parametrize(
    ("code", "steps"),
    [
        ("Path(__file__).resolve().parents[2] / 'scripts'", 3),
        ("Path(__file__).parent.parent", 2),
        ("os.path.join(os.path.dirname(__file__), '../../tests')", 2),
        ("folder.parents[5]", 0),
    ],
)
def test_steps_up_from_a_file_are_counted(code, steps):
    assert steps_up(ast.parse(code, mode="eval").body) == steps


def test_only_the_catalogue_names_the_drawn_world():
    named = []
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and part_of(name) != "mini":
                named += [name] if re.fullmatch(r"sf_llava\.mini(\.\w+)*", node.value) else []
    assert named == ["sf_llava.catalogue"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_host_libraries_stay_in_their_modules(path):
    for name in imports(path):
        allowed = HOSTS.get(name.split(".")[0])
        assert allowed is None or part_of(name_of(path)) in allowed, f"{path.relative_to(ROOT)} imports {name}"


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
