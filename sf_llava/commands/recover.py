"""After a swap, tune projector and LLM to the new tower on your own conversations, and say what that gives back.

On the embedded default, offline, in minutes (the mini LLaVA, the student of make quickstart, questions of the drawn
world):

    sf-llava recover

Your LLaVA, an encoder bootstrapped from its CLIP, and data in LLaVA's own form, a list of entries such as

    {"id": "7", "image": "7.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                                    {"from": "gpt", "value": "A cat."}]}

    sf-llava recover path/to/llava runs/sf-l-64 --data llava_v1_5_mix665k.json --images /data --output runs/recovered \\
        --dtype bf16 --micro-batch-size 4 --gradient-checkpointing

or questions with choices, of which the test split is held out: --data ScienceQA/data/scienceqa, parquet:PATH, mini:N.
--train projector is the cheapest, projector+lora the default; projector+llm tunes a small LLM whole. Many GPUs:
accelerate launch -m sf_llava recover ...

Killed and started again it continues from its newest checkpoint, to the same numbers. Expected: a table of the
original tower, the swap, and the swap recovered, on what was held out: loss and tokens of the answers, and answers that
are right where questions have choices; DIR/llava, an ordinary LLaVA with adapters merged (load_llava, from_pretrained,
sf-llava chat); DIR/results.json.
"""

import argparse
from contextlib import nullcontext

from sf_llava import cli
from sf_llava.catalogue import default_encoder
from sf_llava.tuning.recipe import TRAINED, Recipe

MINI = "mini"
RANK = cli.Number(int, 1, 4096)


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llava", nargs="?", default=MINI, help="LLaVA with its own tower, as --model elsewhere (mini)")
    parser.add_argument("encoder", nargs="?", help="SparseFormer, or its run (mini: the quickstart's)")
    parser.add_argument("--data", metavar="NAME", help="LLaVA's FILE.json, or questions by name (mini: mini:12800)")
    parser.add_argument("--images", metavar="DIR", help="folder of the pictures that FILE.json names")
    parser.add_argument("--split", default="test", help="of questions, held out (%(default)s)")
    parser.add_argument(
        "--held-out", type=cli.POSITIVE_INT, metavar="N", help="to measure on (a tenth of the entries, at most 500)"
    )
    parser.add_argument("--train", choices=TRAINED, default="projector+lora", help="what is tuned (%(default)s)")
    parser.add_argument("--rank", type=RANK, default=64, metavar="N", help="of LoRA; alpha is twice that (%(default)s)")
    parser.add_argument("--lr", type=cli.POSITIVE, default=2e-4, metavar="X", help="learning rate (%(default)s)")
    parser.add_argument("--steps", type=cli.POSITIVE_INT, metavar="N", help="(default: once over the data)")
    parser.add_argument(
        "--micro-batch-size", type=cli.BATCH, metavar="N", help="of a batch, at once in a process (all of its share)"
    )
    parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    parser.add_argument("--save-steps", type=cli.POSITIVE_INT, default=100, metavar="N", help="(%(default)s)")
    precisions = ["auto", "fp32", "bf16"]
    parser.add_argument("--dtype", type=cli.precision, choices=precisions, default="fp32", help="(%(default)s)")
    cli.add_flags(parser, "max-new-tokens", "batch-size", "tower", "conversation", "device", batch_size=32)
    cli.add_flags(parser, "output", "seed", "workers", output="runs/recover")
    arguments = cli.parse(parser, argv)
    if arguments.llava == MINI:
        arguments.encoder = arguments.encoder or default_encoder()[0]
        arguments.data = arguments.data or "mini:12800"
    if arguments.encoder is None or arguments.data is None:
        parser.error("name LLAVA, ENCODER and --data; without any of them the mini LLaVA is recovered")
    return arguments


def main(argv: list[str]) -> None:
    """Parse, recover, print."""
    arguments = parse(argv)

    from sf_llava.extras import require

    require("recovery", "peft")

    from sf_llava.data.loading import choose_workers
    from sf_llava.devices import choose_device, choose_precision
    from sf_llava.files import locked
    from sf_llava.model.loading import find_encoder
    from sf_llava.tuning.run import Recovery, recover

    find_encoder(arguments.encoder)
    device = choose_device(arguments.device)
    fast = choose_precision(arguments.dtype, device)
    arguments.dtype = "fp32" if fast == "fp16" else fast  # in which nothing is tuned
    arguments.workers = choose_workers(arguments.workers)
    names = vars(arguments)
    steps = {"steps": arguments.steps or 0, "bf16": arguments.dtype == "bf16"}
    recipe = Recipe(**{name: names[name] for name in Recipe.__dataclass_fields__ if name not in steps}, **steps)
    recovery = Recovery(
        **{name: names[name] for name in Recovery.__dataclass_fields__ if name != "recipe"}, recipe=recipe
    )

    from accelerate import PartialState

    cli.hide_loading_bars()
    main_process = PartialState().is_main_process
    kept = f"what {arguments.output} holds is whole, and the same command goes on from its newest checkpoint"
    with locked(arguments.output) if main_process else nullcontext(), cli.when_stopped(kept):
        results = recover(recovery)
    if main_process:
        print_results(results, arguments.output)


def print_results(results: dict, output: str) -> None:
    """Print the table before and after, and where things are."""
    from sf_llava.report import print_table
    from sf_llava.scienceqa import scoring
    from sf_llava.scienceqa.report import print_comparison
    from sf_llava.tuning.measure import rows_of_table

    settings, towers, training = results["settings"], results["towers"], results["training"]
    title = f"{settings['llava']} on {settings['data']}, held out; tuned: {settings['train']}, seed {settings['seed']}"
    print_table(title, *rows_of_table(towers))
    if "score" in towers["original"]:
        comparison = scoring.compare(towers["recovered"]["score"], towers["swapped"]["score"])
        print_comparison("recovered - swapped", {"all": comparison["all"]})
    print(
        f"\ntuned {training['trained'] / 1e6:.2f} M weights in {training['steps']} steps, {training['seconds']:.0f} s, "
        f"{settings['dtype']}, on {results['environment']['device']}\nLLaVA     {output}/llava (load_llava, "
        f"from_pretrained)\nresults   {output}/results.json"
    )
