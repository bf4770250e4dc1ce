"""Publish a LLaVA that sees through a SparseFormer, or the SparseFormer alone: a directory that loads anywhere.

    sf-llava publish llava-hf/llava-1.5-7b-hf runs/sf-l-64 llava-sf-64 --license llama2
        the LLaVA with the encoder for its tower: AutoModelForImageTextToText and AutoProcessor load it with
        trust_remote_code=True where there is only transformers; here load_llava does, without code from it
    sf-llava publish llava-hf/llava-1.5-7b-hf runs/sf-l-64 llava-sf-64 --positions-and-bias
        the same, which tells its LLM in every call where each latent looks; nothing is trained for it
    sf-llava publish runs/sf-l-64 sf-l-64 --license mit
        the encoder alone, for AutoModel and AutoImageProcessor; here load_encoder
    sf-llava publish runs/sf-l-64 sf-l-64 --license mit --push owner/sf-l-64
        uploads it too, with the account that hf auth login left (nothing is uploaded without --push)

Expected: one line with the directory, and its size. It holds weights, the encoder's code, SHA256SUMS and a card with
what the encoder's run measured, what it was made from, and the licence that you name.
"""

import argparse
from pathlib import Path

from sf_llava import cli


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llava", nargs="?", metavar="LLAVA", help="mini, a directory or a hub name; none: no LLaVA")
    parser.add_argument("encoder", metavar="ENCODER", help="directory of a SparseFormer, or of its run")
    parser.add_argument("output", metavar="OUT", help="directory to write, new or empty")
    parser.add_argument("--license", metavar="NAME", help="of the weights, as the hub spells it; --push needs it")
    parser.add_argument(
        "--dtype",
        type=cli.precision,
        choices=cli.PRECISIONS,
        help="of the LLaVA's weights (default: as they were saved)",
    )
    parser.add_argument(
        "--positions-and-bias",
        action="store_true",
        help="the LLaVA reads every latent at the place it looks at, in all calls (default: as they come)",
    )
    parser.add_argument("--push", metavar="REPO", help="upload it to the hub as owner/name (default: no)")
    arguments = cli.parse(parser, argv)
    if arguments.push and not arguments.license:
        parser.error("--push needs --license: those who fetch it must know what they may do with the weights")
    if (arguments.dtype or arguments.positions_and_bias) and not arguments.llava:
        flag = "--dtype" if arguments.dtype else "--positions-and-bias"
        parser.error(f"{flag} is for a LLaVA: an encoder alone is published as it was saved")
    return arguments


def main(argv: list[str]) -> None:
    """Write, and upload where that was asked for."""
    arguments = parse(argv)
    from sf_llava.publish.writing import check_repo, publish_encoder, publish_llava, push

    if arguments.push:
        check_repo(arguments.push)
    about = {"license": arguments.license, "title": arguments.push}
    if arguments.llava:
        publish_llava(
            arguments.llava,
            arguments.encoder,
            arguments.output,
            dtype=arguments.dtype or "auto",
            positions_and_bias=arguments.positions_and_bias,
            **about,
        )
    else:
        publish_encoder(arguments.encoder, arguments.output, **about)
    size = sum(path.stat().st_size for path in Path(arguments.output).rglob("*"))
    print(f"{arguments.output}: {'LLaVA' if arguments.llava else 'encoder'}, {size / 2**20:,.1f} MiB, loads anywhere")
    if arguments.push:
        print(f"uploaded: {push(arguments.output, arguments.push)}")
