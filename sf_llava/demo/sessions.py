"""Who is talking: one conversation for every open page, and nothing of it once the page is closed."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from sf_llava.demo.conversation import Conversation

MAX_SESSIONS = 64  # beyond, the one that was silent longest is forgotten


@dataclass
class _Session:
    conversation: Conversation = field(default_factory=Conversation)
    uploads: dict[Path, int] = field(default_factory=dict)  # and when each was written, in nanoseconds


class Sessions:
    """Conversations by the key that a page was given, and the files that each has uploaded.

    ``keep``: files that belong to nobody (the examples) and stay.
    """

    def __init__(self) -> None:
        self.keep: set[Path] = set()
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, key: str) -> bool:
        return key in self._sessions

    def open(self, key: str) -> Conversation:
        """The conversation of a page, a new one at first."""
        with self._lock:
            session = self._sessions.setdefault(key, _Session())
            self._sessions.move_to_end(key)
            surplus = list(self._sessions)[: max(0, len(self._sessions) - MAX_SESSIONS)]
        for other in surplus:
            self.close(other)
        return session.conversation

    def find(self, key: str) -> Conversation:
        """The conversation of a page, or an empty one that is not kept."""
        with self._lock:
            return self._sessions[key].conversation if key in self._sessions else Conversation()

    def uploaded(self, key: str, path: str | Path) -> None:
        """Remember a file, to be removed with the session."""
        path = Path(path)
        if key in self._sessions and path not in self.keep and path.is_file():
            self._sessions[key].uploads[path] = path.stat().st_mtime_ns

    def close(self, key: str) -> None:
        """Stop the session's answer, forget its conversation, and remove its files.

        A file stays if somebody else has uploaded the same one, which then lies at the same place: held by another
        session, or written again since.
        """
        with self._lock:
            session = self._sessions.pop(key, None)
            held = {path for other in self._sessions.values() for path in other.uploads}
        if session is None:
            return
        session.conversation.stop.set()
        for path, written in session.uploads.items():
            if path not in held and path.is_file() and path.stat().st_mtime_ns == written:
                path.unlink()
