"""What swapping the tower costs a LLaVA: the mini LLaVA on held-out questions through every tower, side by side.

``sf-llava swap-table`` under the name of a file; ``python scripts/swap_table.py --help`` explains it.
"""

from sf_llava import cli
from sf_llava.commands.swap_table import main

if __name__ == "__main__":
    cli.run(main)
