"""eval/scienceqa.py: run, resume, several processes, controls, score, compare."""

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_llava import CHAT_TEMPLATE, make_encoder, make_llava, make_tokenizer
from tiny_scienceqa import write_scienceqa
from transformers import LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sf_llava.commands import scienceqa, scienceqa_run
from sf_llava.llava import restore, swap
from sf_llava.llava.towers import SWAPPED, Tower
from sf_llava.scienceqa.data import Problem, ScienceQA, open_scienceqa
from sf_llava.scienceqa.run import Answerer, Generation, answer_all, make_batches

SCRIPT = Path(__file__).parents[2] / "eval" / "scienceqa.py"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny LLaVA, an encoder and a tiny ScienceQA on disk."""
    root = tmp_path_factory.mktemp("scienceqa")
    images = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    make_llava().save_pretrained(root / "llava")
    LlavaProcessor(
        images,
        make_tokenizer(),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(root / "llava")
    make_encoder(16).save_pretrained(root / "encoder")
    write_scienceqa(root / "data")
    return root


def command(files, output, *more):
    return [
        *("run", "--model", str(files / "llava"), "--encoder", str(files / "encoder"), "--data", str(files / "data")),
        *("--output", str(output), "--device", "cpu", "--batch-size", "3", "--max-new-tokens", "4", *more),
    ]


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    """One whole run in one process, with every control."""
    output = tmp_path_factory.mktemp("finished")
    scienceqa.main(command(files, output, "--controls", "blind", "shuffled", "grey"))
    return output


@pytest.fixture
def answerer(llava, processor):
    return Answerer(llava, processor, Generation(max_new_tokens=4))


def test_both_towers_and_every_control_are_answered_and_scored(finished):
    results = json.loads((finished / "results.json").read_text())
    rows = ["original", "blind", "original-shuffled", "original-grey", "swapped", "swapped-shuffled", "swapped-grey"]
    assert list(results["scores"]) == rows
    assert [score["total"] for score in results["scores"].values()] == [11, 6, 6, 6, 11, 6, 6]
    comparison = results["comparisons"]["swapped"]
    assert comparison["all"]["total"] == 11 and comparison["image"]["total"] == 6
    assert results["image_share"].keys() == {"original", "swapped"}
    lines = [json.loads(line) for line in (finished / "swapped" / "answers.jsonl").read_text().splitlines()]
    assert [line["question_id"] for line in lines] == [str(number) for number in range(100, 111)]
    assert lines[0]["prompt"].startswith("USER: <image>\nwhat is ?") and "<image>" not in lines[1]["prompt"]
    blind = [json.loads(line) for line in (finished / "blind" / "answers.jsonl").read_text().splitlines()]
    assert len(blind) == 6 and not any("<image>" in line["prompt"] for line in blind)


def test_the_swapped_tower_runs_once_more_with_positions_and_bias(files, finished, tmp_path):
    scienceqa.main(command(files, tmp_path, "--towers", "swapped", "--positions-and-bias"))
    scores = json.loads((tmp_path / "results.json").read_text())["scores"]
    assert list(scores) == ["swapped", "swapped-placed"] and scores["swapped-placed"]["total"] == 11
    lines = [(path / "answers.jsonl").read_text() for path in (tmp_path / "swapped", finished / "swapped")]
    assert lines[0] == lines[1]
    placed = (tmp_path / "swapped-placed" / "answers.jsonl").read_text().splitlines()
    assert placed[1::2] == lines[0].splitlines()[1::2] and len(placed) == 11  # text alone is answered as ever
    with pytest.raises(ValueError, match="--positions-and-bias is for towers with fewer tokens"):
        scienceqa.main(command(files, tmp_path, "--towers", "original", "--positions-and-bias"))


def test_a_directorys_name_switches_nothing_on(files, finished, tmp_path):
    for name in ("student-placed", "pooled"):
        shutil.copytree(files / "encoder", tmp_path / name)
    names = [str(tmp_path / name) for name in ("student-placed", "pooled")]
    arguments = command(files, tmp_path / "out", "--towers", "swapped")
    at = arguments.index("--encoder")
    scienceqa.main([*arguments[: at + 1], *names, *arguments[at + 2 :]])
    plain = (finished / "swapped" / "answers.jsonl").read_bytes()
    for row in ("swapped-student-placed", "swapped-pooled"):
        assert (tmp_path / "out" / row / "answers.jsonl").read_bytes() == plain
        assert json.loads((tmp_path / "out" / row / "run.json").read_text())["placed"] is False


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["a/x", "b/x"], []),
        (["x", "x-placed"], ["--positions-and-bias"]),
        (["x-grey", "x"], ["--controls", "grey"]),
    ],
)
def test_two_rows_of_one_name_are_refused_before_anything_is_loaded(names, options):
    arguments = scienceqa.parse(["run", "--data", "nowhere", "--encoder", *names, *options])
    with pytest.raises(ValueError, match=r"would both be called swapped-x"):
        scienceqa_run.choose_towers(arguments)


def test_a_tower_is_a_value_that_says_what_it_is():
    assert Tower(SWAPPED, Path("runs/original"), positions_and_bias=True).where == "runs/original"
    for wrong in (dict(kind="other"), dict(kind=SWAPPED), dict(kind="original", encoder=Path("x"))):
        with pytest.raises(ValueError, match=r"unknown tower|an encoder is for a swapped tower"):
            Tower(**wrong)
    for wrong in (dict(positions_and_bias=True), dict(num_tokens=4)):
        with pytest.raises(ValueError, match="the original tower has all its tokens in their places"):
            Tower("original", **wrong)
    assert [Tower("pooled", num_tokens=count).where for count in (None, 4)] == ["pooled", "pooled-4"]


def test_fewer_of_its_own_tokens_are_rows_with_their_costs(files, tmp_path):
    kinds = ("random", "divprune", "visionzip")
    scienceqa.main(command(files, tmp_path, "--towers", *kinds, "--tokens", "4", "9", "--positions-and-bias"))
    results = json.loads((tmp_path / "results.json").read_text())
    names = [f"{kind}-{count}{placed}" for kind in kinds for count in (4, 9) for placed in ("", "-placed")]
    assert list(results["scores"]) == names
    assert all(score["total"] == 11 for score in results["scores"].values())
    assert list(results["costs"]) == names[::2]
    assert [one["tokens"] for one in results["costs"].values()] == [4, 9] * 3
    assert results["costs"]["random-4"]["prefill"] < results["costs"]["random-9"]["prefill"]
    with pytest.raises(ValueError, match="--tokens is for towers with fewer of their own tokens: --towers pooled"):
        scienceqa.main(command(files, tmp_path / "other", "--tokens", "4"))


def test_questions_that_say_image_are_asked(answerer, tmp_path):
    texts = {"a": "<image> what ?", "b": "what is <image> ?", "c": "what ? </s>"}
    problems = [
        Problem(id=name, question=text, choices=("a", "b"), answer=0, has_image=name == "a")
        for name, text in texts.items()
    ]
    data = ScienceQA("x", "test", problems, lambda problem: Image.new("RGB", (40, 40), "red"))
    answers = answer_all(answerer, data, tmp_path, {}, batch_size=3)
    assert answers.keys() == texts.keys()
    prompts = {
        line["question_id"]: line["prompt"]
        for line in map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines())
    }
    assert prompts["a"].count("<image>") == 1 and "<image>" not in prompts["b"] and "</s>" not in prompts["c"]


def test_text_only_answers_do_not_depend_on_the_tower(finished):
    original, swapped = (
        [json.loads(line) for line in (finished / tower / "answers.jsonl").read_text().splitlines()]
        for tower in ("original", "swapped")
    )
    assert [line["text"] for line in original[1::2]] == [line["text"] for line in swapped[1::2]]


def test_what_is_asked_without_a_picture_is_asked_through_one_tower_alone(files, tmp_path, finished, monkeypatch):
    asked = []
    answer = Answerer.answer
    monkeypatch.setattr(
        Answerer, "answer", lambda self, prompts, *rest: asked.extend(prompts) or answer(self, prompts, *rest)
    )
    scienceqa.main(command(files, tmp_path))
    assert sum("<image>" in prompt for prompt in asked) == 2 * 6 and len(asked) == 2 * 6 + 5
    shutil.rmtree(tmp_path / "swapped")  # as if the run had been killed between the towers
    asked.clear()
    scienceqa.main(command(files, tmp_path))
    assert all("<image>" in prompt for prompt in asked) and len(asked) == 6
    for tower in ("original", "swapped"):
        ours, theirs = (path / tower / "answers.jsonl" for path in (tmp_path, finished))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_batch_is_of_one_kind_and_of_like_length():
    draws = random.Random(0)
    kinds = [("what", False), ("where", True), ("why", True)]
    problems = [
        Problem(id=str(number), question=question, choices=("a", "b"), answer=0, has_image=has_image)
        for number, (question, has_image) in enumerate(draws.choices(kinds, k=50))
    ]
    lengths = {problem.id: draws.randrange(20, 30) for problem in problems}
    batches = list(make_batches(problems, 8, lengths))
    assert sorted(problem.id for batch in batches for problem in batch) == sorted(lengths)
    assert all(len({problem.has_image for problem in batch}) == 1 for batch in batches)
    in_order = [(problem.has_image, lengths[problem.id], problem.question) for batch in batches for problem in batch]
    assert in_order == sorted(in_order)
    assert sum(len(batch) < 8 for batch in batches) <= 2


def test_two_processes_give_the_same_file_as_one(files, finished, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, str(SCRIPT), *command(files, tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for tower in ("original", "swapped"):
        ours, theirs = (path / tower / "answers.jsonl" for path in (tmp_path, finished))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_killed_run_continues_without_repeating_or_losing_an_answer(files, answerer, tmp_path, monkeypatch):
    data = open_scienceqa(str(files / "data"))
    whole = answer_all(answerer, data, tmp_path / "whole", {}, batch_size=3)
    asked = []

    def die(problem, text):
        asked.append(problem.id)
        if len(asked) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer_all(answerer, data, tmp_path / "killed", {}, batch_size=3, progress=die)
    part = tmp_path / "killed" / "answers.0.part.jsonl"
    lines = part.read_text().splitlines(keepends=True)
    part.write_text("".join(lines[:-1]) + lines[-1][:30])  # as a kill while it was written leaves it
    batches = []
    answer = Answerer.answer
    monkeypatch.setattr(Answerer, "answer", lambda self, *rest: batches.append(rest) or answer(self, *rest))
    more = []
    again = answer_all(
        answerer, data, tmp_path / "killed", {}, batch_size=3, progress=lambda problem, text: more.append(problem.id)
    )
    assert again == whole and sorted(more) == sorted(problem.id for problem in data.problems)  # the bar counts all
    assert len(batches) == 3  # of four; the one torn apart is generated once more as a whole
    files_of = [(tmp_path / name / "answers.jsonl").read_bytes() for name in ("whole", "killed")]
    assert files_of[0] == files_of[1]
    assert answer_all(answerer, data, tmp_path / "killed", {}, batch_size=3) == whole and len(batches) == 3
    assert not list((tmp_path / "killed").glob("*.part.jsonl"))


def test_a_question_may_hold_any_line_separator_of_unicode(files, answerer, tmp_path):
    data = open_scienceqa(str(files / "data"))
    first = dataclasses.replace(data.problems[0], hint="one\u2028two\u0085three")
    data = dataclasses.replace(data, problems=[first, *data.problems[1:]])
    assert answer_all(answerer, data, tmp_path, {}).keys() == {problem.id for problem in data.problems}
    assert answer_all(answerer, data, tmp_path, {}).keys() == {problem.id for problem in data.problems}


def test_answers_of_another_llm_are_refused(files, tmp_path):
    shutil.copytree(files / "llava", tmp_path / "llava")
    arguments = [*command(files, tmp_path / "out"), "--model", str(tmp_path / "llava"), "--controls", "blind"]
    scienceqa.main(arguments)
    other = make_llava()
    torch.nn.init.zeros_(other.lm_head.weight)
    other.save_pretrained(tmp_path / "llava")
    with pytest.raises(ValueError, match=r"holds answers of other settings \(llm_weights was"):
        scienceqa.main(arguments)


def test_a_truncated_llava_is_one_clear_sentence(files, tmp_path):
    shutil.copytree(files / "llava", tmp_path / "llava")
    weights = tmp_path / "llava" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"llava/model.safetensors could not be read .*truncated"):
        scienceqa.main([*command(files, tmp_path / "out"), "--model", str(tmp_path / "llava")])


def test_a_saved_llava_with_our_tower_is_asked_through_it_alone(files, llava, processor, tmp_path):
    swapped = swap(llava, processor, files / "encoder")
    llava.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    restore(swapped)
    arguments = [*command(files, tmp_path / "out"), "--model", str(tmp_path / "llava")]
    with pytest.raises(ValueError, match="has a SparseFormer for its own tower"):
        scienceqa.main(arguments)
    scienceqa.main([*arguments, "--towers", "original", "--output", str(tmp_path / "alone")])
    assert json.loads((tmp_path / "alone" / "original" / "score.json").read_text())["missing"] == 0


@pytest.mark.parametrize("flag", ["--limit", "--batch-size", "--max-new-tokens", "--temperature", "--seed"])
@pytest.mark.parametrize("number", ["-1", "nan", "inf", "1e999", "x", "", "9" * 40])
def test_numbers_out_of_range_are_usage_errors(flag, number, files, tmp_path, capsys):
    with pytest.raises(SystemExit):
        scienceqa.main([*command(files, tmp_path), flag, number])
    assert f"argument {flag}: expected a" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--limit", "0"], ["--batch-size", "0"], ["--temperature", "1e-300"]])
def test_zeros_and_all_but_zeros_are_usage_errors(flags, files, tmp_path, capsys):
    with pytest.raises(SystemExit):
        scienceqa.main([*command(files, tmp_path), *flags])
    assert f"argument {flags[0]}: " in capsys.readouterr().err


def test_what_is_no_score_is_not_taken_for_one(tmp_path):
    (tmp_path / "a.json").write_text('{"answers": {"a": 1}}')
    with pytest.raises(ValueError, match=r"a.json is no score of this program"):
        scienceqa.main(["compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")])


def test_answers_of_other_settings_are_refused(files, answerer, tmp_path):
    data = open_scienceqa(str(files / "data"))
    answer_all(answerer, data, tmp_path, {"model": "a"}, batch_size=8)
    with pytest.raises(ValueError, match=r"holds answers of other settings \(model was 'a', now 'b'\): name another"):
        answer_all(answerer, data, tmp_path, {"model": "b"}, batch_size=8)


def test_a_missing_picture_names_its_problem(files, answerer, tmp_path):
    data = open_scienceqa(str(write_scienceqa(tmp_path / "data")))
    (tmp_path / "data" / "images" / "test" / "104" / "image.png").unlink()
    with pytest.raises(ValueError, match=r"image of problem 104: .* No such file"):
        answer_all(answerer, data, tmp_path / "out", {})


def test_sampling_is_repeatable(files, llava, processor, tmp_path):
    data = open_scienceqa(str(files / "data"))
    sampler = Answerer(llava, processor, Generation(max_new_tokens=6, temperature=1.0, seed=3))
    assert answer_all(sampler, data, tmp_path / "a", {}) == answer_all(sampler, data, tmp_path / "b", {})


def test_score_and_compare_read_what_run_wrote(files, finished, tmp_path, capsys):
    data = ["--problems", str(files / "data" / "problems.json"), "--splits", str(files / "data" / "pid_splits.json")]
    answers = str(finished / "original" / "answers.jsonl")
    scienceqa.main(
        ["score", *data, "--split", "test", "--predictions", answers, "--json", str(tmp_path / "score.json")]
    )
    score = json.loads((tmp_path / "score.json").read_text())
    assert score == json.loads((finished / "original" / "score.json").read_text())
    keys = "accuracy image_accuracy total correct image_total image_correct unparsed missing interval breakdown"
    assert set(keys.split()) <= score.keys()
    assert list(score["breakdown"]) == ["NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12"]
    scienceqa.main(
        ["compare", answers, str(finished / "swapped" / "score.json"), *data, "--json", str(tmp_path / "c.json")]
    )
    assert json.loads((tmp_path / "c.json").read_text())["all"]["total"] == 11
    assert "McNemar's p" in capsys.readouterr().out
    with pytest.raises(ValueError, match="name the questions: --problems FILE --splits FILE, or --data NAME"):
        scienceqa.main(["compare", answers, answers])
    part = tmp_path / "part.jsonl"
    part.write_text("".join((finished / "original" / "answers.jsonl").read_text().splitlines(keepends=True)[:4]))
    scienceqa.main(["compare", str(part), str(part), *data])
    assert "\n7 of 11 questions, which neither answered, are left out\n" in capsys.readouterr().out
    scienceqa.main(["compare", str(part), answers, *data])
    assert "\nA left 7 and B 0 that the other answered; these count as wrong\n" in capsys.readouterr().out


def test_help_is_fast():
    code = f"import runpy, sys; runpy.run_path({str(SCRIPT)!r}); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
