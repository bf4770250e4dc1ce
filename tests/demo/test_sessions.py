"""A conversation for every page, and nothing of it after the page is closed."""

import os

from sf_llava.demo.sessions import MAX_SESSIONS, Sessions


def test_pages_have_conversations_of_their_own():
    sessions = Sessions()
    assert sessions.open("a") is sessions.open("a") is not sessions.open("b")


def test_closing_stops_the_answer_and_forgets():
    sessions = Sessions()
    conversation = sessions.open("a")
    sessions.close("a")
    assert conversation.stop.is_set() and len(sessions) == 0 and sessions.open("a") is not conversation
    sessions.close("nobody")


def test_files_go_with_their_session(tmp_path):
    mine, example = tmp_path / "mine.png", tmp_path / "example.png"
    sessions = Sessions()
    sessions.keep = {example}
    sessions.open("a")
    for path in (mine, example):
        path.write_bytes(b"x")
        sessions.uploaded("a", path)
    sessions.close("a")
    assert not mine.exists() and example.exists()


def test_a_file_that_another_sent_too_stays(tmp_path):
    path = tmp_path / "same.png"
    path.write_bytes(b"x")
    sessions = Sessions()
    for key in ("a", "b"):
        sessions.open(key)
        sessions.uploaded(key, path)
    sessions.close("a")
    assert path.exists()
    os.utime(path, ns=(1, 1))  # a third person has just uploaded it, and not sent it yet
    sessions.close("b")
    assert path.exists()


def test_the_longest_silent_session_makes_room():
    sessions = Sessions()
    for number in range(MAX_SESSIONS):
        sessions.open(str(number))
    second, first = sessions.open("1"), sessions.open("0")  # both spoke again: 2 is silent longest, then 3
    sessions.open("new")
    sessions.open("newer")
    assert len(sessions) == MAX_SESSIONS
    assert sessions.open("0") is first and sessions.open("1") is second and not first.stop.is_set()
    assert "2" not in sessions and "3" not in sessions and "4" in sessions
