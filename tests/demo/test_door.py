"""Strangers, large, slow and too many requests are answered by a sentence before the page sees them."""

import json
import socket
import time
from contextlib import closing, suppress
from urllib.parse import urlsplit

import pytest

pytest.importorskip("gradio", reason="gradio is not installed (pip install -e .[demo])")
httpx = pytest.importorskip("httpx")

from sf_llava.demo import door  # noqa: E402
from sf_llava.demo.names import Names, parse_place  # noqa: E402

ROUTES = [
    ("GET", "/"),
    ("GET", "/config"),
    ("GET", "/gradio_api/info"),
    ("GET", "/gradio_api/queue/data?session_hash=x"),
    ("GET", "/gradio_api/heartbeat/x"),
    ("GET", "/theme.css"),
    ("GET", "/assets/none.js"),
    ("HEAD", "/"),
    ("OPTIONS", "/gradio_api/queue/join"),
    ("POST", "/gradio_api/queue/join"),
    ("POST", "/gradio_api/call/ask"),
    ("POST", "/gradio_api/run/stop"),
    ("POST", "/gradio_api/upload"),
    ("POST", "/no/such/route"),
]


@pytest.fixture
def own(served) -> str:
    """Host and port of the served page."""
    return urlsplit(served.local_url).netloc


def exchange(own: str, head: str, body: bytes = b"", wait: float = 20.0) -> tuple[int, str]:
    """Send bytes as they are; the status and the rest of the answer, 0 where the connection was cut before it came."""
    host, port = own.split(":")
    with closing(socket.create_connection((host, int(port)), timeout=wait)) as line:
        line.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        answer = b""
        with suppress(ConnectionResetError):  # of a server that leaves what we send unread
            while part := line.recv(2**16):
                answer += part
    return int(answer.split()[1]) if answer else 0, answer.decode()


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_route_is_served_to_a_stranger(method, path, served, own):
    port = own.split(":")[1]
    strangers = [
        {"host": f"evil.example:{port}"},
        {"host": f"evil.example:{port}", "origin": f"http://evil.example:{port}"},
        {"host": f"127.0.0.1.evil.example:{port}"},
        {"host": "127.0.0.1:1"},
        {"host": "127.0.0.1"},
        {"host": f"192.168.0.1:{port}"},
        {"host": own, "origin": "http://evil.example"},
        {"host": own, "origin": "null"},
        {"host": own, "origin": f"https://localhost.evil.example:{port}"},
        {"host": own, "origin": "http://localhost:1"},
        {"host": own, "origin": "http://127.0.0.1"},
        {"host": own, "origin": f"http://evil@{own}"},
        {"host": own, "x-forwarded-host": "evil.example"},
        {"host": own, "sec-fetch-site": "cross-site"},
        {"host": own, "sec-fetch-site": "same-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
    ]
    for headers in strangers:
        with httpx.stream(method, served.local_url.rstrip("/") + path, headers=headers, timeout=10) as response:
            assert response.status_code == 403, headers
            assert "access-control-allow-origin" not in response.headers


def test_its_own_page_and_programs_are_served_under_every_name_of_loopback(served, own):
    port = own.split(":")[1]
    for host in (own, f"localhost:{port}", f"LOCALHOST.:{port}", f"[::1]:{port}", f"[::ffff:127.0.0.1]:{port}"):
        for headers in ({}, {"origin": f"http://{host}", "sec-fetch-site": "same-origin"}):
            response = httpx.get(f"{served.local_url}config", headers={"host": host} | headers, timeout=10)
            assert response.status_code == 200, host
    followed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert httpx.get(served.local_url, headers=followed, timeout=10).status_code == 200  # a link elsewhere leads here


def test_a_request_names_its_host_once(own):
    assert exchange(own, "GET /config HTTP/1.0\nConnection: close")[0] == 403
    twice = f"GET /config HTTP/1.1\nHost: {own}\nHost: evil.example\nConnection: close"
    assert exchange(own, twice)[0] in (400, 403)


def test_a_header_cannot_give_the_page_another_root(served):
    for header in ("x-gradio-server", "x-forwarded-server"):
        config = httpx.get(f"{served.local_url}config", headers={header: "http://evil.example"}, timeout=10).json()
        assert config["root"] == served.local_url.rstrip("/")


def test_names_of_a_proxy_are_taken_and_no_others():
    names = Names(["127.0.0.1"], 7860, ["Demo.Example", "other.example:8443"])
    assert (
        names.has_host("demo.example") and names.has_host("demo.example:443") and names.has_host("other.example:8443")
    )
    assert names.has_origin("https://demo.example") and names.has_origin("https://other.example:8443")
    assert not names.has_host("other.example:1") and not names.has_origin("https://other.example")
    assert not names.has_host("sub.demo.example") and not names.has_origin("ftp://demo.example")


def test_a_wildcard_address_is_known_by_every_address_and_no_rebound_name():
    for host in ("0.0.0.0", "::"):
        names = Names([host], 7860)
        assert names.has_host("192.168.3.4:7860") and names.has_host("[fe80::1]:7860")
        assert names.has_host(f"{socket.gethostname()}:7860")
        assert not names.has_host("evil.example:7860") and not names.has_host("192.168.3.4:80")
    assert Names(["box.local"], 80).has_host("BOX.local") and Names(["box.local"], 80).has_origin("http://box.local")
    with pytest.raises(ValueError, match="no name of a server"):
        Names(["127.0.0.1"], 7860, ["https://demo.example/"])


@pytest.mark.parametrize(
    "text", ["", ".", ":80", "a b", "a:b", "[::1", "::1", "[x]", "a:999999", "a/b", "u@a", "a:80:80"]
)
def test_what_is_no_host_is_none(text):
    place = parse_place(text)
    assert place is None or place[0] not in ("localhost", "127.0.0.1", "::1")
    assert not Names(["127.0.0.1"], 80).has_host(text)


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/call/ask", "/gradio_api/upload", "/"])
def test_a_large_body_is_refused_by_its_header_before_it_is_sent(path, own):
    size = 2 * door.MAX_UPLOAD
    head = f"POST {path} HTTP/1.1\nHost: {own}\nContent-Type: application/json\nContent-Length: {size}"
    status, answer = exchange(own, head, b"{")
    assert status == 413 and "larger than" in answer


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/upload"])
def test_a_large_body_of_unknown_length_is_cut_off(path, own, served, monkeypatch):
    monkeypatch.setattr(door, "MAX_UPLOAD", 2**18)
    monkeypatch.setattr(door, "MAX_BODY", 2**18)
    before = list(served.uploads.rglob("*"))
    head = (
        f"POST {path} HTTP/1.1\nHost: {own}\nContent-Type: multipart/form-data; boundary=x\nTransfer-Encoding: chunked"
    )
    part = b"--x\r\nContent-Disposition: form-data; name=files; filename=a.png\r\n\r\n" + bytes(2**19)
    status, _ = exchange(own, head, b"%x\r\n%s\r\n0\r\n\r\n" % (len(part), part))
    assert status in (413, 0) and list(served.uploads.rglob("*")) == before


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "9" * 400])
def test_an_odd_length_is_refused(length, own):
    head = f"POST /gradio_api/queue/join HTTP/1.1\nHost: {own}\nContent-Length: {length}\nConnection: close"
    assert exchange(own, head)[0] in (400, 413)


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/upload"])
def test_a_body_that_comes_too_slowly_is_refused_and_leaves_nothing(path, own, served, monkeypatch):
    monkeypatch.setattr(door, "GRACE", 0.5)
    before = list(served.uploads.rglob("*"))
    head = f"POST {path} HTTP/1.1\nHost: {own}\nContent-Type: multipart/form-data; boundary=x\nContent-Length: 5000"
    start = time.monotonic()
    status, answer = exchange(own, head, b"--x\r\nContent-Disposition: form-data; name=files; filename=a\r\n\r\nabc")
    assert status == 408 and "too slowly" in answer and time.monotonic() - start < 10
    assert list(served.uploads.rglob("*")) == before


