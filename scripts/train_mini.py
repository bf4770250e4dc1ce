"""Make the small models on a CPU: CLIP and SigLIP on the drawn world, CLIP on CIFAR-10, mini LLaVA, mini student.

    python scripts/train_mini.py clip --threads 2
        about a quarter of an hour on two free cores; over 97 % zero-shot on both domains of the drawn world
    python scripts/train_mini.py siglip --threads 1
        the same pictures and captions by SigLIP's sigmoid loss; twenty minutes of one free core without AMX
    python scripts/train_mini.py vit
        a classifier of the drawn world in timm's form, for the paper's AugReg rows; 53 minutes of a busy core
    python scripts/train_mini.py cifar10 --train train.parquet --validation validation.parquet --output runs/cifar10
        about an hour on one core; about 75 % zero-shot on the validation photographs
    python scripts/train_mini.py photo --captions flickr8k.parquet --labelled parquet:imagenette.parquet --guide
        a CLIP of photographs (160 px, 100 patches, 12 blocks), on captions and class names; hours on a CPU
    python scripts/train_mini.py photo-questions --captions train=flickr8k.parquet test=flickr8k_val.parquet
        questions with four choices about photographs, in ScienceQA's layout
    python scripts/train_mini.py photo-llava --clip runs/mini_photo/clip --llm DIR --data runs/mini_photo-questions
        a LLaVA of that CLIP and a small language model that someone else trained; hours on a CPU
    python scripts/train_mini.py llava
        the shipped LLaVA around the shipped CLIP, on questions in ScienceQA's form; about two hours on one free core
    python scripts/train_mini.py tiled
        a LLaVA-NeXT of 2 x 2 tiles from the shipped LLaVA, on pictures of four diagrams (mini-mosaics)
    python scripts/train_mini.py student --run runs/quickstart
        the shipped student: the encoder of make quickstart, rounded to four significant bits, so that it zips well

All but the last write OUTPUT/clip, /siglip, /vit or /llava (an ordinary model directory, with tokenizer and processor),
OUTPUT/results.json, OUTPUT/log.jsonl and OUTPUT/checkpoint.pt. The same command continues a run that was interrupted,
from the checkpoint before the last where the last one is damaged.
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sf_llava import cli

BATCH = cli.Number(int, 1, 4096)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    clip = kinds.add_parser("clip", help="the shipped teacher, trained on pictures drawn on the fly")
    siglip = kinds.add_parser("siglip", help="the shipped teacher without CLS, trained on the same by the sigmoid loss")
    vit = kinds.add_parser("vit", help="a ViT classifier of drawn pictures of one shape each, for timm")
    cifar10 = kinds.add_parser("cifar10", help="a teacher of photographs, trained from scratch on CIFAR-10")
    cifar10.add_argument("--train", required=True, metavar="FILE.parquet", help="labelled training images")
    cifar10.add_argument("--validation", metavar="FILE.parquet", help="labelled images to measure accuracy on")
    photo = kinds.add_parser("photo", help="a teacher of photographs, on captions, class names and a guide's features")
    photo.add_argument("--captions", nargs="+", default=[], metavar="NAME", help="photographs with captions")
    photo.add_argument("--labelled", nargs="+", default=[], metavar="NAME", help="photographs with classes")
    photo.add_argument("--classes", metavar="NAME", help="what the classes are called: imagenette, FILE.json ...")
    photo.add_argument(
        "--images", nargs="+", default=[], metavar="NAME", help="photographs without text, for the guide"
    )
    photo.add_argument("--validation-captions", metavar="NAME", help="to measure recall on, both ways")
    photo.add_argument("--validation-labelled", metavar="NAME", help="to measure zero-shot accuracy on")
    photo.add_argument("--guide", action="store_true", help="let a frozen EfficientNet-Lite0 help (two more packages)")
    photo.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default auto)")
    photo.add_argument("--dtype", choices=("auto", "fp32", "bf16"), default="auto", help="of products (default auto)")
    asking = kinds.add_parser("photo-questions", help="questions with choices about photographs")
    for flag, what in (("captions", "captions"), ("labelled", "classes"), ("asked", "questions and answers")):
        asking.add_argument(
            f"--{flag}", nargs="+", default=[], type=split_and_name, metavar="SPLIT=NAME", help=f"those with {what}"
        )
    asking.add_argument("--classes", metavar="NAME", help="what the classes are called: imagenette, FILE.json ...")
    asking.add_argument("--output", type=Path, default=Path("runs/mini_photo-questions"), help="(default %(default)s)")
    asking.add_argument("--seed", type=cli.SEED, default=0, help="by which choices are drawn (default 0)")
    asking.add_argument("--traceback", action="store_true", help="show where an error came from")
    talking = kinds.add_parser("photo-llava", help="a LLaVA of photographs around a language model that is there")
    talking.add_argument("--clip", type=Path, required=True, metavar="DIR", help="the CLIP of photographs")
    talking.add_argument("--llm", required=True, metavar="DIR_OR_NAME", help="a Llama; or a directory with a GGUF file")
    talking.add_argument("--data", required=True, metavar="DIR", help="what photo-questions wrote")
    talking.add_argument("--first", type=cli.POSITIVE_INT, metavar="STEPS", help="of the projector (default 60)")
    talking.add_argument("--second", type=cli.POSITIVE_INT, metavar="STEPS", help="of projector and LLM (default 600)")
    talking.add_argument("--output", type=Path, default=Path("runs/mini_photo-llava"), help="(default %(default)s)")
    talking.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default auto)")
    talking.add_argument("--dtype", choices=("auto", "fp32", "bf16"), default="auto", help="of products (default auto)")
    talking.add_argument("--threads", type=cli.THREADS, default=1, help="CPU threads of torch (default 1)")
    talking.add_argument("--traceback", action="store_true", help="show where an error came from")
    llava = kinds.add_parser("llava", help="the shipped mini LLaVA: tiny Llama, linear projector, frozen mini CLIP")
    tiled = kinds.add_parser("tiled", help="a mini LLaVA-NeXT of 2 x 2 tiles, from the shipped mini LLaVA")
    for sub, steps, batch_size in (
        (clip, 1500, 96),
        (siglip, 1500, 96),
        (vit, 500, 96),
        (cifar10, 2400, 256),
        (photo, 2400, 128),
        (llava, 8000, 12),
        (tiled, 2000, 6),
    ):
        output = f"runs/mini_{sub.prog.split()[-1]}"
        sub.add_argument("--output", type=Path, default=Path(output), help=f"run directory (default {output})")
        sub.add_argument("--seed", type=cli.SEED, default=0, help="initial weights, captions, augmentation (default 0)")
        sub.add_argument("--steps", type=cli.POSITIVE_INT, default=steps, help=f"optimizer steps (default {steps})")
        sub.add_argument("--batch-size", type=BATCH, default=batch_size, help=f"images a step (default {batch_size})")
        sub.add_argument("--threads", type=cli.THREADS, default=1, help="CPU threads of torch (default 1)")
        sub.add_argument("--traceback", action="store_true", help="show where an error came from")
    student = kinds.add_parser("student", help="the shipped student, from a run of the bootstrap")
    student.add_argument("--run", default="runs/quickstart", metavar="DIR", help="(default %(default)s)")
    student.add_argument("--output", type=Path, default=Path("runs/mini_student"), help="(default %(default)s)")
    student.add_argument("--traceback", action="store_true", help="show where an error came from")
    return cli.parse(parser, argv)


def main(argv: list[str]) -> None:
    args = parse(argv)
    if args.kind == "student":
        from sf_llava.mini.training.student import write_student

        print(f"saved in {write_student(args.run, args.output)}")
        return

    if args.kind == "photo-questions":
        ask_about_photographs(args)
        return

    from sf_llava.files import locked

    go_on = "the same command goes on from its newest checkpoint"
    with locked(args.output), cli.when_stopped(f"what {args.output} holds is whole; {go_on}"):
        train(args)


def train(args: argparse.Namespace) -> None:
    """Train what is asked for, and say where it is."""
    import torch

    torch.set_num_threads(args.threads)
    if args.kind == "photo-llava":
        train_photo_llava(args)
        return
    numbers = {"steps": args.steps, "batch_size": args.batch_size, "seed": args.seed}
    if args.kind in ("clip", "siglip"):
        from sf_llava.mini.training import clip_teacher

        kind = clip_teacher.SIGLIP if args.kind == "siglip" else clip_teacher.CLIP
        recipe = clip_teacher.SIGLIP_RECIPE if args.kind == "siglip" else clip_teacher.RECIPE
        results = clip_teacher.train_teacher(kind, replace(recipe, **numbers), args.output)
    elif args.kind == "vit":
        from sf_llava.mini.training import vit_classifier

        results = vit_classifier.train_vit(replace(vit_classifier.RECIPE, **numbers), args.output)
    elif args.kind == "llava":
        from sf_llava.llava.conversations import CONVERSATIONS, chat_template
        from sf_llava.mini.training import llava_training

        results = llava_training.train_llava(
            replace(llava_training.RECIPE, **numbers),
            args.output,
            chat_template("vicuna_v1"),
            CONVERSATIONS["vicuna_v1"],
            measure_llava,
        )
    elif args.kind == "tiled":
        from sf_llava.mini.questions.mosaics import open_mosaics
        from sf_llava.mini.training import tiled_training

        recipe = replace(tiled_training.RECIPE, **numbers)
        results = tiled_training.train_tiled(recipe, args.output, partial(measure_llava, questions=open_mosaics))
    elif args.kind == "photo":
        from sf_llava.data import open_images
        from sf_llava.devices import choose_device, choose_precision
        from sf_llava.mini.training import photo_teacher, photographs
        from sf_llava.retrieval.captions import open_captions

        found = photographs.gather(
            [open_captions(name) for name in args.captions],
            [open_named(name, args.classes) for name in args.labelled],
            [open_images(name) for name in args.images],
        )
        held_out = photo_teacher.HeldOut(
            open_named(args.validation_labelled, args.classes) if args.validation_labelled else None,
            open_captions(args.validation_captions) if args.validation_captions else None,
        )
        device = choose_device(args.device)
        bf16 = choose_precision(args.dtype, device) == "bf16"
        recipe = replace(photo_teacher.RECIPE, **numbers)
        results = photo_teacher.train_photographs(
            found, held_out, recipe, args.output, args.guide, device=device, bf16=bf16
        )
    else:
        from sf_llava.data import open_labelled
        from sf_llava.mini.training import clip_cifar10

        training = open_labelled(f"parquet:{args.train}")
        validation = open_labelled(f"parquet:{args.validation}") if args.validation else None
        recipe = replace(clip_cifar10.RECIPE, **numbers)
        results = clip_cifar10.train_on_labelled(training, validation, recipe, args.output)
    name = {"cifar10": "clip", "photo": "clip", "tiled": "llava"}.get(args.kind, args.kind)
    print(f"saved in {args.output / name}; {results}")


def split_and_name(text: str) -> tuple[str, str]:
    """Read SPLIT=NAME."""
    split, _, name = text.partition("=")
    if not split.isidentifier() or not name:
        raise argparse.ArgumentTypeError(f"{text!r}: expected SPLIT=NAME, such as train=flickr8k.parquet")
    return split, name


def open_named(name: str, classes: str | None) -> Any:
    """Open labelled pictures, their classes called as asked for."""
    from sf_llava.data import LabelledImages, open_labelled
    from sf_llava.zero_shot.class_names import class_set

    images = open_labelled(name)
    if classes is None:
        return images
    names = class_set(classes).class_names
    if len(names) != len(images.class_names):
        raise ValueError(f"{name} has {len(images.class_names)} classes, but {classes} names {len(names)}")
    return LabelledImages(images.source, images.labels, list(names))


def ask_about_photographs(args: argparse.Namespace) -> None:
    """Write questions about photographs."""
    from sf_llava.mini.training import photo_questions
    from sf_llava.retrieval.captions import open_captions

    sets = photo_questions.gather(
        {split: open_captions(name) for split, name in args.captions},
        {split: open_named(name, args.classes) for split, name in args.labelled},
        {split: photo_questions.open_asked(name) for split, name in args.asked},
        args.seed,
    )
    if not sets:
        raise ValueError("nothing to ask about: give photographs with --captions, --labelled or --asked")
    counts = photo_questions.write_questions(sets, args.output, args.seed)
    print(f"saved in {args.output}; " + ", ".join(f"{split}: {count:,}" for split, count in counts.items()))


def train_photo_llava(args: argparse.Namespace) -> None:
    """Teach a language model to see photographs."""
    from sf_llava.devices import choose_device, choose_precision
    from sf_llava.mini.training import photo_llava
    from sf_llava.scienceqa.data import open_scienceqa

    device = choose_device(args.device)
    bf16 = choose_precision(args.dtype, device) == "bf16"
    first, second = (
        replace(recipe, bf16=bf16, steps=steps or recipe.steps)
        for recipe, steps in ((photo_llava.FIRST, args.first), (photo_llava.SECOND, args.second))
    )
    settings = photo_llava.PhotoLlava(args.clip, args.llm, args.output, first, second, on_cpu=device.type == "cpu")
    results = photo_llava.train_photo_llava(settings, open_scienceqa(args.data, "train"))
    print(f"saved in {args.output / 'llava'}; {results}")


def measure_llava(model: Any, processor: Any, split: str, questions: Any = None) -> dict[str, float]:
    """Accuracy of generated answers on image and text questions and by kind; on the test split also without image."""
    from sf_llava.mini.questions.sets import open_questions
    from sf_llava.scienceqa.problems import ask, kind_of
    from sf_llava.scienceqa.run import Answerer, Generation, make_batches
    from sf_llava.scienceqa.scoring import parse_answer

    data = (questions or open_questions)(split, 6000 if split == "test" else 400)
    answerer = Answerer(model, processor, Generation(max_new_tokens=64))
    right: dict[str, list[bool]] = {}
    model.eval()
    for blind in (False, True) if split == "test" else (False,):
        problems = [problem for problem in data.problems if problem.has_image or not blind]
        for batch in make_batches(problems, 60, {p.id: len(ask(p)) for p in problems}):
            images = [[data.load_image(p)] if p.has_image and not blind else [] for p in batch]
            prompts = [answerer.prompt(p, bool(image)) for p, image in zip(batch, images, strict=True)]
            for p, text in zip(batch, answerer.answer(prompts, images, 0), strict=True):
                groups = ("blind",) if blind else ("image" if p.has_image else "text", kind_of(p.id))
                for group in groups:
                    right.setdefault(group, []).append(parse_answer(text, len(p.choices)) == p.answer)
    model.train()
    return {group: sum(values) / len(values) for group, values in sorted(right.items())}


if __name__ == "__main__":
    cli.run(main)
