"""A teacher that reads a picture in tiles, as a LLaVA with tiles does, for a student that reads the whole of it.

Letters: B pictures, G tiles a side, S the teacher's input side in pixels, M its patches, C 1 where there is a CLS and 0
where there is none, D width.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from sf_llava.data.transforms import resize_pixels
from sf_llava.teachers.base import Teacher

_SAME = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps",
         "use_cls", "projection_dim", "num_classes", "has_text", "templates")  # fmt: skip


class TiledTeacher(Teacher):
    """A teacher of G S pixels and G^2 M patches a picture: what another one says of the G x G tiles of it.

    A patch token is that of its tile, at its place in the whole picture, in raster order. CLS and embedding are those
    of the whole picture, brought to S pixels.

    Args:
        teacher: reads the tiles.
        tiles: G.
    """

    def __init__(self, teacher: Teacher, tiles: int) -> None:
        size = tiles * teacher.image_size
        preprocessing = replace(teacher.preprocessing, image_size=size)
        super().__init__(teacher.name, size, teacher.patch_size, preprocessing)
        self.teacher, self.tiles = teacher, tiles
        for name in _SAME:
            setattr(self, name, getattr(teacher, name))
        self.freeze()

    def block_state_dict(self, index: int) -> dict[str, Tensor]:
        """Give those of the other teacher."""
        return self.teacher.block_state_dict(index)

    def head_state_dict(self) -> dict[str, Tensor]:
        """Give that of the other teacher."""
        return self.teacher.head_state_dict()

    def image_parameters(self) -> Iterable[Tensor]:
        """Iterate over the other teacher's."""
        return self.teacher.image_parameters()

    def encode_text(self, texts: list[str]) -> Tensor:
        """Embed texts as the other teacher does."""
        return self.teacher.encode_text(texts)

    @torch.no_grad()
    def tokens(self, pixel_values: Tensor, layer: int) -> Tensor:
        """Give ``hidden_states[layer]`` of (B, 3, G S, G S) pixels, (B, C + G^2 M, D)."""
        return self.cls_and_tokens(pixel_values, layer)[1]

    @torch.no_grad()
    def cls_and_tokens(self, pixel_values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Give what the other teacher takes from its last block for the whole picture, (B, D), and ``tokens``."""
        whole = resize_pixels(self._checked(pixel_values), self.teacher.image_size)
        cls, base = self.teacher.cls_and_tokens(whole, layer)
        tiles = self.teacher.tokens(cut(pixel_values, self.tiles), layer)
        patches = join(tiles[:, self.teacher.num_tokens - self.teacher.num_patches :], self.tiles)
        return cls, torch.cat([base[:, : self.use_cls], patches], dim=1)


def cut(pixel_values: Tensor, tiles: int) -> Tensor:
    """Cut pixels (B, 3, G S, G S) into tiles (B G^2, 3, S, S), a picture's row by row."""
    grid = pixel_values.unflatten(3, (tiles, -1)).unflatten(2, (tiles, -1))  # [B, 3, G, S, G, S]
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def by_tile(patches: Tensor, tiles: int) -> Tensor:
    """Sort patches (B, G^2 M, D) in raster order of whole pictures by their tiles, (B G^2, M, D)."""
    side = math.isqrt(patches.shape[1]) // tiles
    grid = patches.unflatten(1, (tiles, side, tiles, side))
    return grid.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def join(patches: Tensor, tiles: int) -> Tensor:
    """Put the patches (B G^2, M, D) of tiles in raster order of whole pictures, (B, G^2 M, D)."""
    side = math.isqrt(patches.shape[1])
    grid = patches.unflatten(1, (side, side)).unflatten(0, (-1, tiles, tiles))  # [B, G, G, side, side, D]
    return grid.transpose(2, 3).flatten(1, 4)
