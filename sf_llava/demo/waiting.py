"""Who waits for the model: one at a time, in the order they came; so many of one client, and so many in all."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sf_llava.demo.uploads import RefusedError

MAX_WAITING = 24  # in all; each takes one of gradio's 40 threads
MAX_OF_CLIENT = 8  # with the one that is answered


class Place:
    """A place in the line."""

    def __init__(self, line: "Line", client: str) -> None:
        self._line, self.client = line, client

    @property
    def ahead(self) -> int:
        """How many are answered before."""
        with self._line.moved:
            return self._line.places.index(self)

    def wait(self, seconds: float) -> bool:
        """Wait so long at most; whether it is this one's turn."""
        with self._line.moved:
            return self._line.moved.wait_for(lambda: self.ahead == 0, seconds)


class Line:
    """All that want the model; the first has it."""

    def __init__(self) -> None:
        self.places: list[Place] = []
        self.moved = threading.Condition()

    @contextmanager
    def stand(self, client: str) -> Iterator[Place]:
        """Hold a place while the block runs, whichever way it ends.

        Raises:
            RefusedError: the line is full, or of this client as many stand in it as may.
        """
        with self.moved:
            if sum(place.client == client for place in self.places) >= MAX_OF_CLIENT:
                raise RefusedError(f"{MAX_OF_CLIENT} of your questions wait for an answer: ask again after them.")
            if len(self.places) >= MAX_WAITING:
                raise RefusedError(f"{MAX_WAITING} questions wait for an answer: ask again in a while.")
            place = Place(self, client)
            self.places.append(place)
        try:
            yield place
        finally:
            with self.moved:
                self.places.remove(place)
                self.moved.notify_all()
