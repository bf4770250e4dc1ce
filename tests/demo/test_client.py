"""Programs talk to the served page: streaming, several turns and pictures, stop, many at once, hostile uploads."""

import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hostile import hostile_uploads

from sf_llava.demo.conversation import CLIP, SPARSEFORMER, Answer, Turn
from sf_llava.demo.engine import Sampling
from sf_llava.demo.uploads import accept
from sf_llava.demo.waiting import MAX_OF_CLIENT

httpx = pytest.importorskip("httpx")
gradio_client = pytest.importorskip("gradio_client", reason="gradio_client is not installed (pip install -e .[demo])")

RECORD = 3  # of the outputs: message box, chat, focus, record
QUESTIONS = ("Which shape is red?", "How many shapes are there?", "Where is the star?")


@pytest.fixture
def connect(served):
    clients = []

    def connect():
        clients.append(gradio_client.Client(served.local_url, verbose=False))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def forget(served):
    """For programs that open no page, and whose conversations are therefore closed by nobody."""
    yield
    for key in list(served.sessions._sessions):
        served.sessions.close(key)


def send(client, text, files=(), mode="both", whole=True, temperature=0, length=8):
    message = {"text": text, "files": [gradio_client.handle_file(path) for path in files]}
    return client.submit(message, mode, whole, temperature, length, api_name="/ask")


def ask_plainly(served, text, mode="both", whole=True, temperature=0, length=8, latents=16) -> list[dict]:
    """Ask without gradio's client, in JSON as Python writes it, with NaN: the records that come."""
    url = f"{served.local_url}gradio_api/call/ask"
    body = json.dumps({"data": [{"text": text, "files": []}, mode, whole, temperature, length, latents]})
    headers = {"content-type": "application/json"}
    event = httpx.post(url, content=body, headers=headers, timeout=10).json()["event_id"]
    lines = httpx.get(f"{url}/{event}", timeout=90).text.splitlines()
    assert "event: complete" in lines and "event: error" not in lines
    return [json.loads(line.removeprefix("data: "))[RECORD] for line in lines if line.startswith("data: [{")][:1]


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def expected(engine, path: Path, questions, tower=CLIP, length=8) -> list[str]:
    """What a conversation alone with the engine says."""
    turns = [Turn(questions[0], [accept(path)]), *map(Turn, questions[1:])]
    for number, turn in enumerate(turns):
        turn.answers[tower] = Answer(tower)
        for _ in engine.answer(turn.answers[tower], turns[: number + 1], Sampling(0.0, length)):
            pass
    return [turn.answers[tower].text for turn in turns]


def test_the_number_of_latents_can_be_chosen(connect, picture_files):
    message = {"text": "Which is larger?", "files": [gradio_client.handle_file(picture_files[0])]}
    client = connect()
    for latents in (24, 16):
        result = client.predict(message, SPARSEFORMER, False, 0, 8, latents, api_name="/ask")
        assert result[RECORD]["answers"][SPARSEFORMER]["visual_tokens"] == latents
        assert f"{latents} latents" in result[2]


def test_answers_stream_word_by_word_through_both_towers(connect, picture_files, slow_model):
    job = send(connect(), QUESTIONS[0], picture_files[:1], length=200)
    job.result(timeout=90)
    records = [update[RECORD] for update in job.outputs()]
    texts = [[answer["text"] for answer in record["answers"].values()] for record in records]
    assert len({text for text, _ in texts}) > 2 and len({text for _, text in texts}) > 2
    assert all(after[0].startswith(before[0]) for before, after in itertools.pairwise(texts))
    answers = records[-1]["answers"]
    assert list(answers) == [SPARSEFORMER, CLIP]
    assert [answer["visual_tokens"] for answer in answers.values()] == [16, 64]
    assert all(answer["encoder_ms"] > 0 and answer["prefill_ms"] > 0 for answer in answers.values())
    assert records[-1]["agree"] is (texts[-1][0] == texts[-1][1])


def test_later_turns_know_earlier_ones_and_do_not_encode_again(connect, engine, picture_files):
    client = connect()
    records = [
        send(client, question, picture_files[:1] if not number else [], mode=CLIP).result(timeout=90)[RECORD]
        for number, question in enumerate(QUESTIONS)
    ]
    texts = [record["answers"][CLIP]["text"] for record in records]
    assert texts == expected(engine, picture_files[0], QUESTIONS)
    assert [record["answers"][CLIP]["reused"] for record in records] == [0, 1, 1]


