"""Image-to-text and text-to-image retrieval of a teacher and its student in one run (CLIP's protocol).

``sf-llava retrieval`` under the name of a file; ``python eval/retrieval.py --help`` explains it.
"""

from sf_llava import cli
from sf_llava.commands.retrieval import main

if __name__ == "__main__":
    cli.run(main)
