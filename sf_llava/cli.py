"""What every command shares: flags from a typed config, numbers within bounds, one sentence however it ends early.

Library code names arguments in its errors, `` `batch_size` ``; a command says its flag instead, ``--batch-size``.
"""

import argparse
import io
import math
import os
import re
import signal
import sys
import threading
import traceback
import types
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

FORESEEN = (ValueError, OSError, RuntimeError, TypeError, ImportError)
"""Errors that speak for themselves; of any other the place is said too."""

# Scripts import this module before torch. Idle OpenMP threads that spin steal the core from data loading and from each
# other: measured four times slower with two busy processes on two cores. Where nothing else runs, sleeping ones cost a
# fifth of a small model's speed; processes of one thread have neither fault (docs/results.md, what the swap costs).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Large tensors in large pages: a training step of the drawn world then has a tenth of the page faults and takes a
# twentieth less processor time (bf16, one thread of a Xeon with AMX).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


class Terminated(KeyboardInterrupt):
    """SIGTERM, on the path of Ctrl-C: whatever cleans up after the one cleans up after the other."""


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
        if not isinstance(value, kinds) or isinstance(value, bool) or abs(value) == math.inf:
            return False
        return self.low <= value <= self.high and not (self.above and value == self.low)


POSITIVE_INT = Number(int, 1, 10**9)
COUNT = Number(int, 0, 10**9)
BATCH = Number(int, 1, 2**20)
LATENTS = Number(int, 1, 2**16)
SEED = Number(int, 0, 2**32 - 1)
THREADS = Number(int, 1, 1024)
THREADS_OR_AUTO = Number(int, 0, 1024)
POSITIVE = Number(float, 0, above=True)
NON_NEGATIVE = Number(float, 0)
FRACTION = Number(float, 0, 1)


PRECISIONS = ("auto", "fp32", "fp16", "bf16")
OLD_PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def precision(text: str) -> str:
    """Read a precision; an old spelling is an error that says the new one.

    Raises:
        argparse.ArgumentTypeError: an old spelling.
    """
    if text in OLD_PRECISIONS:
        raise argparse.ArgumentTypeError(f"{text} is {OLD_PRECISIONS[text]} now")
    return text


def directory(text: str) -> str:
    """Read the directory of an output; the name of a results file, which some commands took before, is an error.

    Raises:
        argparse.ArgumentTypeError: it ends in ``.json``.
    """
    if text.endswith(".json"):
        raise argparse.ArgumentTypeError(
            f"expected a directory, into which results.json is written now, not {text!r}: write {text[:-5]}"
        )
    return text


