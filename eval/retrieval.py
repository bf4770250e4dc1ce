"""Image-to-text and text-to-image retrieval of a teacher and its student in one run (CLIP's protocol).

    python eval/retrieval.py
        the mini teacher and the quickstart's student on 500 drawn pictures with two captions each
    python eval/retrieval.py --encoder runs/sf-l-64 --teacher open_clip:ViT-L-14-quickgelu/openai \\
            --data dataset_coco.json --images /data/coco --dtype fp16 --batch-size 256 --workers 12
        COCO's 5,000 test images of Karpathy's split, recall at 1 in the paper's Table 6:
        CLIP L/14 56.3 / 36.5, SF-L with 64 tokens 52.3 / 34.8
    torchrun --nproc_per_node 8 eval/retrieval.py ...   identical numbers on eight devices

Expected: one row an encoder with recall at 1, 5 and 10 in both directions, each with half the width of its 95 % interval;
a JSON file with these, the paired differences, what was left out and why, and speeds. Embeddings are kept in --cache by
content, so the same question again is answered at once.
"""

import argparse
import time
from typing import TYPE_CHECKING, Any

from sf_llava import cli

if TYPE_CHECKING:
    from sf_llava.evaluation.retrieval import RetrievalResult


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", metavar="NAME", help="default: the one the student's run names, else mini")
    parser.add_argument("--encoder", metavar="DIR", help="student: encoder or run directory (default: the quickstart's)")
    parser.add_argument("--data", default="mini", metavar="NAME", help="captions:FILE.json, parquet:, hub:, %(default)s")
    parser.add_argument("--images", nargs="*", default=[], metavar="DIR", help="folders with a JSON file's images")
    parser.add_argument("--limit", type=int, metavar="N", help="evaluate on the first N images")
    parser.add_argument("--batch-size", type=int, default=64, help="images a forward pass (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ... (%(default)s: the GPU where there is one)")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "fp16", "bf16"], help="of weights (%(default)s)")
    parser.add_argument("--output", default="runs/retrieval.json", metavar="FILE", help="results (%(default)s)")
    parser.add_argument("--cache", default="runs/embeddings", metavar="DIR", help="kept embeddings (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="decoding processes (%(default)s: none besides this one)")
    return parser.parse_args(argv)
