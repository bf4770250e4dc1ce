"""Convert foreign checkpoints into directories that ``from_pretrained`` loads.

``sf-llava convert`` under the name of a file; ``python scripts/convert.py --help`` explains it.
"""

from sf_llava import cli
from sf_llava.commands.convert import main

if __name__ == "__main__":
    cli.run(main)