class Renamed(argparse.Action):
    """An old spelling of a flag, which is not in the help: an error that says the new one."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, new: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        self.new = new

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> NoReturn:
        parser.error(f"{option_string} is {self.new} now")


RENAMED = {"bits": {"--load-in-4bit": "--bits 4", "--load-in-8bit": "--bits 8"}}
"""By the flag that took their place: old spellings, and what to write now."""
FLAGS: dict[str, dict[str, Any]] = {
    "device": dict(default="auto", help="auto, cpu, cuda, cuda:1 ...; auto: the GPU where there is one (%(default)s)"),
    "dtype": dict(
        default="fp32",
        type=precision,
        choices=PRECISIONS,
        help="of weights and arithmetic; auto: what is fast here, bf16 but on a CPU without AMX (%(default)s)",
    ),
    "bits": dict(type=int, choices=[4, 8], help="load the LLM in so many bits (bitsandbytes)"),
    "workers": dict(
        type=THREADS_OR_AUTO, metavar="N", help="processes that decode; 0: this one (default: by the cores)"
    ),
    "threads": dict(type=THREADS_OR_AUTO, default=0, metavar="N", help="of the CPU; 0: torch's choice (%(default)s)"),
    "batch-size": dict(type=BATCH, metavar="N", help="images at once (%(default)s)"),
    "latents": dict(type=LATENTS, nargs="+", metavar="N", help="of elastic encoders, one row each (their own)"),
    "max-new-tokens": dict(
        type=Number(int, 1, 2**20),
        default=1024,
        metavar="N",
        help="of an answer; ScienceQA's run to 3,500 letters (%(default)s)",
    ),
    "seed": dict(type=SEED, default=0, metavar="N", help="of all that is drawn at random (%(default)s)"),
    "limit": dict(type=POSITIVE_INT, metavar="N", help="ask about N of the data alone, drawn by --seed (default: all)"),
    "model": dict(
        default="mini",
        metavar="NAME",
        help="LLaVA: mini, a directory (transformers' or original), a hub name (%(default)s)",
    ),
    "teacher": dict(metavar="NAME", help="default: the one that the encoder's run names, else mini"),
    "output": dict(type=directory, metavar="DIR", help="directory of all that is written (%(default)s)"),
    "cache": dict(default="runs/embeddings", metavar="DIR", help="directory of kept embeddings (%(default)s)"),
    "json": dict(metavar="FILE", help="write the result to this file too"),
    "tower": dict(metavar="DIR", help="where an original LLaVA directory's own tower lies (default: what it names)"),
    "conversation": dict(choices=["llava_v1", "vicuna_v1"], help="default: the model's own (published: llava_v1)"),
}
"""Flags that mean the same in every command that has them."""


def add_flags(parser: argparse.ArgumentParser, *names: str, **defaults: Any) -> None:
    """Add some of ``FLAGS``, by name; ``defaults`` (by the name of the argument) are other defaults than theirs."""
    for name in names:
        argument = name.replace("-", "_")
        options = FLAGS[name] | ({"default": defaults[argument]} if argument in defaults else {})
        parser.add_argument(f"--{name}", **options)
        for old, new in RENAMED.get(name, {}).items():
            parser.add_argument(old, action=Renamed, new=new)


def parse_fields(parts: Mapping[str, type], argv: list[str], description: str | None) -> dict[str, Any]:
    """Parse ``argv`` into the fields of dataclasses: a flag a field, in kebab case, with the help of its metadata.

    Fields are booleans (``--flag`` and ``--no-flag``), ``Literal`` choices, numbers or text; any may allow None. In the
    metadata a ``number`` bounds a number, a ``type`` is that of the flag.

    Args:
        parts: dataclasses by what they are about; the help is grouped so.
        argv: the command line.
        description: what the command does.

    Returns:
        Those fields that were named.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {known.name for part in parts.values() for known in fields(part)}
    for title, part in parts.items():
        group, hints = parser.add_argument_group(title), get_type_hints(part)
        for known in fields(part):
            kind = known.metadata.get("type", hints[known.name])
            if get_origin(kind) in (Union, types.UnionType):
                (kind,) = [one for one in get_args(kind) if one is not type(None)]
            text = _name_flags(known.metadata.get("help", ""), names)
            if known.default not in (None, MISSING) and kind is not bool:
                text += f" (default: {known.default:.4g})" if kind is float else f" (default: {known.default})"
            options: dict[str, Any] = {"default": None, "help": text.replace("%", "%%")}
            if kind is bool:
                options["action"] = argparse.BooleanOptionalAction
            elif get_origin(kind) is Literal:
                options["choices"] = get_args(kind)
            else:
                options |= {
                    "type": known.metadata.get("number") or kind,
                    "metavar": {int: "N", float: "X"}.get(kind, "NAME"),
                }
            group.add_argument("--" + known.name.replace("_", "-"), dest=known.name, **options)
    return {name: value for name, value in vars(parse(parser, argv)).items() if value is not None}


_arguments: set[str] = set()  # of the command that runs, by the names that library code has for them


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parse ``argv``, so that errors raised later say flags where library code names arguments."""
    arguments = parser.parse_args(argv)
    _arguments.clear()
    _arguments.update(vars(arguments))
    return arguments


def _name_flags(text: str, arguments: Container[str]) -> str:
    """Write `` `batch_size` `` as ``--batch-size`` where that is one of the arguments."""
    return re.sub(
        r"`([a-z_]+)`", lambda found: f"--{found[1].replace('_', '-')}" if found[1] in arguments else found[0], text
    )


def hide_loading_bars() -> None:
    """Hide transformers' bars of loading weights, one a process, but not those of downloads, which it hides as well."""
    import huggingface_hub.utils as hub
    import transformers

    were_hidden = hub.are_progress_bars_disabled()
    transformers.utils.logging.disable_progress_bar()
    if not were_hidden:
        hub.enable_progress_bars()


