"""A flag has one spelling and one meaning in all commands, and its old spellings say the new one."""

import argparse
import importlib

import pytest

from sf_llava import cli
from sf_llava.__main__ import COMMANDS

OWN = {
    "batch-size": {
        "scienceqa run",
        "benchmark ops",
        "benchmark encoder",
        "benchmark export",
        "segment train",
    },  # by the model; several at once; by the recipe
    "conversation": {"convert llava"},  # has no model whose own there is
    "device": {"reproduce", "swap-table"},  # train, on what accelerate chooses
    "dtype": {"reproduce", "publish", "recover", "convert llava"},  # those that can be trained in; those of files
    "seed": {"reproduce", "visualize"},  # the first one; which pictures
    "teacher": {"reproduce", "visualize"},  # what is trained for, or nothing
    "model": {"swap-table"},
}
"""Commands that say more about a shared flag than the others, and why; the bootstrap's configuration words its own."""


def module(name: str):
    return importlib.import_module(f"sf_llava.commands.{name.replace('-', '_')}")


class Asked(Exception):
    """A command has made its parser."""


@pytest.fixture(scope="module")
def flags() -> dict[str, dict[str, argparse.Action]]:
    """All flags by name, each by the commands that have it."""
    found: dict[str, dict[str, argparse.Action]] = {}

    def walk(parser: argparse.ArgumentParser, command: str) -> None:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, inner in action.choices.items():
                    walk(inner, f"{command} {name}")
            elif action.option_strings and action.help != argparse.SUPPRESS:
                found.setdefault(action.option_strings[-1], {})[command] = action

    def note(parser: argparse.ArgumentParser, argv: object = None) -> None:
        raise Asked(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", note)
        for name in COMMANDS:
            with pytest.raises(Asked) as asked:
                module(name).main(["run"])
            walk(asked.value.args[0], name)
    return found


def test_a_shared_flag_reads_the_same_everywhere(flags):
    for name in cli.FLAGS:
        own = {"bootstrap", *OWN.get(name, ())}
        others = {command: action for command, action in flags[f"--{name}"].items() if command not in own}
        assert others, name
        assert len({(action.help, action.metavar, action.type, action.nargs) for action in others.values()}) == 1, name


def test_outputs_are_directories_and_precisions_are_short(flags):
    assert {action.metavar for command, action in flags["--output"].items() if command != "bootstrap"} == {"DIR"}
    assert {action.metavar for action in flags["--json"].values()} == {"FILE"}
    for action in flags["--dtype"].values():
        assert set(action.choices) <= {"auto", *cli.PRECISIONS}
    for known in ("--seed", "--batch-size", "--limit", "--workers", "--threads", "--steps"):
        assert all(isinstance(action.type, cli.Number) and action.type.kind is int for action in flags[known].values())


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        ("chat", ["--load-in-4bit"], "--load-in-4bit is --bits 4 now"),
        ("scienceqa", ["run", "--load-in-8bit"], "--load-in-8bit is --bits 8 now"),
        ("benchmark", ["encoder", "--dtype", "bfloat16"], "argument --dtype: bfloat16 is bf16 now"),
        ("convert", ["llava", "in", "out", "--dtype", "float16"], "argument --dtype: float16 is fp16 now"),
        ("zero-shot", ["--output", "runs/a.json"], "is written now, not 'runs/a.json': write runs/a"),
        ("retrieval", ["--output", "b.json"], "results.json is written now, not 'b.json': write b"),
    ],
)  # fmt: skip
def test_an_old_spelling_says_the_new_one(command, arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        module(command).main(arguments)
    assert ended.value.code == 2 and capsys.readouterr().err.rstrip().endswith(said)
    assert not list(tmp_path.iterdir())


def test_old_spellings_are_not_in_the_help(capsys):
    with pytest.raises(SystemExit):
        module("chat").main(["--help"])
    assert "--bits" in (shown := capsys.readouterr().out) and "load-in" not in shown


def test_a_step_of_the_benchmark_has_one_batch_size(capsys):
    with pytest.raises(SystemExit):
        module("benchmark").main(["llava", "--batch-size", "1", "8"])
    assert "unrecognized arguments: 8" in capsys.readouterr().err
