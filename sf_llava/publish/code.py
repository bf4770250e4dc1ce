"""The encoder's code as files that transformers' dynamic modules import: the package's own modules, made flat.

``sf_llava/ops/sampling.py`` becomes ``ops_sampling.py``, its imports from the package relative ones. Only what the
published classes reach is copied; it needs torch, transformers, NumPy and Pillow. Triton kernels stay in the package:
where it is not installed the ops are computed by tensor operations, on GPUs too.
"""

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from sf_llava import __version__

PACKAGE = "sf_llava"
HEADER = "# {name} of version {version}, copied by sf-llava publish. SPDX-License-Identifier: Apache-2.0\n"


def copy_code(*modules: str) -> dict[str, str]:
    """Copy modules of the package and all of it that they import.

    Args:
        modules: absolute names, ``sf_llava.model.sparseformer``.

    Returns:
        The texts by file name, ``model_sparseformer.py``.
    """
    copied: dict[str, str] = {}
    left = list(modules)
    while left:
        name = left.pop()
        if (file := f"{flat_name(name)}.py") not in copied:
            copied[file], imported = _copy(name)
            left += imported
    return copied


def flat_name(module: str) -> str:
    """Name a module's copy: ``sf_llava.ops.sampling`` is ``ops_sampling``."""
    return module.removeprefix(f"{PACKAGE}.").replace(".", "_")


def _copy(name: str) -> tuple[str, list[str]]:
    """Rewrite the imports of one module; give its text and the modules of the package that it imports."""
    path = _find(name)
    assert path is not None, f"there is no module {name}"
    text = path.read_text(encoding="utf-8")
    lines, imported = text.splitlines(), list[str]()
    for node in sorted(_imports(ast.parse(text)), key=lambda node: -node.lineno):
        written, found = _rewrite(node)
        imported += found
        lines[node.lineno - 1 : node.end_lineno] = [" " * node.col_offset + line for line in written]
    return HEADER.format(name=name, version=__version__) + "\n".join(lines) + "\n", imported


def _imports(tree: ast.Module) -> Iterator[ast.ImportFrom]:
    """Find the imports from the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{PACKAGE}."):
            yield node
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith(PACKAGE) for alias in node.names), "published code names what it takes"


def _rewrite(node: ast.ImportFrom) -> tuple[list[str], list[str]]:
    """Write one import as relative ones; give the lines, and the modules that they import."""
    assert node.module is not None
    modules = [alias for alias in node.names if _find(f"{node.module}.{alias.name}")]
    names = [ast.unparse(alias) for alias in node.names if alias not in modules]
    lines, imported = [], []
    if names:
        lines.append(f"from .{flat_name(node.module)} import {', '.join(names)}")
        imported.append(node.module)
    for alias in modules:
        full_name = f"{node.module}.{alias.name}"
        # transformers copies the files that a line like the first names; the second it does not see
        lines.append(f"from .{flat_name(full_name)} import __name__ as _")
        lines.append(f"from . import {flat_name(full_name)} as {alias.asname or alias.name}")
        imported.append(full_name)
    return lines, imported


@cache
def _find(name: str) -> Path | None:
    """Find the file of a module of the package; None where there is none."""
    try:
        spec = find_spec(name)
    except ModuleNotFoundError:  # its parent is no package
        return None
    return Path(spec.origin).resolve() if spec and spec.origin else None
