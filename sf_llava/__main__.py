"""All commands behind one name: ``sf-llava COMMAND ...``, or ``python -m sf_llava COMMAND ...``."""

import importlib
import sys

from sf_llava import __version__, cli

COMMANDS = {
    "bootstrap": "train an encoder from a frozen ViT and unlabelled images",
    "scienceqa": "ScienceQA through a LLaVA's own tower and through encoders",
    "zero-shot": "zero-shot classification of teacher and student",
    "retrieval": "image-text retrieval of teacher and student",
    "segment": "semantic segmentation on an encoder's latents: train, eval, predict",
    "recover": "tune projector and LLM to a swapped tower, on your own conversations",
    "chat": "a page on which a LLaVA answers through both towers",
    "export": "an encoder as a file for onnxruntime or OpenVINO",
    "convert": "released SparseFormers and original LLaVAs into directories that load",
    "publish": "a swapped LLaVA or an encoder as a directory that loads anywhere",
    "harness-tasks": "task files for lmms-eval, from any questions",
    "benchmark": "speed, memory, multiply-adds",
    "visualize": "pictures of where an encoder looks",
    "swap-table": "what a swap costs the mini LLaVA, and what alignment gives back",
    "reproduce": "the paper's ablations in miniature",
}
SHARED = {"bootstrap": "", "segment": "train", "recover": "", "scienceqa": "run", "zero-shot": "", "retrieval": ""}
"""Commands whose work several processes share, and which part of it, where they have parts."""
MOST_PROCESSES = 1024
USAGE = (
    "usage: sf-llava [--processes N] COMMAND ...\n\nSparseFormer encoders for LLaVA-like models.\n\ncommands:\n"
    + "".join(f"  {name:14}{text}\n" for name, text in COMMANDS.items())
    + "\nsf-llava COMMAND --help explains a command; without flags most run on the embedded default, offline.\n"
    + "sf-llava --processes N COMMAND ... shares a command's work among N processes of this machine, one a GPU or one\n"
    + f"for some of its cores: {', '.join(f'{name} {part}'.strip() for name, part in SHARED.items())}.\n"
)


def main() -> None:
    """Run the command that is named first."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(USAGE, end="")
    elif name == "--processes":
        _share_work(sys.argv[2:])
    elif name == "--version":
        print(f"sf-llava {__version__}")
    elif name not in COMMANDS:
        print(f"error: there is no command {name!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    else:
        sys.argv[:2] = [f"sf-llava {name}"]  # as usage lines and errors show it
        cli.run(importlib.import_module(f"sf_llava.commands.{name.replace('-', '_')}").main)


def _share_work(arguments: list[str]) -> None:
    """Run ``N COMMAND ...`` in N processes; a command that is alone, or that is not known, in this one."""
    count = int(arguments[0]) if arguments and arguments[0].isdecimal() else 0
    if not 1 <= count <= MOST_PROCESSES:
        found = repr(arguments[0]) if arguments else "nothing"
        print(f"error: --processes takes a number from 1 to {MOST_PROCESSES}, not {found}", file=sys.stderr)
        sys.exit(2)
    if count == 1 or arguments[1:2] == [] or arguments[1] not in COMMANDS:
        sys.argv[1:] = arguments[1:]
        return main()
    name, part = arguments[1], "".join(word for word in arguments[2:3] if not word.startswith("-"))
    if name not in SHARED or (SHARED[name] and part not in ("", SHARED[name])):
        print(f"error: {f'{name} {part}'.strip()} is done by one process: leave out --processes", file=sys.stderr)
        sys.exit(2)
    from sf_llava.processes import run_in_processes  # not above: it imports torch, and help should come at once

    sys.exit(run_in_processes(count, arguments[1:]))


if __name__ == "__main__":
    main()
