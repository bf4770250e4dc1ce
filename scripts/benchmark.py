"""Measure the encoder: its costs, its ops, its speed beside the CLIP it replaces.

    python scripts/benchmark.py costs        parameters and multiply-adds beside the paper's: all within 0.5 %

Tables go to the screen, JSON to ``benchmarks/results``.
"""

import argparse
from pathlib import Path

from sf_llava.cli import run

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def main(argv: list[str]) -> None:
    """Parse the sub-command, run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--output", type=Path, default=RESULTS, help="directory of the results")
    commands.add_parser("costs", parents=[shared], help="parameters and multiply-adds beside the paper's")
    arguments = parser.parse_args(argv)

    from sf_llava.benchmark import costs

    costs.run(arguments.output)


if __name__ == "__main__":
    run(main)
