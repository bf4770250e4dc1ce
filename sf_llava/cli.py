"""What every script shares: flags from a typed config, one clear sentence for a user's mistake."""

import argparse
import math
import os
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")

# Scripts import this module before torch. Idle OpenMP threads that spin steal the core from data loading and from each
# other: measured four times slower with two busy processes on two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@dataclass(frozen=True)
class Number:
    """The numbers that a flag takes: an argparse ``type``, and a check of values that come from elsewhere.

    Attributes:
        kind: int or float.
        low, high: bounds, themselves included.
        above: exclude ``low``.
    """

    kind: type[int] | type[float]
    low: float
    high: float = math.inf
    above: bool = False

    def __str__(self) -> str:
        what = "a whole number" if self.kind is int else "a number"
        low = f"{'above' if self.above else 'from'} {self.low:,}"
        return f"{what} {low}" + (f" to {self.high:,}" if math.isfinite(self.high) else "")

    def __call__(self, text: str) -> float:
        """Read ``text``.

        Raises:
            argparse.ArgumentTypeError: it is no such number.
        """
        try:
            value = self.kind(text)
        except ValueError:
            value = math.nan
        if not self.admits(value):
            raise argparse.ArgumentTypeError(f"expected {self}, not {text!r}")
        return value

    def admits(self, value: object) -> bool:
        """Whether ``value`` is such a number."""
        kinds = int if self.kind is int else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool) or not math.isfinite(value):
            return False
        return self.low <= value <= self.high and not (self.above and value == self.low)


POSITIVE_INT = Number(int, 1, 10**9)
COUNT = Number(int, 0, 10**9)
BATCH = Number(int, 1, 2**20)
SEED = Number(int, 0, 2**32 - 1)
THREADS = Number(int, 1, 1024)
THREADS_OR_AUTO = Number(int, 0, 1024)
POSITIVE = Number(float, 0, above=True)
NON_NEGATIVE = Number(float, 0)
FRACTION = Number(float, 0, 1)


def parse_config(config: type[Config], argv: list[str], description: str | None) -> Config:
    """Parse ``argv`` into a dataclass: a flag a field, in kebab case, with the help text of the field's metadata.

    Fields are booleans (``--flag`` and ``--no-flag``), ``Literal`` choices, numbers or text; any may allow None. A
    ``Number`` in the metadata bounds a number.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    hints = get_type_hints(config)
    for field in fields(config):
        kind = hints[field.name]
        if get_origin(kind) in (Union, types.UnionType):
            (kind,) = [part for part in get_args(kind) if part is not type(None)]
        text = field.metadata.get("help", "")
        if field.default is not None and kind is not bool:
            text += f" (default: {field.default:.4g})" if kind is float else f" (default: {field.default})"
        options: dict[str, Any] = {"default": field.default, "help": text.replace("%", "%%")}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is Literal:
            options["choices"] = get_args(kind)
        else:
            options |= {
                "type": field.metadata.get("number") or kind,
                "metavar": {int: "N", float: "X"}.get(kind, "NAME"),
            }
        parser.add_argument("--" + field.name.replace("_", "-"), dest=field.name, **options)
    return config(**vars(parser.parse_args(argv)))


def run(main: Callable[[list[str]], None]) -> None:
    """Run ``main(argv)``; turn expected errors into one line on stderr and exit status 2.

    ``--traceback`` anywhere on the command line shows the full traceback instead. Ctrl-C exits with 130.
    """
    argv = sys.argv[1:]
    show_traceback = "--traceback" in argv
    argv = [argument for argument in argv if argument != "--traceback"]
    try:
        main(argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:
        if show_traceback:
            raise
        print(f"error: {_sentence(error)} (--traceback shows where)", file=sys.stderr)
        sys.exit(2)


def _sentence(error: Exception) -> str:
    """Say an error on one line; of one that a data loading process re-raised with its traceback, keep the last line."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split()) or type(error).__name__
