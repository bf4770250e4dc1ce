"""Convert foreign checkpoints into directories that ``from_pretrained`` loads.

    sf-llava convert official sparseformer_btsp_openai_clip_large_converted.pth encoders/sf-l-clip
    sf-llava convert official sparseformer_v1_tiny_converted.pth encoders/sf-v1-tiny
    sf-llava convert llava llava-lcs558k-scienceqa-vicuna-13b-v1.3 models/llava-scienceqa-13b

Expected: one line with the kind of file, the model's size and the directory it was written to.
"""

import argparse

from sf_llava import cli

OUTPUT_HELP = "directory to write; only an older conversion of the same source is replaced"


def convert_official(arguments: argparse.Namespace) -> None:
    """Convert a released SparseFormer file."""
    from sf_llava.model.costs import count_parameters
    from sf_llava.model.official import read_official
    from sf_llava.model.v1 import SparseFormerV1Model
    from sf_llava.model.v1.video import inflate
    from sf_llava.weights.conversion import check_output, write_conversion

    check_output(arguments.output, [arguments.file])
    model, kind = read_official(arguments.file, arguments.image_size)
    if arguments.clips:
        if not isinstance(model, SparseFormerV1Model):
            raise ValueError(f"{arguments.file} is a SparseFormer {kind}: --clips makes video models of v1 alone")
        model = inflate(model, arguments.clips)
        kind += f", inflated to clips with {arguments.clips} replicate{'s' * (arguments.clips > 1)} of its latents"
    write_conversion(arguments.output, [arguments.file], model.save_pretrained)
    config = model.config
    print(
        f"{arguments.output}: SparseFormer {kind}; {config.num_latents} latents, width {config.hidden_size}, "
        f"{config.num_hidden_layers} cortex blocks, {count_parameters(model) / 1e6:.2f} M parameters"
    )


def convert_original_llava(arguments: argparse.Namespace) -> None:
    """Convert a LLaVA directory of the llava package."""
    from sf_llava.llava.loading import convert_llava

    model = convert_llava(
        arguments.directory,
        arguments.output,
        dtype=arguments.dtype,
        tower=arguments.tower,
        conversation=arguments.conversation,
    )
    config = model.config
    print(
        f"{arguments.output}: LLaVA with {config.image_seq_length} tokens an image, tower width "
        f"{config.vision_config.hidden_size}, LLM width {config.text_config.hidden_size}, "
        f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f} M parameters in {arguments.dtype}"
    )


def main(argv: list[str]) -> None:
    """Parse and convert."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    official = commands.add_parser("official", help="a released SparseFormer (.pth), bootstrapped or v1")
    official.add_argument("file", help="the .pth file")
    official.add_argument("output", help=OUTPUT_HELP)
    official.add_argument("--image-size", type=int, default=224, help="input side in pixels to record (default: 224)")
    official.add_argument(
        "--clips",
        type=cli.Number(int, 1, 64),
        metavar="R",
        help="make the video model of a v1 file, its latents repeated for each of R spans of a clip",
    )
    official.set_defaults(run=convert_official)
    llava = commands.add_parser("llava", help="a LLaVA directory in the llava package's format")
    llava.add_argument("directory", help="the directory: config.json with mm_vision_tower, weights, tokenizer")
    llava.add_argument("output", help=OUTPUT_HELP)
    precisions = ["fp32", "fp16", "bf16"]
    llava.add_argument(
        "--dtype", default="fp16", type=cli.precision, choices=precisions, help="of weights (%(default)s)"
    )
    cli.add_flags(llava, "tower")
    llava.add_argument(
        "--conversation",
        default="vicuna_v1",
        choices=["vicuna_v1", "llava_v1"],
        help="conversation for the chat template (default: vicuna_v1)",
    )
    llava.set_defaults(run=convert_original_llava)
    arguments = cli.parse(parser, argv)
    arguments.run(arguments)
