"""The demo's door: a request from a stranger, too large, too slow or one too many is answered by a sentence.

It stands around the whole page, which sees a request only when all of it has come.
"""

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sf_llava.demo.conversation import MAX_PICTURES
from sf_llava.demo.names import Names
from sf_llava.demo.uploads import MAX_BYTES

UPLOAD = "/gradio_api/upload"
MAX_BODY = 2**20  # bytes of a request that is no upload
MAX_UPLOAD = MAX_PICTURES * MAX_BYTES + 2**16
UPLOADS_AN_HOUR = 2**30  # bytes of one client; what was not sent in a message is removed after an hour
HOUR = 3600.0  # seconds
GRACE, SLOWEST = 20.0, 50_000  # a body may take so many seconds, and another one for so many bytes that came
MAX_OPEN = 160  # requests of one client at once; a page holds two
_PART = 2**16  # bytes


class _TurnedAwayError(Exception):
    """An HTTP status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


@dataclass
class _Client:
    """What an address has open, and what it uploads or has uploaded within the hour: bytes, by the time they began."""

    open: int = 0
    uploads: dict[float, int] = field(default_factory=dict)

    def is_gone(self, now: float) -> bool:
        """Forget uploads of more than an hour ago; whether nothing is left to remember."""
        self.uploads = {began: size for began, size in self.uploads.items() if now - began < HOUR}
        return not self.open and not self.uploads


class Door:
    """ASGI middleware around the whole page.

    Args:
        app: behind the door.
        names: of this server.
        uploads: the folder that a request may name files in; of others gradio would fetch the addresses.
    """

    def __init__(self, app: ASGIApp, names: Names, uploads: Path) -> None:
        self.app, self.names, self.uploads = app, names, uploads.resolve()
        self._clients: dict[str, _Client] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it with a sentence."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page has no websocket
            await send({"type": "websocket.close", "code": 1008, "reason": "This server has no websockets."})
            return
        try:
            if sentence := self.names.refusal(scope["method"], Headers(scope=scope)):
                raise _TurnedAwayError(403, sentence)
            client = self._client(scope)
            client.open += 1
            try:
                await self._admit(client, scope, receive, send)
            finally:
                client.open -= 1
        except _TurnedAwayError as error:  # raised before the page was asked, so nothing has been sent
            response = JSONResponse({"detail": error.sentence}, error.status, headers={"connection": "close"})
            await response(scope, receive, send)

    def _client(self, scope: Scope) -> _Client:
        """What is known of the client's address; nothing is kept of those that are gone."""
        now = time.monotonic()
        self._clients = {address: client for address, client in self._clients.items() if not client.is_gone(now)}
        client = self._clients.setdefault((scope["client"] or ("",))[0], _Client())
        if client.open >= MAX_OPEN:
            raise _TurnedAwayError(429, f"{MAX_OPEN} requests of yours are open: close other pages of the demo first.")
        return client

    async def _admit(self, client: _Client, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait for the whole body, then ask the page."""
        upload = scope["path"].rstrip("/") == UPLOAD
        bound = MAX_UPLOAD if upload else MAX_BODY
        declared = Headers(scope=scope).get("content-length")
        if declared is not None and not (declared.isdecimal() and int(declared) <= bound):
            raise _too_large(bound)
        began = time.monotonic()
        if upload:
            client.uploads[began] = int(declared or bound)
            if sum(client.uploads.values()) > UPLOADS_AN_HOUR:
                del client.uploads[began]
                raise _TurnedAwayError(429, f"{UPLOADS_AN_HOUR // 2**20} MB an hour may be uploaded: send more later.")
        received = 0
        try:
            with SpooledTemporaryFile(MAX_BODY) as body:
                if not await _read(body, receive, bound):
                    return
                received = body.tell()
                if not upload and received and self._names_others(body):
                    raise _TurnedAwayError(403, "A request names files that were uploaded here, and no others.")
                # in links the server calls itself as it was asked, and not as a header of gradio's own says
                headers = [(name, value) for name, value in scope["headers"] if name != b"x-gradio-server"]
                await self.app({**scope, "headers": headers}, _replay(body, receive), send)
        finally:
            if began in client.uploads:
                client.uploads[began] = received

    def _names_others(self, body: IO[bytes]) -> bool:
        """Whether a JSON body has a file in it, by gradio's ``path``, that does not lie among the uploads."""
        body.seek(0)
        try:
            values = [json.load(body)]
        except (ValueError, RecursionError):
            return False  # gradio reads it no other way
        while values:
            value = values.pop()
            if isinstance(value, dict):
                if isinstance(value.get("path"), str) and not self._is_upload(value["path"]):
                    return True
                values += value.values()
            elif isinstance(value, list):
                values += value
        return False

    def _is_upload(self, path: str) -> bool:
        try:
            return Path(path).resolve().is_relative_to(self.uploads)
        except (OSError, ValueError):
            return False


def _too_large(bound: int) -> _TurnedAwayError:
    return _TurnedAwayError(413, f"The request is larger than {bound:,} bytes, the most that is accepted here.")


async def _read(body: IO[bytes], receive: Receive, bound: int) -> bool:
    """Receive the whole body into a file; False: the client went away.

    Raises:
        _TurnedAwayError: it has more than ``bound`` bytes, comes too slowly, or there is no room for it.
    """
    start, received = time.monotonic(), 0
    while True:
        remaining = start + GRACE + received / SLOWEST - time.monotonic()
        try:
            message = await asyncio.wait_for(receive(), max(remaining, 0))
        except TimeoutError:
            raise _TurnedAwayError(408, "The request came too slowly: send it again over a faster line.") from None
        if message["type"] == "http.disconnect":
            return False
        part = message.get("body", b"")
        received += len(part)
        if received > bound:
            raise _too_large(bound)
        try:
            body.write(part)
        except OSError:
            raise _TurnedAwayError(507, "This server's disk is full: send it again later.") from None
        if not message.get("more_body"):
            return True


def _replay(body: IO[bytes], receive: Receive) -> Callable[[], Awaitable[Message]]:
    """A ``receive`` that gives the body from its file, then what still comes: the news that the client has gone."""
    size = body.seek(0, os.SEEK_END)
    body.seek(0)
    ended = False

    async def replay() -> Message:
        nonlocal ended
        if ended:
            return await receive()
        part = body.read(_PART)
        ended = body.tell() == size
        return {"type": "http.request", "body": part, "more_body": not ended}

    return replay
