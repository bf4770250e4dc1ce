"""Serves the page on this machine: finds the port before anything is loaded, and closes without a word."""

import errno
import logging
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from sf_llava.demo.door import Door
from sf_llava.demo.names import Names, plain

FIRST_PORT, TRIES = 7860, 100
MAX_CONNECTIONS = 1000  # of all clients


def listen(host: str, port: int | None) -> socket.socket:
    """Bind a socket to a host, at a port or the next free one from 7860 on.

    Raises:
        ValueError: the host is none of this machine's.
        OSError: the port is taken, or none is free.
    """
    name = host.removeprefix("[").removesuffix("]")
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM) if name else []
    except (OSError, UnicodeError):
        found = []
    if not found:
        raise ValueError(f"`host` {host!r} is no name or address of this machine: 127.0.0.1 or 0.0.0.0 always are")
    problem: OSError | None = None
    for number in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + TRIES):
        for family, kind, _, _, address in found:
            listener = socket.socket(family, kind)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((address[0], number, *address[2:]))
                listener.listen()
                return listener
            except OSError as error:
                listener.close()
                problem = error
                if error.errno == errno.EADDRINUSE:  # not at this name's next address: a browser might take the first
                    break
    ports = f"port {port}" if port is not None else f"a port from {FIRST_PORT} to {FIRST_PORT + TRIES - 1}"
    reason = problem.strerror if problem else "it has no address"
    raise OSError(f"cannot listen at {ports} of {host}: {reason}; name another one with `port`") from problem


def address(host: str, port: int) -> str:
    """What to open in a browser on this machine."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(plain(host), plain(host))
    return f"http://[{name}]:{port}/" if ":" in name else f"http://{name}:{port}/"


class Server:
    """Serves a page from a thread of its own.

    Args:
        host: as the user named it.
        listener: bound to it.
        proxy_names: by which a proxy in front is asked; where there are any, it is believed whom it asks for.

    Raises:
        ValueError: one of ``proxy_names`` is no name.
    """

    def __init__(self, host: str, listener: socket.socket, proxy_names: Sequence[str] = ()) -> None:
        bound, port, *_ = listener.getsockname()
        self.url = address(host, port)
        self._names = Names([host, bound], port, proxy_names)
        self._listener, self._behind_proxy = listener, bool(proxy_names)
        self._server: uvicorn.Server | None = None
        self._ended = threading.Event()

    def start(self, app: ASGIApp, uploads: Path) -> None:
        """Serve ``app``, whose uploaded files lie in ``uploads``.

        Raises:
            RuntimeError: it does not start.
        """
        config = uvicorn.Config(
            Door(app, self._names, uploads),
            ws="none",
            log_level="error",
            proxy_headers=self._behind_proxy,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        server = self._server = uvicorn.Server(config)
        # No daemon, nor are its children: none is cut off within torch.
        threading.Thread(target=self._run, args=(server,)).start()
        while not server.started:
            if self._ended.wait(0.01):
                raise RuntimeError("the page cannot be served: it did not start")

    def _run(self, server: uvicorn.Server) -> None:
        try:
            server.run([self._listener])
        finally:
            self._ended.set()

    def wait(self) -> None:
        """Serve until a signal comes."""
        self._ended.wait()  # a thread's join, interrupted, would take the thread for ended (Python 3.11)

    def close(self) -> None:
        """End open streams, and wait until nothing is served."""
        if self._server is None:
            return
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what is cut off now is no error
        self._server.should_exit = True
        self._ended.wait(10)
