"""Measure the encoder: its costs, its ops, its speed beside the CLIP it replaces, a bootstrap step, a LLaVA.

    sf-llava benchmark costs        parameters and multiply-adds beside the paper's: all within 0.5 %
    sf-llava benchmark ops          sampling and mixing, plain PyTorch against the ops: the ops are faster
    sf-llava benchmark encoder      images a second beside CLIP: about the ratio of multiply-adds; --peers: and beside
                                    a cut CLIP, ToMe, B/16, files in onnxruntime and OpenVINO, float32 and int8
    sf-llava benchmark bootstrap    a training step, split into data, teacher, student, optimiser
    sf-llava benchmark llava        tower, projector, prefill and decode for 256, 128, 64 visual tokens
    sf-llava benchmark export       encoder and CLIP in onnxruntime and OpenVINO, float32 and int8; what int8 costs
    sf-llava benchmark all          on a GPU: its tests, every table, the targets, in under ten minutes

Tables go to the screen, JSON and a plot to ``benchmarks/results``. On the CPU one thread is used.
"""

import argparse
from pathlib import Path

from sf_llava import cli

REPEATS = cli.Number(int, 1, 10**6)
RESULTS = "benchmarks/results"
PAIRS = ("sf-b-49", "sf-l-64", "sf-l-128", "sf-l-144-336", "sf-mini")
SIZES = ("sf-mini", "sf-b-49 @224", "sf-l-64 @224", "sf-l-144 @336")


def main(argv: list[str]) -> None:
    """Parse the sub-command, run it."""
    arguments = _parse(argv)

    from sf_llava.files import make_directory

    make_directory(arguments.output)
    with cli.when_stopped(f"tables that were finished are in {arguments.output}; the same command measures anew"):
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Run the sub-command."""
    import torch

    from sf_llava.devices import as_dtype, choose_device, choose_precision

    if arguments.command == "costs":
        from sf_llava.benchmark import cost_table

        cost_table.run(arguments.output)
        return
    if arguments.command == "export":
        from sf_llava.benchmark import export

        torch.set_num_threads(1)
        given = {
            name: getattr(arguments, name) for name in ("output", "pairs", "repeats", "seed", "encoder", "questions")
        }
        export.run(batch_sizes=arguments.batch_size, **given)
        return
    device = str(choose_device(arguments.device))
    if device == "cpu":
        torch.set_num_threads(1)
    elif torch.device(device).type == "cuda":
        torch.cuda.set_device(torch.device(device).index or 0)
    else:
        raise ValueError(f"`device` {device}: cuda and cpu are measured")
    if arguments.command == "all":
        if device == "cpu":
            raise ValueError("all measures a GPU and found none: run the other sub-commands on the CPU")
        from sf_llava.benchmark import everything

        written = everything.run(arguments.output, device, everything.plan(arguments.output, device))
        if unfinished := [step["step"] for step in written["steps"] if step["outcome"] != "done"]:
            raise RuntimeError(f"not finished: {', '.join(unfinished)}; see above")
        return
    from sf_llava.benchmark import bootstrap, encoder, llava, ops

    common = dict(
        output=arguments.output,
        device=device,
        dtype=str(as_dtype(choose_precision(arguments.dtype, device))).removeprefix("torch."),
        repeats=arguments.repeats,
    )
    common["seed"] = arguments.seed
    if arguments.command == "ops":
        ops.run(batch_sizes=arguments.batch_size, sizes=arguments.sizes, **common)
    elif arguments.command == "encoder":
        modes = arguments.modes or (["eager"] if device == "cpu" else ["eager", "graph", "compiled"])
        if arguments.peers and "eager" not in modes:
            raise ValueError("`peers` are timed beside the eager encoders: add eager to `modes`, or leave `peers` out")
        what = {name: getattr(arguments, name) for name in ("pairs", "peers")}
        encoder.run(batch_sizes=arguments.batch_size, modes=modes, **what, **common)
    elif arguments.command == "bootstrap":
        bootstrap.run(pairs=arguments.pairs, batch_size=arguments.batch_size, data=arguments.data, **common)
    else:
        llava.run(llm=arguments.llm, batch_size=arguments.batch_size, **common)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    output = argparse.ArgumentParser(add_help=False)
    cli.add_flags(output, "output", output=RESULTS)
    device = argparse.ArgumentParser(add_help=False)
    cli.add_flags(device, "device")
    timed = argparse.ArgumentParser(add_help=False)
    cli.add_flags(timed, "dtype", "seed", dtype="auto")
    timed.add_argument("--repeats", type=REPEATS, default=10, help="repetitions after the warm-up")
    pairs = argparse.ArgumentParser(add_help=False)
    pairs.add_argument("--pairs", nargs="+", default=PAIRS[:2], choices=PAIRS, help="SparseFormers beside their CLIP")
    commands.add_parser("costs", parents=[output], help="parameters and multiply-adds beside the paper's")
    ops = commands.add_parser("ops", parents=[output, device, timed], help="the ops beside plain PyTorch and a copy")
    ops.add_argument("--batch-size", type=cli.BATCH, nargs="+", default=[8], metavar="N", help="images at once (8)")
    ops.add_argument("--sizes", nargs="+", default=SIZES, choices=SIZES, help="latents and feature map of an encoder")
    encoder = commands.add_parser("encoder", parents=[output, device, timed, pairs], help="images a second beside CLIP")
    sizes = [1, 8, 32, 128]
    encoder.add_argument(
        "--batch-size", type=cli.BATCH, nargs="+", default=sizes, metavar="N", help="images at once (1 8 32 128)"
    )
    encoder.add_argument(
        "--peers",
        action="store_true",
        help="in the same run, what else could be taken: a cut CLIP, ToMe, B/16, exported files",
    )
    encoder.add_argument("--modes", nargs="+", choices=["eager", "graph", "compiled"], help="default: all; CPU: eager")
    exported = commands.add_parser("export", parents=[output, pairs], help="exported files beside eager PyTorch")
    cli.add_flags(exported, "seed")
    exported.add_argument("--repeats", type=REPEATS, default=10, help="repetitions after the warm-up")
    exported.add_argument(
        "--batch-size", type=cli.BATCH, nargs="+", default=[1, 8], metavar="N", help="images at once (1 8)"
    )
    exported.add_argument("--encoder", metavar="DIR", help="a mini encoder, whose scores are measured too")
    exported.add_argument("--questions", type=cli.POSITIVE_INT, default=600, metavar="N", help="of the LLaVA (600)")
    step = commands.add_parser("bootstrap", parents=[output, device, timed, pairs], help="one training step in parts")
    cli.add_flags(step, "batch-size", batch_size=32)
    step.add_argument("--data", default="mini", help="data set whose reading is timed, by name")
    whole = commands.add_parser("llava", parents=[output, device, timed], help="a LLaVA in parts")
    cli.add_flags(whole, "batch-size", batch_size=1)
    whole.add_argument("--llm", default="mini", choices=["mini", "1b", "7b", "13b"], help="geometry, random weights")
    commands.add_parser("all", parents=[output, device], help="GPU tests and every table")
    arguments = cli.parse(parser, argv)
    arguments.output = Path(arguments.output)
    return arguments
