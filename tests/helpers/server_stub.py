"""A server of one model in the OpenAI-compatible form, of the standard library, with mishaps to order."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image


class Stub:
    """A server on a port of its own.

    Attributes:
        bodies: the requests for answers, in order.
        mishap: called with the number of each such request; a status and what to say instead of an answer, or None.
        models: what the server says it has.
        most: requests in flight at once, at most.
    """

    def __init__(self, port: int = 0, **models: str) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.mishap: Callable[[int], tuple[int, Any] | None] = lambda number: None
        self.models = models or {"tiny": "/weights"}
        self.most = self.pace = 0.0
        self._flying = 0
        self._lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                self.reply(200, {"data": [dict(id=name, root=root) for name, root in stub.models.items()]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stub._lock:
                    number = len(stub.bodies)
                    stub.bodies.append(body)
                    stub._flying += 1
                    stub.most = max(stub.most, stub._flying)
                time.sleep(stub.pace)
                said = stub.mishap(number)
                with stub._lock:
                    stub._flying -= 1
                if said is None:
                    message = {"role": "assistant", "content": f" {answer_to(body)} "}
                    said = 200, {"choices": [{"message": message}]}
                if said[0] == 0:  # the process is gone
                    self.close_connection = True
                    self.connection.close()
                    return
                self.reply(*said)

            def reply(self, status: int, value: Any) -> None:
                data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Quiet(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop listening; connections that are open end with their next request."""
        self.mishap = lambda number: (0, None)
        self._server.shutdown()
        self._server.server_close()


def answer_to(body: dict[str, Any]) -> str:
    """An answer that depends on all that was asked: the text, and the middle pixel of each picture."""
    (message,) = body["messages"]
    *images, text = message["content"]
    pixels = [picture(image).getpixel((20, 20)) for image in images]
    return f"{len(text['text'])} {pixels}. The answer is A."


def picture(part: dict[str, Any]) -> Image.Image:
    """The picture of one part of a message."""
    kind, _, data = part["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))
