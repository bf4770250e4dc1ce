"""JSON over HTTP to one server, from many threads, with patience: a server that is away is waited for.

The standard library alone; a thread keeps its connection from one request to the next.
"""

import http.client
import itertools
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

PATIENCE = 300.0
"""Seconds that a server may be away; an error of its own (500), which seldom passes, is waited out for a tenth."""
SLOWEST = 3600.0
"""Seconds that one answer may take."""
BUSY = (408, 429, 500, 502, 503, 504)
"""What a server says that starts, ends, or has too much to do."""


class RefusedError(ValueError):
    """The server is there and does not do what it was asked; ``status`` is HTTP's."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"{status}: {said}")
        self.status = status


class HttpClient:
    """Asks one server.

    Args:
        url: ``http://HOST:PORT``, with or without ``/v1``.
        patience: seconds that the server may be away before a request gives up.

    Raises:
        ValueError: ``url`` is none.
    """

    def __init__(self, url: str, patience: float = PATIENCE) -> None:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme not in ("http", "https"):
            raise ValueError(f"`server` {url!r} is no address: expected http://HOST:PORT")
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self.url = f"{parts.scheme}://{parts.netloc}{self._path}"
        self.patience = patience
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = host, port
        self._mine = threading.local()
        self._open: set[http.client.HTTPConnection] = set()
        self._ending = threading.Event()
        self._told = -math.inf

    def ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, again: Callable[[], None] = lambda: None
    ) -> Any:
        """Send a request until it is answered.

        Args:
            method, path, body: of the request.
            again: called before the request is sent once more; what it raises is as if the request had.

        Returns:
            The answer, read as JSON; None where it is none.

        Raises:
            RefusedError: the server refuses it.
            RuntimeError: the server was away for longer than ``patience``.
        """
        since = None
        for attempt in itertools.count():
            try:
                if attempt:
                    again()
                return self.ask_once(method, path, body)
            except RefusedError as error:
                if error.status not in BUSY:
                    raise
                problem, patience = str(error), self.patience / (10 if error.status == 500 else 1)
            except (OSError, http.client.HTTPException) as error:
                problem = getattr(error, "strerror", None) or str(error) or type(error).__name__
                patience = self.patience
            now = time.monotonic()
            since = since or now
            if now >= since + patience or self._ending.is_set():
                raise RuntimeError(
                    f"the server at {self.url} has not answered for {patience:,.0f} seconds ({problem}): start it "
                    "again, and the same command goes on with the rest"
                )
            if attempt:  # once is nothing: servers close connections that were idle
                if now > self._told + self.patience:
                    self._told = now
                    tqdm.write(  # beside a progress bar
                        f"note: the server at {self.url} does not answer ({problem}): waiting up to "
                        f"{patience:,.0f} seconds",
                        file=sys.stderr,
                    )
                self._ending.wait(min(2.0 ** min(attempt - 1, 3), since + patience - now))

    def ask_once(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send a request once; like :meth:`ask`, but an absent server is an OSError or HTTPException."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        connection = self._connection()
        try:
            connection.request(method, self._path + path, json.dumps(body).encode() if body else None, headers)
            response = connection.getresponse()
            data = response.read()
        except BaseException:
            self._open.discard(connection)
            connection.close()
            del self._mine.connection
            raise
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError):
            answer = None
        if response.status >= 300:
            raise RefusedError(response.status, _message(answer) or response.reason)
        return answer

    def stop_waiting(self) -> None:
        """Let requests that wait for the server give up; those that it works on go on."""
        self._ending.set()

    def cut(self) -> None:
        """End all requests at once."""
        self.stop_waiting()
        for connection in list(self._open):
            with suppress(OSError, AttributeError):  # closed already, or not open yet
                connection.sock.shutdown(socket.SHUT_RDWR)

    def _connection(self) -> http.client.HTTPConnection:
        """This thread's connection."""
        if not hasattr(self._mine, "connection"):
            self._mine.connection = self._kind(self._host, self._port, timeout=SLOWEST)
            self._open.add(self._mine.connection)
        return self._mine.connection


def _message(answer: Any) -> str:
    """Read what a server says of an error, on one line."""
    said = answer
    for key in ("error", "message", "detail"):
        said = said.get(key, said) if isinstance(said, dict) else said
    return " ".join(str(said).split())[:500] if said else ""
