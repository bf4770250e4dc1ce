"""``webdataset:`` at an address: training pictures out of tar shards that lie elsewhere, read from front to end.

    images = BootstrapStream(open_stream("webdataset:https://host/train-{000000..000999}.tar"), transform, seed=0)
    loader = DataLoader(images.batches(64, rank, world_size, start=0), batch_size=None, num_workers=4)

Each process that loads data has a lane: its share of the shards, dealt out anew in every pass by the seed, through a
shuffle buffer. A lane is endless and a function of (seed, lane, number of lanes), so a run resumes to the same pictures
by passing by, undecoded, those that it has seen. Which of a sample's pictures is its own is as in local shards.
Letters: B images, S pixels a side.
"""

import itertools
import random
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from sf_llava.data.images import CorruptImageError, decode, printable
from sf_llava.data.loading import choose_workers
from sf_llava.data.paths import expand_braces
from sf_llava.data.remote import RemoteError, RemoteFile, public_name
from sf_llava.data.sampler import generator_of
from sf_llava.data.tar_index import is_picture, key_of, own_pictures
from sf_llava.data.transforms import BootstrapTransform
from sf_llava.extras import require

SHUFFLE_BUFFER = 1000  # encoded pictures a lane holds to draw from


@dataclass(frozen=True)
class ShardStream:
    """Tar shards at addresses, of which nothing is known before they are read."""

    urls: tuple[str, ...]

    def choose_workers(self, asked: int | None, processes: int) -> int:
        """Say how many data loading processes each of ``processes`` gets; each needs a shard of its own.

        Raises:
            ValueError: more are asked for than there are shards.
        """
        most = len(self.urls) // processes
        workers = choose_workers(asked) if asked is not None else max(1, min(choose_workers(None), most))
        if max(1, workers) > most:
            raise ValueError(
                f"{len(self.urls)} shards are too few for {processes} processes x {max(1, workers)} `workers`, each of "
                "which reads its own: write more and smaller shards, or take fewer `workers` or processes"
            )
        return workers

    def read(self, url: str) -> Iterator[tuple[str, bytes]]:
        """Give name and encoded bytes of one shard's pictures, in order.

        Raises:
            RemoteError: it cannot be read.
            ValueError: it is no whole tar file.
        """
        from webdataset.tariterators import tar_file_iterator

        name = public_name(url)
        try:
            with RemoteFile(url) as file:
                members = tar_file_iterator(file, select_files=is_picture)
                for key, sample in itertools.groupby(members, lambda member: key_of(member["fname"])):
                    pictures = {member["fname"]: member["data"] for member in sample}
                    for own in own_pictures(key, list(pictures)):
                        yield printable(f"{name}:{own}"), pictures[own]
        except RemoteError:
            raise
        except (tarfile.TarError, ValueError, OverflowError, EOFError, OSError) as error:
            reason = str(error).partition(" @ ")[0]  # behind it webdataset tells the object that was read from
            raise ValueError(f"{name} is not a complete tar file ({reason}): write it again") from error

    def samples(self, lane: int, lanes: int, seed: int) -> Iterator[tuple[str, bytes]]:
        """Give one lane's pictures without end, shuffled.

        Raises:
            ValueError: its shards hold no pictures.
        """
        from webdataset.filters import shuffle

        key = int(generator_of(seed, lanes, lane).initial_seed())
        mixed = shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER, rng=random.Random(key))
        yield from mixed(self._passes(lane, lanes, seed))

    def _passes(self, lane: int, lanes: int, seed: int) -> Iterator[tuple[str, bytes]]:
        for number in itertools.count():
            order = torch.randperm(len(self.urls), generator=generator_of(seed, number)).tolist()
            own = [self.urls[place] for place in order[lane::lanes]]
            is_empty = True
            for sample in itertools.chain.from_iterable(map(self.read, own)):
                is_empty = False
                yield sample
            if is_empty:
                raise ValueError(f"there are no pictures in {', '.join(map(public_name, own[:3]))}")


def open_stream(where: str) -> ShardStream:
    """Name the shards at ``where``: an address, or several with braces; nothing is fetched.

    Raises:
        ValueError: an address of S3, and no ``aws`` command.
        ModuleNotFoundError: webdataset is not installed.
    """
    require("shards at an address", "webdataset")
    if where.startswith("s3://") and shutil.which("aws") is None:
        raise ValueError(f"{where} is read by the command aws, which is not installed; pipe:COMMAND takes another one")
    return ShardStream(tuple(expand_braces(where)))


class BootstrapStream:
    """Streamed pictures for bootstrapping; what ``BootstrapImages`` is for pictures that can be asked for by number.

    Args:
        source: the shards.
        transform: from an RGB picture and a generator to bytes.
        seed: of every random number.

    Raises:
        RemoteError, ValueError: the first shard cannot be read.
    """

    num_images = None

    def __init__(self, source: ShardStream, transform: BootstrapTransform, seed: int) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed
        next(source.read(source.urls[0]), None)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turn (B, S, S, 3) uint8 into ``pixel_values`` (B, 3, S, S) float32, on the device where they are."""
        return self.transform.preprocessing.normalise_pixels(pixels)

    def choose_workers(self, asked: int | None, processes: int) -> int:
        """Say how many data loading processes each of ``processes`` gets; see :meth:`ShardStream.choose_workers`."""
        return self.source.choose_workers(asked, processes)

    def batches(self, batch_size: int, rank: int, world_size: int, start: int) -> "StreamedBatches":
        """Give a process's batches from number ``start`` on; see :class:`StreamedBatches`."""
        return StreamedBatches(self, batch_size, rank, world_size, start)


@dataclass
class StreamedBatches(IterableDataset):
    """Whole batches (a loader's ``batch_size`` is None) of one process, in turn from its workers' lanes.

    A batch has the fields of ``bootstrap_images.collate``, every ``index`` -1. An unreadable picture is replaced by the
    next readable one of its batch, so that which pictures make up a batch does not hang on decoding.
    """

    images: BootstrapStream
    batch_size: int
    rank: int
    world_size: int
    start: int

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        turn = (self.start + number) % workers  # the loader asks worker 0 first, whatever number a batch has
        lane, lanes = self.rank * workers + turn, self.world_size * workers
        seen = len(range(turn, self.start, workers)) * self.batch_size
        samples = self.images.source.samples(lane, lanes, self.images.seed)
        next(itertools.islice(samples, seen, seen), None)
        for first in itertools.count(seen, self.batch_size):
            yield self._batch(list(itertools.islice(samples, self.batch_size)), lane, first)

    def _batch(self, samples: list[tuple[str, bytes]], lane: int, first: int) -> dict[str, Any]:
        views: list[Tensor] = []
        skipped: list[str] = []
        missing = 0  # since the last readable one
        for place, (name, data) in enumerate(samples, first):
            try:
                image = decode(data, name)
            except CorruptImageError as error:
                skipped.append(str(error))
                missing += 1
                continue
            view = self.images.transform(image, generator_of(self.images.seed, lane, place))
            views += [view] * (1 + missing)
            missing = 0
        if not views:
            raise ValueError(
                f"{len(skipped)} pictures in a row cannot be read: {'; '.join(skipped[:3])}"
                f"{' ...' if len(skipped) > 3 else ''}. Check the data set"
            )
        views += views[:1] * missing
        return {
            "pixels": torch.stack(views),
            "index": torch.full((len(views),), -1),
            "skipped": skipped,
        }
