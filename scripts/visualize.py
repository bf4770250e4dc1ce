"""Draw where an encoder looks: the paper's Figures 3-7, for any images.

``sf-llava visualize`` under the name of a file; ``python scripts/visualize.py --help`` explains it.
"""

from sf_llava import cli
from sf_llava.commands.visualize import main

if __name__ == "__main__":
    cli.run(main)
