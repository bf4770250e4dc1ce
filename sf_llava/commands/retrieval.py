"""Image-to-text and text-to-image retrieval of a teacher and its student in one run (CLIP's protocol).

    sf-llava retrieval
        the mini teacher and the quickstart's student on 500 drawn pictures with two captions each
    sf-llava retrieval --encoder runs/sf-l-64 --teacher open_clip:ViT-L-14-quickgelu/openai \\
            --data dataset_coco.json --images /data/coco --dtype fp16 --batch-size 256
        COCO's 5,000 test images of Karpathy's split, recall at 1 in the paper's Table 6:
        CLIP L/14 56.3 / 36.5, SF-L with 64 tokens 52.3 / 34.8
    sf-llava --processes 8 retrieval ...   identical numbers on eight devices

Expected: one row an encoder with recall at 1, 5 and 10 in both directions, each with half the width of its 95 %
interval; a JSON file with these, the paired differences, what was left out and why, and speeds. Embeddings are kept in
--cache by content, so the same question again is answered at once.
"""

import argparse
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf_llava import cli

if TYPE_CHECKING:
    from sf_llava.retrieval.run import RetrievalResult

RESULTS = "results.json"  # in the directory of the output


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--encoder", nargs="+", default=[], metavar="DIR", help="students: encoders or runs (default: the quickstart's)"
    )
    parser.add_argument("--data", default="mini", metavar="NAME", help="captions:FILE, parquet:, hub: (%(default)s)")
    parser.add_argument("--images", nargs="*", default=[], metavar="DIR", help="folders with a JSON file's images")
    cli.add_flags(parser, "latents", "teacher", "output", "cache", "limit", "seed", output="runs/retrieval")
    cli.add_flags(parser, "batch-size", "device", "dtype", "workers", batch_size=64)
    return cli.parse(parser, argv)


def main(argv: list[str]) -> None:
    """Load, run, print, save."""
    arguments = parse(argv)

    from accelerate import PartialState
    from tqdm import tqdm

    from sf_llava.data.loading import choose_workers
    from sf_llava.devices import choose_device, choose_precision
    from sf_llava.files import require_writable_file
    from sf_llava.measure.setup import choose_models, load_models
    from sf_llava.measure.store import EmbeddingStore
    from sf_llava.retrieval.captions import open_captions
    from sf_llava.retrieval.run import evaluate_retrieval

    started = time.perf_counter()
    arguments.workers = choose_workers(arguments.workers)
    require_writable_file(Path(arguments.output) / RESULTS)
    device = choose_device(arguments.device)
    arguments.dtype = choose_precision(arguments.dtype, device)
    names, teacher_name = choose_models(arguments.encoder, arguments.teacher)
    data = open_captions(arguments.data, arguments.images)
    if arguments.limit is not None:
        chosen = random.Random(arguments.seed).sample(range(len(data)), min(arguments.limit, len(data)))
        data = data.take(sorted(chosen))
    cli.hide_loading_bars()
    teacher, encoders = load_models(names, teacher_name, arguments.dtype, device, arguments.latents)
    is_main = PartialState().is_main_process
    with tqdm(total=len(data), desc="images", unit="image", disable=None if is_main else True, leave=False) as bar:
        result = evaluate_retrieval(
            data,
            teacher,
            encoders,
            EmbeddingStore(arguments.cache),
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            advance=lambda count: bar.update(count * PartialState().num_processes),
        )
    if is_main:
        settings = vars(arguments) | {"teacher": teacher_name, "encoder": names, "device": device.type}
        report(result, settings, time.perf_counter() - started)


def report(result: "RetrievalResult", settings: dict[str, Any], seconds: float) -> None:
    """Print the table and what a reader should know beside it; write the JSON file."""
    from accelerate import PartialState

    from sf_llava.files import write_json
    from sf_llava.report import environment, print_table

    values = result.to_dict()
    machine = environment(settings["device"]) | {"processes": PartialState().num_processes}
    size = f"{values['num_images']:,} images, {values['num_captions']:,} captions"
    title = f"{settings['teacher']} on {settings['data']}: {size}; recall in %, ± half the 95 % interval"
    print_table(title, *result.table())
    for comparison in values["comparisons"]:
        for direction in ("image_to_text", "text_to_image"):
            low, high = (100 * bound for bound in comparison[direction]["recall@1_difference_interval"])
            print(
                f"\n{comparison['encoder']} - {comparison['reference']}, {direction.replace('_', ' ')}: "
                f"{100 * comparison[direction]['recall@1_difference']:+.2f} points of recall at 1 "
                f"(95 % {low:+.2f} to {high:+.2f}, paired)",
                end="",
            )
    print()
    if not settings["encoder"]:
        print("the teacher alone: sf-llava bootstrap makes a student, --encoder DIR names one")
    for remark in values["remarks"]:
        print(f"note: {remark}")
    if result.corrupt:
        print(f"note: {len(result.corrupt)} unreadable images are left out, the first: {result.corrupt[0]}")
    if result.reading:
        decode, preprocess = result.reading["decode"], result.reading["preprocess"]
        print(f"one process decodes {decode:.0f} and preprocesses {preprocess:.0f} images/s")
    print(f"{settings['dtype']}, batch {settings['batch_size']} on {machine['device']}; {seconds:.0f} s in all")
    values |= {"settings": settings, "environment": machine, "seconds": round(seconds, 1)}
    path = Path(settings["output"]) / RESULTS
    write_json(path, values)
    print(f"written to {path}")