def test_an_hour_has_room_for_so_many_bytes_of_a_client(served, monkeypatch, picture_files):
    def upload():
        with open(picture_files[0], "rb") as file:
            return httpx.post(f"{served.local_url}gradio_api/upload", files={"files": file}, timeout=10)

    monkeypatch.setattr(door, "UPLOADS_AN_HOUR", 0)
    assert upload().status_code == 429 and "an hour" in upload().json()["detail"]
    monkeypatch.setattr(door, "HOUR", 0.0)
    monkeypatch.setattr(door, "UPLOADS_AN_HOUR", 2**20)
    assert upload().status_code == 200


def test_so_many_requests_of_a_client_are_open_at_once(served, monkeypatch):
    monkeypatch.setattr(door, "MAX_OPEN", 0)
    response = httpx.get(served.local_url, timeout=10)
    assert response.status_code == 429 and "are open" in response.json()["detail"]
    monkeypatch.undo()
    assert httpx.get(served.local_url, timeout=10).status_code == 200


@pytest.mark.parametrize(
    "body", [b"[" * 500_000, b"{}", b"", b"nonsense", b"\xff\xfe", json.dumps({"data": None}).encode()]
)
def test_bodies_that_are_no_question_are_errors_of_the_client(body, served):
    for path in ("queue/join", "call/ask"):
        headers = {"content-type": "application/json"}
        response = httpx.post(f"{served.local_url}gradio_api/{path}", content=body, headers=headers, timeout=10)
        assert 400 <= response.status_code < 500, (path, response.text)
