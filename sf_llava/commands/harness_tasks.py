"""Write task files for lmms-eval from questions, offline.

    sf-llava harness-tasks mini:500 tasks
        500 questions of the drawn world; then, where lmms-eval is installed beside this package,
        python -m lmms_eval --model sf_llava --model_args pretrained=mini,encoder=runs/quickstart \\
            --include_path tasks --tasks mini_500 --batch_size 64
    sf-llava harness-tasks mini-relations:500 tasks
        where one thing is from another, as GQA asks; mini-counting:500 how many there are
    sf-llava harness-tasks mini-exists:500 tasks --yes-no
        is there a red circle? in POPE's words and with its scores (the mini LLaVA has no word for yes: ask a large one)
    sf-llava harness-tasks ScienceQA/data/scienceqa tasks --name my_scienceqa
        a folder or parquet files of yours

Expected: one line with the task's name and the number of its questions.
"""

import argparse

from sf_llava import cli


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="folder as published, parquet:PATH, hub:NAME, mini[:N] ...")
    parser.add_argument("output", metavar="OUT", help="folder of task folders (lmms-eval: --include_path OUT)")
    parser.add_argument("--split", default="test", help="split (%(default)s)")
    parser.add_argument("--name", help="of the task (default: DATA with underscores)")
    parser.add_argument("--yes-no", action="store_true", help="ask for the word yes or no, not for an option's letter")
    cli.add_flags(parser, "max-new-tokens")
    return cli.parse(parser, argv)


def main(argv: list[str]) -> None:
    """Write one task."""
    arguments = parse(argv)
    from sf_llava.harness.tasks import write_task

    options = {name: value for name, value in vars(arguments).items() if name not in ("data", "output")}
    name, count = write_task(arguments.data, arguments.output, **options)
    print(f"{arguments.output}/{name}: {count:,} questions (--include_path {arguments.output} --tasks {name})")
