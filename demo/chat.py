"""Chat with a LLaVA through two towers: its own CLIP, and a SparseFormer in CLIP's place. Opens a page on this machine.

``sf-llava chat`` under the name of a file; ``python demo/chat.py --help`` explains it.
"""

from sf_llava import cli
from sf_llava.commands.chat import main

if __name__ == "__main__":
    cli.run(main)
