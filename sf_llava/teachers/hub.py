"""Access to the Hugging Face hub that does not keep a user without a network waiting."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlparse

from huggingface_hub import constants


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Use the hub's local cache alone where its host cannot be found (otherwise: most of a minute of retries)."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _host_is_known()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _host_is_known() -> bool:
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # the proxy resolves names
    try:
        socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True
