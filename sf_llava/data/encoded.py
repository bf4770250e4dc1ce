"""The encoded bytes of a picture, wherever its source keeps them."""

from sf_llava.data.arrow import ArrowImages
from sf_llava.data.folder import FolderImages
from sf_llava.data.images import ImageSource
from sf_llava.data.joined import Joined
from sf_llava.data.shards import ShardImages
from sf_llava.data.subset import Subset


def read_encoded(source: ImageSource, index: int) -> bytes | None:
    """Read item ``index`` as it is stored; None where pictures are drawn.

    Raises:
        CorruptImageError: it cannot be read.
    """
    while isinstance(source, Subset | Joined):
        source, index = source.find(index)
    return source.read(index) if isinstance(source, FolderImages | ArrowImages | ShardImages) else None