def test_two_pictures_cost_two_pictures_tokens(connect, picture_files):
    result = send(connect(), "Which is larger?", picture_files[:2], mode=SPARSEFORMER).result(timeout=90)
    assert result[RECORD]["answers"][SPARSEFORMER]["visual_tokens"] == 32
    assert "16 latents" in result[2]  # the focus shows the last picture


def test_a_picture_alone_is_to_be_described_and_text_alone_asks_the_language_model(connect, picture_files):
    client = connect()
    assert send(client, "", picture_files[:1]).result(timeout=90)[RECORD]["question"] == "Describe the picture."
    answers = send(connect(), "Which is a fruit?").result(timeout=90)[RECORD]["answers"]
    assert list(answers) == ["language model"]
    assert send(connect(), "  ").result(timeout=90)[RECORD]["notes"]


def test_stop_ends_the_answer_and_keeps_what_was_written(connect, picture_files, slow_model):
    client = connect()
    job = send(client, QUESTIONS[0], picture_files[:1], temperature=1, length=256)
    wait_for(lambda: len(job.outputs()) > 2)
    client.predict(api_name="/stop")
    first, second = job.result(timeout=90)[RECORD]["answers"].values()
    assert first["state"] == "stopped" or second["state"] == "stopped"
    assert 0 < first["num_tokens"] < 256
    assert send(client, QUESTIONS[1]).result(timeout=90)[RECORD]["answers"][CLIP]["state"] == "length"


def test_a_cancelled_request_makes_room_for_the_next(connect, picture_files, slow_model):
    client = connect()
    job = send(client, QUESTIONS[0], picture_files[:1], length=256)
    wait_for(lambda: len(job.outputs()) > 1)
    job.cancel()
    assert send(connect(), QUESTIONS[1], mode=CLIP).result(timeout=90)[RECORD]["answers"]


def test_retry_answers_again_with_the_settings_as_they_are(connect, picture_files):
    client = connect()
    send(client, QUESTIONS[0], picture_files[:1], mode=CLIP).result(timeout=90)
    record = client.predict(SPARSEFORMER, True, 0, 8, api_name="/retry")[RECORD]
    assert list(record["answers"]) == [SPARSEFORMER] and record["question"] == QUESTIONS[0]


def test_clear_forgets(connect, engine, picture_files):
    client = connect()
    send(client, QUESTIONS[0], picture_files[:1]).result(timeout=90)
    chat, record = client.predict(api_name="/clear")[1::2]
    assert chat == [] and record is None
    assert list(send(client, QUESTIONS[1]).result(timeout=90)[RECORD]["answers"]) == ["language model"]


def test_many_at_once_get_their_own_answers(connect, engine, picture_files):
    wanted = [expected(engine, path, QUESTIONS[:2]) for path in picture_files[:6]]
    assert len({text for texts in wanted for text in texts}) > 6  # the pictures matter
    clients = [connect() for _ in wanted]

    def talk(client, path):
        turns = zip(QUESTIONS[:2], [[path], []], strict=True)
        jobs = (send(client, question, files, mode=CLIP) for question, files in turns)
        return [job.result(timeout=90)[RECORD]["answers"][CLIP]["text"] for job in jobs]

    with ThreadPoolExecutor(len(clients)) as pool:
        assert list(pool.map(talk, clients, picture_files)) == wanted


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "hot"},
        {"length": -1},
        {"length": 1e30},
        {"length": None},
        {"mode": "nobody"},
        {"mode": ["clip"]},
        {"whole": "yes"},
        {"latents": 10**30},
        {"latents": [16]},
    ],
    ids=str,
)
def test_an_odd_setting_sent_by_a_program_gets_a_sentence(settings, served, forget):
    (record,) = ask_plainly(served, "Which shape is red?", **settings)
    assert not record["answers"] and ", not " in record["notes"][0]


def test_a_question_too_long_is_refused_before_it_is_kept_or_read_by_the_tokenizer(served, forget, engine, monkeypatch):
    monkeypatch.setattr(engine, "tokenizer", None)
    before = len(served.sessions)
    (record,) = ask_plainly(served, "red " * 6000)
    assert "23,999 letters; 20,000 are the most" in record["notes"][0] and len(record["question"]) < 300
    assert len(served.sessions) == before