@contextmanager
def when_stopped(sentence: str) -> Iterator[None]:
    """While this block runs, let Ctrl-C and SIGTERM say ``sentence``: what is kept, and how to go on."""
    try:
        yield
    except BaseException as end:  # an error too: it may be the consequence of a signal
        end.add_note(sentence)
        raise


def run(main: Callable[[list[str]], None]) -> None:
    """Run ``main(argv)``; whatever ends it early is one line on stderr.

    Errors exit with status 2, Ctrl-C with 130, SIGTERM with 143 (128 and the signal's number). The notes of a
    ``KeyboardInterrupt`` (:func:`when_stopped`) are said too. ``--traceback`` anywhere on the command line shows the
    traceback of an error instead.
    """
    argv = sys.argv[1:]
    show_traceback = "--traceback" in argv
    argv = [argument for argument in argv if argument != "--traceback"]
    for stream in (sys.stdout, sys.stderr):  # a file name that the terminal cannot show ends no run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = _format_warning
    terminated = _raise_on_sigterm()
    try:
        if "" in argv:
            before = argv[argv.index("") - 1] if argv.index("") else "the command"
            raise ValueError(f"the argument after {before} is empty: a variable of the shell may not be set")
        main(argv)
        _flush_output()
    except KeyboardInterrupt as interrupt:
        _stop(interrupt, isinstance(interrupt, Terminated))
    except Exception as error:
        if terminated.is_set():  # and was swallowed on its way, or overtaken by what the same signal did to others
            _stop(error, is_sigterm=True)
        if show_traceback:
            raise
        _say(f"error: {_name_flags(_sentence(error), _arguments)} (--traceback shows where)")
        sys.exit(2)


def _format_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> str:
    """Write a warning as one line without the line of code that raised it."""
    name = "note" if category is UserWarning else category.__name__
    return f"{name}: {_name_flags(' '.join(str(message).split()), _arguments)}\n"


def _raise_on_sigterm() -> threading.Event:
    """Let SIGTERM raise; return what is set when it came."""
    owner, came = os.getpid(), threading.Event()

    def stop(number: int, frame: types.FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        if os.getpid() != owner:  # a forked child, which has nothing to tell
            os.kill(os.getpid(), number)
        came.set()
        sys.unraisablehook = lambda _: None  # of data processes that got the signal too
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    return came


def _stop(end: BaseException, is_sigterm: bool) -> NoReturn:
    """Say how a run was stopped from outside, and what is kept."""
    notes = getattr(end, "__notes__", [])
    how = "terminated" if is_sigterm else "interrupted"
    if os.environ.get("RANK", "0") == "0":  # of several processes that share the work, one says it
        _say(_name_flags(": ".join(filter(None, (how, "; ".join(notes)))), _arguments))
    sys.exit(128 + (signal.SIGTERM if is_sigterm else signal.SIGINT))


def _flush_output() -> None:
    """Write out what was printed while it can still be told that this fails (a full disk, a reader that has gone)."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter would try once more
        raise OSError(error.errno, error.strerror, "standard output") from error


def _say(line: str) -> None:
    """Say how it ended, after all that was printed; where nobody reads any more, say nothing."""
    with suppress(OSError):
        _flush_output()
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _sentence(error: Exception) -> str:
    """Say an error on one line, an unforeseen one with its place.

    Of one that a data loading process re-raised with its traceback, keep the last line.
    """
    text = str(error)
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
    text = " ".join(text.split()) or type(error).__name__
    if isinstance(error, FORESEEN):
        return text
    if isinstance(error, MemoryError):
        return f"not enough memory: {text}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"unforeseen {type(error).__name__} in {Path(place.filename).name}, line {place.lineno}: {text}"
