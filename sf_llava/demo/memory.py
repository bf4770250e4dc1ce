"""Keeps a long-lived server's memory where it was, where malloc is glibc's.

By default every thread gets a heap of its own, what one leaves free is of no use to another, and little of it goes back
to the system: the server would grow with every conversation, though nothing of it is kept.
"""

import ctypes
import sys

_M_ARENA_MAX = -8  # glibc's malloc.h
_MALLOC = ctypes.CDLL(None) if sys.platform == "linux" else None


def share_heaps() -> None:
    """Give all threads two heaps between them; call it before they start."""
    if _MALLOC is not None and hasattr(_MALLOC, "mallopt"):
        _MALLOC.mallopt(_M_ARENA_MAX, 2)


def return_freed() -> None:
    """Hand freed memory back to the system."""
    if _MALLOC is not None and hasattr(_MALLOC, "malloc_trim"):
        _MALLOC.malloc_trim(0)