def test_a_conversation_holds_so_many_questions(connect, monkeypatch):
    from sf_llava.demo import interface

    monkeypatch.setattr(interface, "MAX_TURNS", 2)
    client = connect()
    notes = [send(client, "Which is a fruit?").result(timeout=90)[RECORD]["notes"] for _ in range(4)]
    assert not notes[0] and not notes[1] and "holds 2 questions" in notes[2][-1] and "holds 2 questions" in notes[3][-1]


def test_a_client_with_many_questions_waiting_gets_a_sentence_and_the_others_their_answers(served, forget):
    url = f"{served.local_url}gradio_api/call/ask"
    data = [{"text": "Which shape is red?", "files": []}, "both", True, 0, 64, 16]
    with httpx.Client(timeout=90) as http, ThreadPoolExecutor(14) as pool:
        with served.line.stand("somebody else"):  # nobody is answered until all have asked
            events = [http.post(url, json={"data": data}).json()["event_id"] for _ in range(14)]
            jobs = [pool.submit(lambda event: http.get(f"{url}/{event}").text, event) for event in events]
            wait_for(lambda: sum(job.done() for job in jobs) == 14 - MAX_OF_CLIENT, seconds=30)
        texts = [job.result() for job in jobs]
    refused = [text for text in texts if "of your questions wait" in text]
    answered = [text for text in texts if '"state": "length"' in text]
    assert len(refused) == 14 - MAX_OF_CLIENT and len(answered) == MAX_OF_CLIENT


def test_who_goes_away_while_waiting_or_answered_leaves_no_place_in_line(served, connect, picture_files, slow_model):
    clients = [connect() for _ in range(4)]
    jobs = [send(client, QUESTIONS[0], picture_files[:1], length=256) for client in clients]
    wait_for(lambda: len(served.line.places) == 4 and all(job.outputs() for job in jobs))
    for client in clients:
        client.close()
    wait_for(lambda: not served.line.places)
    assert send(connect(), QUESTIONS[1], mode=CLIP).result(timeout=90)[RECORD]["answers"]


def test_nothing_is_kept_of_a_page_that_was_closed(served, connect, picture_files):
    wait_for(lambda: len(served.sessions) == 0)
    client = connect()
    send(client, QUESTIONS[0], picture_files[3:4]).result(timeout=90)
    assert len(served.sessions) == 1 and list(served.uploads.rglob(picture_files[3].name))
    remembered = served.state_holder.session_data
    assert client.session_hash in remembered
    client.close()
    wait_for(lambda: len(served.sessions) == 0 and not list(served.uploads.rglob(picture_files[3].name)))
    wait_for(lambda: client.session_hash not in remembered)


def test_a_closed_page_stops_its_answer(served, engine, connect, picture_files, slow_model):
    client = connect()
    job = send(client, QUESTIONS[0], picture_files[:1], length=256)
    wait_for(lambda: len(job.outputs()) > 1)
    (conversation,) = [session.conversation for session in served.sessions._sessions.values() if session.uploads]
    client.close()
    answers = conversation.turns[0].answers.values()
    wait_for(lambda: all(answer.state not in ("waiting", "writing") for answer in answers))


@pytest.mark.parametrize("start", range(0, 50, 10))
def test_hostile_uploads_get_an_answer_or_a_sentence(start, connect, tmp_path):
    client = connect()
    for upload in hostile_uploads()[start : start + 10]:
        path = tmp_path / Path(upload.name.replace("\\", "/")).name[-60:]
        path.write_bytes(upload.data)
        record = send(client, "Which shape is red?", [path], mode=SPARSEFORMER).result(timeout=90)[RECORD]
        if upload.accepted:
            assert record["answers"][SPARSEFORMER]["num_tokens"] == 8, upload.what
            client.predict(api_name="/clear")
        else:
            assert not record["answers"] and record["notes"][0].endswith("."), upload.what


@pytest.mark.parametrize("path", ["CONFIG", "https://example.com/cat.png", "../uploads/../chat.py", "a\0b", "//host/x"])
def test_a_program_cannot_have_other_files_read_than_uploaded_ones(served, llava_dir, path):
    config = llava_dir / "config.json"
    file = {"path": str(config) if path == "CONFIG" else path, "meta": {"_type": "gradio.FileData"}}
    body = {"data": [{"text": "What is it?", "files": [file]}, "both", True, 0, 8, 16]}
    response = httpx.post(f"{served.local_url}gradio_api/call/ask", json=body, timeout=10)
    assert response.status_code == 403 and "uploaded here" in response.json()["detail"]
    assert httpx.get(f"{served.local_url}gradio_api/file={config}", timeout=10).status_code == 403
