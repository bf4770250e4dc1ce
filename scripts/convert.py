"""Convert foreign checkpoints into directories that ``from_pretrained`` loads.

    python scripts/convert.py official sparseformer_btsp_openai_clip_large.pth encoders/sf-l-clip

Expected: one line with the encoder's size and the directory it was written to.
"""

import argparse

from sf_llava import cli


def convert_official(arguments: argparse.Namespace) -> None:
    """Convert a released SparseFormer file."""
    from sf_llava.checkpoints.official import load_official
    from sf_llava.costs import count_parameters
    from sf_llava.files import write_directory

    model = load_official(arguments.file, arguments.image_size)
    write_directory(arguments.output, lambda directory: model.save_pretrained(directory))
    config = model.config
    print(
        f"{arguments.output}: SparseFormer with {config.num_latents} latents, width {config.hidden_size}, "
        f"{config.num_hidden_layers} cortex blocks, {config.hidden_act}, {count_parameters(model) / 1e6:.2f} M parameters"
    )


def main(argv: list[str]) -> None:
    """Parse and convert."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    official = commands.add_parser("official", help="a released SparseFormer .pth (bootstrapped B or L, AugReg or CLIP)")
    official.add_argument("file", help="the .pth file")
    official.add_argument("output", help="directory to write, replaced if it exists")
    official.add_argument("--image-size", type=int, default=224, help="input side in pixels to record (default: 224)")
    official.set_defaults(run=convert_official)
    arguments = parser.parse_args(argv)
    arguments.run(arguments)


if __name__ == "__main__":
    cli.run(main)
