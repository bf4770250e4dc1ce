"""Zero-shot classification of a teacher and its student in one run.

``sf-llava zero-shot`` under the name of a file; ``python eval/zero_shot.py --help`` explains it.
"""

from sf_llava import cli
from sf_llava.commands.zero_shot import main

if __name__ == "__main__":
    cli.run(main)
