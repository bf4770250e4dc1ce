"""One report of weights that do not fit a model: what is missing, what is unexpected, what has another shape."""

from collections.abc import Iterable, Mapping

Shape = tuple[int, ...]


def some(names: Iterable[object], shown: int = 4) -> str:
    """Name the first few, in order."""
    names = sorted(map(str, names))
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def describe_misfit(
    missing: Iterable[object] = (), unexpected: Iterable[object] = (), misshaped: Iterable[object] = ()
) -> str:
    """Say how many tensors are wrong in which way, and which; empty where none is."""
    kinds = {"missing": list(missing), "unexpected": list(unexpected), "of another shape": list(misshaped)}
    return "; ".join(f"{len(names)} {kind}: {some(names)}" for kind, names in kinds.items() if names)


def find_misfit(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> str:
    """Compare the names and shapes of tensors with those that a model asks for; see :func:`describe_misfit`."""
    misshaped = (
        f"{name} {tuple(found[name])} instead of {tuple(expected[name])}"
        for name in expected.keys() & found.keys()
        if tuple(found[name]) != tuple(expected[name])
    )
    return describe_misfit(expected.keys() - found.keys(), found.keys() - expected.keys(), misshaped)
