"""Shards on a server: every picture once a pass, the same again from any step, and clear words when it fails."""

import gc
import io
import itertools
import tarfile
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from sf_llava.data import open_images, open_labelled, remote, streaming
from sf_llava.data.names import find_stream
from sf_llava.data.remote import RemoteError, RemoteFile
from sf_llava.data.streaming import BootstrapStream
from sf_llava.data.transforms import BootstrapTransform, Preprocessing

pytest.importorskip("webdataset", reason="shards at an address are read with it")
TRANSFORM = BootstrapTransform(Preprocessing(16, (0.5,) * 3, (0.25,) * 3))
PER_SHARD = 6


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def shard(number: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for place in range(PER_SHARD):
            name = f"{number}{place}"
            data = b"torn" if (number, place) == (1, 2) else png(10 * number + place)
            for member, content in ((f"{name}.cls", b"3"), (f"{name}.png", data), (f"{name}.mask.png", b"a mask")):
                entry = tarfile.TarInfo(member)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Gives shards; ``faults`` are statuses, or bytes after which it hangs up, one for each request in turn."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {f"/train-{number}.tar": shard(number) for number in range(4)}
        self.faults: list[int] = []
        self.asked: list[tuple[str, str | None]] = []
        self.knows_ranges = True
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Server = self.server
        wanted = self.headers.get("Range")
        server.asked.append((self.path, wanted))
        data = server.files.get(self.path.partition("?")[0])
        fault = server.faults.pop(0) if server.faults else None
        if data is None or fault in (403, 503):
            self.send_error(404 if data is None else fault)
            return
        first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.knows_ranges else 0
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        self.wfile.write(data[first:] if fault is None else data[first : first + fault])

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(streaming, "SHUFFLE_BUFFER", 5)
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    gc.collect()  # loaders of a failed read: their processes end while they are still answered
    server.shutdown()
    server.server_close()


def open_stream(server, pattern="train-{0..3}.tar"):
    return find_stream(f"webdataset:{server.address}/{pattern}")


def batches(server, count, workers=0, rank=0, world_size=1, start=0):
    stream = BootstrapStream(open_stream(server), TRANSFORM, seed=3).batches(4, rank, world_size, start)
    return list(itertools.islice(DataLoader(stream, batch_size=None, num_workers=workers), count))


def test_a_pass_holds_every_picture_once_shuffled_and_no_mask(server):
    stream = open_stream(server)
    names = [name for name, _ in itertools.islice(stream.samples(0, 1, 0), 4 * PER_SHARD * 10)]
    written = [f"{server.address}/train-{n}.tar:{n}{i}.png" for n in range(4) for i in range(PER_SHARD)]
    assert set(names) == set(written)
    assert set(Counter(names).values()) <= {9, 10, 11}  # what the buffer holds is of a neighbouring pass
    assert names[:24] != written and names[:24] != [name for name, _ in itertools.islice(stream.samples(0, 1, 1), 24)]


def test_lanes_share_the_shards_of_a_pass(server, monkeypatch):
    monkeypatch.setattr(streaming, "SHUFFLE_BUFFER", 1)
    stream = open_stream(server)
    lanes = [{name for name, _ in itertools.islice(stream.samples(lane, 2, 0), 2 * PER_SHARD)} for lane in range(2)]
    assert not lanes[0] & lanes[1] and len(lanes[0] | lanes[1]) == 4 * PER_SHARD


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_gives_the_batches_that_were_missing(server, workers):
    whole = batches(server, 7, workers)
    for start in (1, 4):
        for one, other in zip(whole[start:], batches(server, 7 - start, workers, start=start), strict=True):
            assert torch.equal(one["pixels"], other["pixels"]) and one["skipped"] == other["skipped"]
    first, second = (batches(server, 3, rank=rank, world_size=2) for rank in range(2))
    assert not any(torch.equal(one["pixels"], other["pixels"]) for one in first for other in second)


def test_an_unreadable_picture_is_replaced_and_named(server, monkeypatch):
    monkeypatch.setattr(streaming, "SHUFFLE_BUFFER", 1)
    server.files = {"/train-1.tar": shard(1)}
    stream = BootstrapStream(open_stream(server, "train-1.tar?signature=secret"), TRANSFORM, seed=0)
    (batch,) = itertools.islice(stream.batches(PER_SHARD, 0, 1, 0), 1)
    assert batch["skipped"] == [f"{server.address}/train-1.tar:12.png: not an image in a known format"]
    assert batch["pixels"].shape == (PER_SHARD, 16, 16, 3) and len(batch["pixels"].unique(dim=0)) == PER_SHARD - 1
    server.files["/train-1.tar"] = shard(1).replace(b"\x89PNG", b"\x89PNC")
    with pytest.raises(ValueError, match=r"6 pictures in a row cannot be read: .*png: not an image"):
        next(iter(stream.batches(PER_SHARD, 0, 1, 0)))


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_what_breaks_off_is_taken_up_where_it_was(server, knows_ranges):
    server.knows_ranges = knows_ranges
    server.faults = [503, 700, 503, 800] + ([] if knows_ranges else [1000])
    with RemoteFile(f"{server.address}/train-0.tar") as file:
        assert file.read() == server.files["/train-0.tar"]
    assert [wanted for _, wanted in server.asked][:3] == [None, None, "bytes=700-"]


@pytest.mark.parametrize(
    ("path", "faults", "said"),
    [
        ("train-9.tar", [], r"/train-9.tar cannot be read, at byte 0: HTTP Error 404"),
        ("train-0.tar?key=secret", [403], r"/train-0.tar cannot be read, at byte 0: HTTP Error 403"),
        ("train-0.tar", [503] * 5, r"/train-0.tar cannot be read in 5 attempts, at byte 0: HTTP Error 503"),
        (
            "train-0.tar",
            [900] + [0] * 5,
            r"in 5 attempts, at byte 900: the connection ended [0-9,]+ bytes early. Check",
        ),
    ],
)
def test_what_cannot_be_read_is_named_without_its_secrets(server, path, faults, said):
    server.faults = faults
    with pytest.raises(RemoteError, match=said) as error:
        list(open_stream(server, path).read(f"{server.address}/{path}"))
    assert "secret" not in str(error.value) and " @ " not in str(error.value)


def test_a_shard_that_is_damaged_or_gone_ends_the_stream(server):
    server.files["/train-2.tar"] = shard(2)[:2000]
    with pytest.raises(ValueError, match=r"train-2.tar is not a complete tar file \(unexpected end of data\)"):
        batches(server, 9)
    del server.files["/train-2.tar"]
    with pytest.raises(OSError, match=r"train-2.tar cannot be read, at byte 0: HTTP Error 404"):
        batches(server, 9)


def test_a_command_is_read_and_its_failure_told(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    (tmp_path / "0.tar").write_bytes(shard(0))
    stream = find_stream(f"webdataset:pipe:cat {tmp_path}/0.tar")
    assert len(list(stream.read(stream.urls[0]))) == PER_SHARD
    flag = tmp_path / "flag"  # a command that breaks off once
    command = (
        f"pipe:if [ -e {flag} ]; then cat {tmp_path}/0.tar; else touch {flag}; head -c 900 {tmp_path}/0.tar; exit 7; fi"
    )
    with RemoteFile(command) as file:
        assert file.read() == shard(0)
    with pytest.raises(RemoteError, match=r"pipe:exit 5 cannot be read in 5 attempts.*the command ended with status 5"):
        RemoteFile("pipe:exit 5").read()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"s3://bucket/a.tar is read by the command aws, which is not installed"):
        find_stream("webdataset:s3://bucket/a.tar")


def test_too_few_shards_are_an_error_and_the_default_fits_them(server, monkeypatch):
    stream = open_stream(server)
    monkeypatch.setattr(streaming, "choose_workers", lambda asked: 7 if asked is None else asked)
    assert [stream.choose_workers(None, processes) for processes in (1, 2, 4)] == [4, 2, 1]
    assert stream.choose_workers(0, 4) == 0 and stream.choose_workers(2, 2) == 2
    for asked, processes, said in [(5, 1, "1 processes x 5"), (None, 8, "8 processes x 1"), (0, 5, "5 processes x 1")]:
        with pytest.raises(ValueError, match=f"4 shards are too few for {said} `workers`"):
            stream.choose_workers(asked, processes)


@pytest.mark.parametrize("opener", [open_images, open_labelled])
def test_evaluation_needs_local_files(opener):
    with pytest.raises(ValueError, match=r"serves a bootstrap's training images alone; .* need local files"):
        opener("webdataset:https://host/val-{0..3}.tar")
