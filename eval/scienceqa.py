"""ScienceQA with a LLaVA: its own vision tower, a SparseFormer in its place, and what the image is worth.

``sf-llava scienceqa`` under the name of a file; ``python eval/scienceqa.py --help`` explains it.
"""

from sf_llava import cli
from sf_llava.commands.scienceqa import main

if __name__ == "__main__":
    cli.run(main)
