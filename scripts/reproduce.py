"""The paper's Tables 3, 6 and 8 in miniature: every row that can be run small, two seeds each, equal steps.

``sf-llava reproduce`` under the name of a file; ``python scripts/reproduce.py --help`` explains it.
"""

from sf_llava import cli
from sf_llava.commands.reproduce import main

if __name__ == "__main__":
    cli.run(main)
