"""ScienceQA answers on disk: whose they are, what damages them, and who may write."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_llava import make_llava
from tiny_scienceqa import write_scienceqa

from sf_llava.files import locked
from sf_llava.scienceqa.data import open_scienceqa
from sf_llava.scienceqa.run import Answerer, Generation, answer_all, digest_llm

SCRIPT = Path(__file__).parents[2] / "eval" / "scienceqa.py"


@pytest.fixture
def answerer(llava, processor):
    return Answerer(llava, processor, Generation(max_new_tokens=4))


@pytest.fixture
def data(tmp_path):
    return open_scienceqa(str(write_scienceqa(tmp_path / "data")))


def change(data, place, **changes):
    """The data with one problem changed."""
    problems = list(data.problems)
    problems[place] = dataclasses.replace(problems[place], **changes)
    return dataclasses.replace(data, problems=problems)


BAD_LINES = [b"hello", b"\0" * 40, b'{"question_id": "100"}', b"\xff\xfe", b"[" * 99_999, b"", b"7"]


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_bad_line_loses_no_other_answer(bad, answerer, data, tmp_path, monkeypatch):
    whole = answer_all(answerer, data, tmp_path / "whole", {}, batch_size=1)
    lines = (tmp_path / "whole" / "answers.jsonl").read_bytes().splitlines()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_bytes((tmp_path / "whole" / "run.json").read_bytes())
    part = tmp_path / "torn" / "answers.0.part.jsonl"
    part.write_bytes(b"\n".join([*lines[:4], bad, *lines[5:], lines[4][:20]]))
    batches = []
    answer = Answerer.answer
    monkeypatch.setattr(Answerer, "answer", lambda self, *rest: batches.append(rest) or answer(self, *rest))
    with pytest.warns(UserWarning, match=r"1 line\(s\) of .*answers.0.part.jsonl are damaged \(the first: line 5\)"):
        assert answer_all(answerer, data, tmp_path / "torn", {}, batch_size=1) == whole
    assert len(batches) == 1
    assert [(tmp_path / name / "answers.jsonl").read_bytes() for name in ("whole", "torn")] == [
        b"".join(line + b"\n" for line in lines)
    ] * 2
    assert sorted(os.listdir(tmp_path / "torn")) == ["answers.jsonl", "run.json"]


@pytest.mark.parametrize(
    "changes", [{"question": "what is blue ?"}, {"hint": "the mat is blue"}, {"choices": ("dog", "cat")}, {"id": "9"}]
)
def test_kept_answers_to_other_questions_are_refused(changes, answerer, data, tmp_path):
    answer_all(answerer, data, tmp_path / "out", {})
    with pytest.raises(ValueError, match=r"holds answers of other settings \(questions was"):
        answer_all(answerer, change(data, 0, **changes), tmp_path / "out", {})


def test_kept_answers_through_another_chat_template_are_refused(answerer, data, tmp_path):
    answer_all(answerer, data, tmp_path / "out", {})
    answerer.processor.chat_template = answerer.processor.chat_template.replace("USER", "HUMAN")
    with pytest.raises(ValueError, match=r"holds answers of other settings \(questions was"):
        answer_all(answerer, data, tmp_path / "out", {})


def test_answers_of_which_nobody_knows_the_run_are_refused(answerer, data, tmp_path):
    answer_all(answerer, data, tmp_path / "out", {})
    (tmp_path / "out" / "run.json").write_text("[]")
    with pytest.raises(ValueError, match=r"run.json is no record of a run"):
        answer_all(answerer, data, tmp_path / "out", {})
    (tmp_path / "out" / "run.json").unlink()
    with pytest.raises(ValueError, match=r"answers.jsonl holds answers, but no run.json beside it"):
        answer_all(answerer, data, tmp_path / "out", {})


@pytest.mark.parametrize("part", ["model.multi_modal_projector.linear_2", "model.language_model.norm", "lm_head"])
def test_another_projector_or_llm_is_another_digest_and_another_tower_is_not(part):
    llava = make_llava()
    before = digest_llm(llava)
    torch.nn.init.zeros_(next(llava.model.vision_tower.parameters()))
    assert digest_llm(llava) == before
    torch.nn.init.constant_(llava.get_submodule(part).weight, 0.5)
    assert digest_llm(llava) != before


def test_a_second_run_in_the_same_output_is_refused(answerer, data, tmp_path):
    code = (
        "import sys, time; from sf_llava.files import locked\n"
        "with locked(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path / "out"], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RuntimeError, match=r"out is being written by process \d+"):
            answer_all(answerer, data, tmp_path / "out", {})
    finally:
        holder.kill()
        holder.wait()
    answer_all(answerer, data, tmp_path / "out", {})  # the lock went with its holder
    assert sorted(os.listdir(tmp_path / "out")) == ["answers.jsonl", "run.json"]


def test_a_full_disk_is_named_and_loses_nothing(answerer, data, tmp_path):
    (tmp_path / "out").mkdir()
    part = tmp_path / "out" / "answers.0.part.jsonl"
    first = []

    def fill_the_disk(problem, text):
        first.append(problem.id)
        if len(first) == 4:
            part.rename(tmp_path / "kept")
            part.symlink_to("/dev/full")

    with pytest.raises(OSError, match=r"answers.0.part.jsonl could not be written: No space left on device"):
        answer_all(answerer, data, tmp_path / "out", {}, batch_size=2, progress=fill_the_disk)
    assert [json.loads(line)["question_id"] for line in (tmp_path / "kept").read_text().splitlines()] == first
    os.replace(tmp_path / "kept", part)
    assert len(answer_all(answerer, data, tmp_path / "out", {}, batch_size=2)) == 11


@pytest.mark.parametrize("place", ["question", "hint", "choices"])
@pytest.mark.parametrize("has_image", [True, False])
def test_what_stands_for_a_picture_in_a_questions_own_text_is_left_out(place, has_image, answerer, data, tmp_path):
    said = {"question": "<image>\nwhat is ?", "hint": "see <ima<image>ge> red", "choices": ("<image> cat", "dog")}
    problem = data.problems[0 if has_image else 1]
    prompt = answerer.prompt(dataclasses.replace(problem, **{place: said[place]}), has_image)
    assert prompt.count("<image>") == has_image
    assert "what is" in prompt and "cat" in prompt and "<ima" not in prompt.replace("<image>", "")
    asked = change(data, 0 if has_image else 1, **{place: said[place]})
    with pytest.warns(UserWarning, match=rf"1 question\(s\) say <image> in their own text \(the first: {problem.id}\)"):
        assert len(answer_all(answerer, asked, tmp_path / "out", {}, batch_size=4)) == 11


def test_a_numbered_picture_in_a_text_is_asked_as_it_is(answerer, data):
    problem = dataclasses.replace(data.problems[0], question="<image 1> what ?")
    assert "<image 1> what ?" in answerer.prompt(problem, True)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]['content'] + 'x' }}", "cannot word problem 100"),  # for contents that are one text
        ("{{ messages[0]['content'] }}", "does not word problem 100 with its text as it is and <image> once"),
        ("{{ raise_exception('no user') }}", r"cannot word problem 100 \(no user\)"),
        ("{{ messages[0]['content'][-1]['text'] }}", "does not word problem 100"),  # forgets the picture
        ("{% for x in", "cannot word problem 100"),
    ],
)
def test_a_chat_template_for_other_conversations_names_the_problem(template, message, answerer, data, tmp_path):
    answerer.processor.chat_template = template
    with pytest.raises(ValueError, match=message):
        answer_all(answerer, data, tmp_path / "out", {})


def test_a_batch_that_does_not_fit_says_what_to_do(answerer, data, tmp_path, monkeypatch):
    def answer(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Answerer, "answer", answer)
    with pytest.raises(RuntimeError, match=r"out of memory with 5 questions at once .* `batch_size`, into another"):
        answer_all(answerer, data, tmp_path / "out", {})


MINI = ["run", "--data", "mini:2000", "--towers", "original", "--device", "cpu", "--batch-size", "2", "--output", "out"]


def start(tmp_path, *more):
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *MINI, *more], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    return process


def test_a_terminated_run_says_what_is_kept_and_a_second_one_is_refused(tmp_path):
    process = start(tmp_path)
    part = tmp_path / "out" / "original" / "answers.0.part.jsonl"
    while process.poll() is None and not (part.is_file() and part.stat().st_size):
        time.sleep(0.1)
    second = start(tmp_path)
    _, err = second.communicate(timeout=100)
    assert second.returncode == 2 and err.splitlines()[-1].startswith("error: ") and "is being written by" in err
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 143 and err.splitlines()[-1] == (
        "terminated: the answers so far are kept in out, and the same command goes on with the rest"
    )
    kept = part.read_text()
    assert kept and kept.endswith("\n")
    assert sorted(os.listdir(tmp_path / "out")) == ["original"]
    assert sorted(os.listdir(part.parent)) == ["answers.0.part.jsonl", "run.json"]


def test_an_output_that_is_a_file_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "out").touch()
    process = start(tmp_path, "--model", "nowhere")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2 and "out cannot be a directory of results" in err


def test_locks_are_free_after_a_run(answerer, data, tmp_path):
    answer_all(answerer, data, tmp_path, {})
    with locked(tmp_path):
        pass
