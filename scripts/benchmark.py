"""Measure the encoder: its costs, its ops, its speed beside the CLIP it replaces, a bootstrap step, a LLaVA.

``sf-llava benchmark`` under the name of a file; ``python scripts/benchmark.py --help`` explains it.
"""

from sf_llava import cli
from sf_llava.commands.benchmark import main

if __name__ == "__main__":
    cli.run(main)
