"""Without a network nobody waits: not for a local model, and not for the hub's retries."""

import socket
import time

import pytest
from huggingface_hub import constants

from sf_llava.teachers import load_teacher
from sf_llava.teachers.hub import hub_or_cache


@pytest.fixture
def no_network(monkeypatch):
    """A resolver that knows no host; counts what it was asked."""
    asked = []

    def fail(host, *args, **kwargs):
        asked.append(host)
        raise socket.gaierror("no name service")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return asked


def test_the_hubs_cache_alone_is_used_where_the_host_is_unknown(no_network):
    with hub_or_cache():
        assert constants.is_offline_mode()
    assert not constants.is_offline_mode()


def test_a_proxy_resolves_names_itself(no_network, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    with hub_or_cache():
        assert not constants.is_offline_mode()


def test_local_teachers_ask_for_no_host(no_network, teacher_name):
    teacher = load_teacher(teacher_name)
    if teacher.has_text:
        teacher.encode_text(["a cat"])
    assert no_network == []


@pytest.mark.parametrize(
    "name",
    [
        "open_clip:ViT-B-16/laion2b_s34b_b88k",
        "transformers:nobody/no-such-clip",
        "timm:vit_tiny_patch16_224.augreg_in21k",
    ],
)
def test_a_teacher_of_the_hub_is_refused_at_once(no_network, name):
    started = time.perf_counter()
    with pytest.raises(ValueError, match="could not be fetched"):
        load_teacher(name)
    assert time.perf_counter() - started < 15  # open_clip and timm build the model first
