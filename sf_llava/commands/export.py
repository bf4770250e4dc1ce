"""Write an encoder as a file that onnxruntime or OpenVINO runs, checked against the model on pictures.

    sf-llava export onnx runs/sf-l-64 exported/sf-l-64 --images folder:photos
        the embedding (batch, 768); with --layer -2 the latents that LLaVA reads, (batch, 64, 1024)
    sf-llava export openvino runs/sf-l-64 exported/sf-l-64-llava --with-projector path/to/llava
        what a LLaVA's LLM reads in place of a picture, (batch, 64, 4096)
    sf-llava export onnx runs/sf-l-64 exported/sf-l-64-int8 --int8
        weights in 8 bits: a quarter of the size; what that costs is printed

Any batch, float32 in and out. Expected: the file with its size, and how far it is from the model on batches of 1, 3 and
32 pictures; one that is too far is not written. The image processor and export.json lie beside it; docs/export.md says
how to run it.
"""

import argparse
from pathlib import Path

from sf_llava import cli
from sf_llava.catalogue import QUICKSTART, default_encoder


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=["onnx", "openvino"], help="of the file")
    parser.add_argument("encoder", nargs="?", help=f"encoder or run directory ({QUICKSTART}, or the one that ships)")
    parser.add_argument("output", nargs="?", metavar="OUT", help="directory to write (default: runs/export-FORMAT)")
    parser.add_argument("--layer", type=int, metavar="N", help="give the latents of this hidden state; LLaVA reads -2")
    parser.add_argument(
        "--with-projector", dest="llava", metavar="LLAVA", help="give what this LLaVA's LLM reads: mini, a directory"
    )
    parser.add_argument("--int8", action="store_true", help="keep the weights in 8 bits")
    parser.add_argument(
        "--images", default="mini-test:both", metavar="NAME", help="pictures to check on: folder:DIR, ... (drawn ones)"
    )
    arguments = cli.parse(parser, argv)
    arguments.output = arguments.output or f"runs/export-{arguments.format}{'-int8' if arguments.int8 else ''}"
    return arguments


def main(argv: list[str]) -> None:
    """Parse, export, say what was written."""
    arguments = parse(argv)

    from sf_llava.data import open_images
    from sf_llava.export.formats import require_runtime
    from sf_llava.export.run import export

    require_runtime(arguments.format, arguments.int8)
    if arguments.encoder is None:
        arguments.encoder, remark = default_encoder()
        if remark:
            print(remark)
    cli.hide_loading_bars()
    print("exporting: one to three minutes", flush=True)
    record, difference = export(
        arguments.format,
        arguments.encoder,
        arguments.output,
        open_images(arguments.images),
        arguments.layer,
        arguments.llava,
        arguments.int8,
    )
    size = sum(file.stat().st_size for file in Path(arguments.output).iterdir()) / 1e6
    given, taken = (record[side] for side in ("output", "input"))
    print(f"{Path(arguments.output) / record['file']}: {size:.1f} MB, weights {record['weights']}")
    print(f"{taken['name']} {_shape(taken)} -> {given['name']} {_shape(given)}")
    print(f"beside the model on {difference.num_images} pictures in batches of 1, 3, 32: {difference}")


def _shape(tensor: dict) -> str:
    return f"({', '.join(map(str, tensor['shape']))})"
