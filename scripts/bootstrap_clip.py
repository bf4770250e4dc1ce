"""Bootstrap a SparseFormer from a frozen CLIP (or AugReg) ViT and unlabelled images.

``sf-llava bootstrap`` under the name of a file; ``python scripts/bootstrap_clip.py --help`` explains it.
"""

from sf_llava import cli
from sf_llava.commands.bootstrap import main

if __name__ == "__main__":
    cli.run(main)
