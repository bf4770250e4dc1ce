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
USAGE = (
    "usage: sf-llava COMMAND ...\n\nSparseFormer encoders for LLaVA-like models.\n\ncommands:\n"
    + "".join(f"  {name:14}{text}\n" for name, text in COMMANDS.items())
    + "\nsf-llava COMMAND --help explains a command; without flags most run on the embedded default, offline.\n"
)


def main() -> None:
    """Run the command that is named first."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(USAGE, end="")
    elif name == "--version":
        print(f"sf-llava {__version__}")
    elif name not in COMMANDS:
        print(f"error: there is no command {name!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    else:
        sys.argv[:2] = [f"sf-llava {name}"]  # as usage lines and errors show it
        cli.run(importlib.import_module(f"sf_llava.commands.{name.replace('-', '_')}").main)


if __name__ == "__main__":
    main()
