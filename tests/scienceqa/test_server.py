"""A served model is asked: in which words, with which pictures, and what happens when its server does not answer."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from server_stub import Stub, answer_to, picture
from tiny_scienceqa import write_scienceqa

from sf_llava.commands import scienceqa
from sf_llava.scienceqa import http_client
from sf_llava.scienceqa.asking import GREY, Generation
from sf_llava.scienceqa.data import ask, open_scienceqa
from sf_llava.scienceqa.server import Server, ask_server

GENERATION = Generation(max_new_tokens=9, seed=5)


@pytest.fixture
def stub():
    server = Stub()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_scienceqa(tmp_path_factory.mktemp("data"))


@pytest.fixture
def data(folder):
    return open_scienceqa(str(folder))


def connect(stub, model=None, patience=5.0):
    return Server(stub.url, GENERATION, model, patience=patience)


def text_of(body):
    return body["messages"][0]["content"][-1]["text"]


def pixels_of(body):
    return [picture(part).tobytes() for part in body["messages"][0]["content"][:-1]]


def entries(output, name="answers.jsonl"):
    return [json.loads(line) for line in (output / name).read_text().splitlines()]


def test_every_question_is_asked_once_in_its_own_words_with_its_own_pixels(stub, data, tmp_path):
    texts = ask_server(connect(stub), data, tmp_path, {}, concurrency=3)
    assert len(stub.bodies) == len(texts) == 11
    asked = {(text_of(body), *pixels_of(body)): body for body in stub.bodies}
    for problem in data.problems:
        pixels = [data.load_image(problem).tobytes()] if problem.has_image else []
        body = asked[ask(problem), *pixels]
        assert texts[problem.id] == answer_to(body)
        wanted = {"model": "tiny", "max_tokens": 9, "temperature": 0.0, "seed": 5, "add_special_tokens": True}
        assert wanted.items() <= body.items()
    lines = entries(tmp_path)
    assert [line["question_id"] for line in lines] == [problem.id for problem in data.problems]
    assert lines[0]["prompt"] == f"<image>\n{ask(data.problems[0])}" and lines[1]["prompt"] == ask(data.problems[1])
    assert sorted(os.listdir(tmp_path)) == ["answers.jsonl", "run.json"]


def test_as_many_requests_fly_as_may(stub, data, tmp_path):
    stub.pace = 0.05
    ask_server(connect(stub), data, tmp_path, {}, concurrency=4)
    assert stub.most == 4


def test_controls_show_no_picture_another_ones_or_a_grey_one(stub, data, tmp_path):
    shown = {}
    for control in (None, "blind", "shuffled", "grey"):
        stub.bodies.clear()
        texts = ask_server(connect(stub), data, tmp_path / str(control), {}, control=control)
        assert len(texts) == (11 if control is None else 6)
        shown[control] = sorted(pixels for body in stub.bodies for pixels in pixels_of(body))
    assert shown["blind"] == [] and shown["shuffled"] == shown[None] != shown["grey"]
    assert all(set(zip(*[iter(pixels)] * 3, strict=True)) == {GREY} for pixels in shown["grey"])
    lines = [(tmp_path / name / "answers.jsonl").read_text().splitlines() for name in ("None", "shuffled")]
    plain, ours = ({one["question_id"]: one for one in map(json.loads, found)} for found in lines)
    assert all(one["prompt"] == plain[name]["prompt"] for name, one in ours.items())
    assert any(one["text"] != plain[name]["text"] for name, one in ours.items())


def test_words_that_are_tokens_have_no_meaning(stub, data, tmp_path):
    problem = dataclasses.replace(data.problems[0], question="<image>\nwhat </s> is <s> ?", has_image=False)
    with pytest.warns(UserWarning, match="1 question.* say <image> in their own text"):
        ask_server(connect(stub), dataclasses.replace(data, problems=[problem]), tmp_path, {})
    text = stub.bodies[0]["messages"][0]["content"][-1]["text"]
    assert text.startswith("what < /s> is < s> ?")


def test_a_server_that_goes_in_the_middle_and_comes_back_loses_nothing(data, tmp_path, capsys):
    stub = Stub()
    again = []

    def come_back():
        time.sleep(0.7)
        again.append(Stub(stub.port))

    def leave(number):
        if number == 4:
            threading.Thread(target=stub.stop).start()
            threading.Thread(target=come_back).start()
        return (0, None) if number >= 4 else None

    stub.mishap = leave
    server = connect(stub, patience=20)
    texts = ask_server(server, data, tmp_path, {}, concurrency=2)
    again[0].stop()
    assert len(texts) == 11 and len(again[0].bodies) == 7
    assert capsys.readouterr().err.count("does not answer") == 1  # one line, whoever waits


def test_a_server_that_stays_away_is_one_sentence_and_the_next_run_asks_the_rest(data, tmp_path):
    stub = Stub()
    stub.mishap = lambda number: (0, None) if number >= 5 else None
    said = (
        r"^problem \d+: the server at \S+ has not answered for 1 seconds \(.*\): start it again, and the same command"
    )
    with pytest.raises(RuntimeError, match=said):
        ask_server(connect(stub, patience=1.0), data, tmp_path, {}, concurrency=1)
    stub.stop()
    kept = entries(tmp_path, "answers.0.part.jsonl")
    assert len(kept) == 5
    stub = Stub()
    seen = []
    texts = ask_server(connect(stub), data, tmp_path, {}, progress=lambda problem, text: seen.append(problem.id))
    stub.stop()
    assert len(stub.bodies) == 6 and len(texts) == len(seen) == 11  # the bar counts all
    assert {line["question_id"]: line["text"] for line in kept}.items() <= texts.items()


def test_a_server_that_is_down_at_the_start_is_waited_for(capsys):
    stub = Stub()
    stub.stop()
    with pytest.raises(RuntimeError, match=r"has not answered for 1 seconds \(Connection refused\): start it again"):
        connect(stub, patience=1.0)
    assert "does not answer (Connection refused): waiting up to 1 seconds" in capsys.readouterr().err
    later = []
    threading.Timer(0.5, lambda: later.append(Stub(stub.port))).start()
    assert connect(stub, patience=20).identity["model"] == "tiny"
    later[0].stop()


def test_errors_of_a_busy_server_are_waited_out(stub, data, tmp_path):
    stub.mishap = lambda number: (503, {"error": {"message": "starting"}}) if number in (2, 3) else None
    assert len(ask_server(connect(stub), data, tmp_path, {}, concurrency=2)) == 11
    assert len(stub.bodies) == 13


def test_errors_that_stay_name_the_problem_and_what_the_server_says(stub, data, tmp_path):
    stub.mishap = lambda number: (500, "Internal Server Error")
    with pytest.raises(RuntimeError, match=r"^problem 100: .* \(500: Internal Server Error\)"):
        ask_server(connect(stub, patience=3.0), data, tmp_path, {}, concurrency=1)


def test_a_refused_question_is_one_sentence_after_the_others_are_kept(stub, data, tmp_path):
    stub.pace = 0.1
    refusal = {"error": {"message": "max_tokens=9 is too large:\n the context holds 4 tokens"}}
    said = (
        r"^the server at \S+ refuses problem 102 \(400: max_tokens=9 is too large: the context holds 4 tokens\): where "
        r"prompt and answer are longer than the model's context, ask for fewer `max_new_tokens`$"
    )
    stub.mishap = lambda number: (400, refusal) if text_of(stub.bodies[number]) == ask(data.problems[2]) else None
    with pytest.raises(ValueError, match=said):
        ask_server(connect(stub), data, tmp_path, {}, concurrency=5)
    assert {line["question_id"] for line in entries(tmp_path, "answers.0.part.jsonl")} >= {"100", "101", "103", "104"}


def test_a_missing_key_is_said(stub, data, tmp_path):
    stub.mishap = lambda number: (401, {"error": "Unauthorized"})
    with pytest.raises(ValueError, match=r"\(401: Unauthorized\): set OPENAI_API_KEY to the key"):
        ask_server(connect(stub), data, tmp_path, {})


def test_a_model_that_the_server_does_not_have_is_said_with_those_that_it_has():
    stub = Stub(small="/a", large="/b")
    with pytest.raises(ValueError, match=r"has no model 'huge': it has small, large$"):
        connect(stub, "huge")
    with pytest.raises(ValueError, match=r"has 2 models: name one, `model`, of small, large$"):
        connect(stub)
    assert connect(stub, "large").identity == {"model": "large", "root": "/b"}
    stub.stop()


def test_another_model_under_the_same_name_is_refused(stub, data, tmp_path):
    ask_server(connect(stub), data, tmp_path, {})
    stub.models = {"tiny": "/others"}
    with pytest.raises(ValueError, match=r"holds answers of other settings \(served was"):
        ask_server(connect(stub), data, tmp_path, {})


def test_another_model_that_comes_back_in_the_middle_is_refused(stub, data, tmp_path):
    def swap(number):
        if number == 3:
            stub.models = {"tiny": "/others"}
        return (503, "restarting") if number == 3 else None

    stub.mishap = swap
    with pytest.raises(ValueError, match=r"came back with another model \(/others, before /weights\)"):
        ask_server(connect(stub), data, tmp_path, {}, concurrency=1)
    assert len(entries(tmp_path, "answers.0.part.jsonl")) == 3


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port", "", "http://host:99999999"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ValueError, match=r"^`server` .* is no address: expected http://HOST:PORT$"):
        Server(url, GENERATION)


@pytest.mark.parametrize("answer", ["<html>", [], {"data": 3}, {"data": ["x"]}])
def test_another_kind_of_server_is_one_sentence(answer, monkeypatch, stub):
    monkeypatch.setattr(http_client.HttpClient, "ask", lambda self, method, path: answer)
    with pytest.raises(ValueError, match=r"^no OpenAI-compatible server at \S+: expected a list of models at /v1/mod"):
        connect(stub)


@pytest.mark.parametrize("answer", ["no JSON", {}, {"choices": []}, {"choices": [{"message": {"content": 7}}]}])
def test_what_is_no_answer_names_its_problem(answer, stub, data, tmp_path):
    stub.mishap = lambda number: (200, answer)
    with pytest.raises(ValueError, match=r"gives no chat completion to problem 100: expected choices with a message"):
        ask_server(connect(stub), data, tmp_path, {}, concurrency=1)


def command(stub, folder, output, *more):
    return ["run", "--server", f"{stub.url}/v1/", "--data", str(folder), "--output", str(output), *more]


def test_the_command_scores_what_is_served_and_goes_on_where_it_was(stub, folder, tmp_path, capsys):
    scienceqa.main(command(stub, folder, tmp_path, "--controls", "blind", "--max-new-tokens", "9"))
    assert "served: the image earns" in (out := capsys.readouterr().out) and "tiny on " in out
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["scores"]) == ["served", "blind"] and results["scores"]["served"]["total"] == 11
    assert results["environment"] == {"served": {"model": "tiny", "root": "/weights"}}
    assert json.loads((tmp_path / "served" / "run.json").read_text())["served"]["root"] == "/weights"
    asked = len(stub.bodies)
    scienceqa.main(command(stub, folder, tmp_path, "--controls", "blind", "--max-new-tokens", "9"))
    assert len(stub.bodies) == asked == 17


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--encoder", "x"], "argument --encoder: a --server decides that itself"),
        (["--conversation", "llava_v1"], "argument --conversation: a --server decides that itself"),
        (["--batch-size", "8"], "argument --batch-size: a --server decides that itself"),
        (["--positions-and-bias"], "argument --positions-and-bias: a --server decides that itself"),
        (["--concurrency", "0"], "argument --concurrency: expected a whole number"),
    ],
)
def test_flags_about_a_model_in_this_process_are_usage_errors(flags, said, stub, folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        scienceqa.main(command(stub, folder, tmp_path, *flags))
    assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        scienceqa.main(["run", "--data", str(folder), "--concurrency", "4"])
    assert "argument --concurrency: requests to a --server, which is not named" in capsys.readouterr().err


def test_ctrl_c_ends_requests_in_flight_at_once_and_says_what_is_kept(stub, folder, tmp_path):
    stub.mishap = lambda number: time.sleep(60) if number >= 4 else None
    code = "import sys; from sf_llava import cli; from sf_llava.commands import scienceqa; cli.run(scienceqa.main)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command(stub, folder, "out")], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and len(stub.bodies) < 11:
        time.sleep(0.05)
    time.sleep(0.5)  # the four answers are written
    process.send_signal(signal.SIGINT)
    before = time.monotonic()
    _, err = process.communicate(timeout=50)
    assert time.monotonic() - before < 20 and process.returncode == 130
    assert err.splitlines()[-1] == (
        "interrupted: the answers so far are kept in out, and the same command goes on with the rest"
    )
    assert len(entries(tmp_path / "out" / "served", "answers.0.part.jsonl")) == 4
