"""A segmenter: from pixels to class logits of a map; built for a run, saved as a directory, loaded strictly.

segmenter.json      what it is, its classes, its numbers
model.safetensors   all weights
encoder/            configuration of its SparseFormer, where it has one

Letters: B images, S side of a picture, h x w places of the map, L classes.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sf_llava import files
from sf_llava.configuration import SparseFormerConfig
from sf_llava.data.transforms import Preprocessing
from sf_llava.model import SparseFormerModel
from sf_llava.segmentation.backbones import LatentBackbone, PatchBackbone
from sf_llava.segmentation.head import HeadConfig, SegmentationHead
from sf_llava.segmentation.unet import UNet
from sf_llava.teachers import load_teacher
from sf_llava.weights.fit import find_misfit
from sf_llava.weights.tensor_files import read_state_dict, require_numbers

Backbone = Literal["student", "random", "teacher", "unet"]
BACKBONES = ("student", "random", "teacher", "unet")
FILE, WEIGHTS = "segmenter.json", "model.safetensors"


class TokenNet(nn.Module):
    """Backbone and head."""

    def __init__(self, backbone: LatentBackbone | PatchBackbone, num_classes: int, config: HeadConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = SegmentationHead(num_classes, backbone.width, backbone.channels, config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) to logits (B, H/4, W/4, L)."""
        return self.head(*self.backbone(pixel_values))


@dataclass(frozen=True)
class Segmenter:
    """A net and what has to be known to use it.

    Attributes:
        net: maps pixels (B, 3, H, W) to logits (B, h, w, L).
        backbone: what it stands on; ``student`` for every SparseFormer.
        class_names: L names.
        preprocessing: S of the training views, and how pixels are normalised.
        origin: what else is needed to build the net again: the teacher's name, the U-Net's width.
        head: numbers of the head, where there is one.
    """

    net: nn.Module
    backbone: Backbone
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    origin: dict[str, Any]
    head: HeadConfig | None = None

    def save(self, path: Path, state: dict[str, Tensor] | None = None) -> None:
        """Write a directory, whole or not at all; ``state`` where the weights had to be gathered from processes."""
        described = {
            "backbone": self.backbone,
            "class_names": list(self.class_names),
            "preprocessing": asdict(self.preprocessing),
            "origin": self.origin,
            "head": None if self.head is None else asdict(self.head),
        }
        tensors = {name: value.detach().cpu().clone() for name, value in (state or self.net.state_dict()).items()}

        def fill(directory: Path) -> None:
            files.write_json(directory / FILE, described)
            save_file(tensors, str(directory / WEIGHTS), metadata={"format": "pt"})
            if isinstance(self.net, TokenNet) and isinstance(self.net.backbone, LatentBackbone):
                self.net.backbone.encoder.config.save_pretrained(directory / "encoder")

        files.write_directory(path, fill)


def load_segmenter(path: str | Path, device: torch.device | str = "cpu") -> Segmenter:
    """Load a segmenter, or the one in a run's directory, in evaluation mode.

    Raises:
        ValueError: there is none, or its weights are damaged or do not fit what its file describes.
    """
    path = Path(path).expanduser()
    path = path / "segmenter" if (path / "segmenter" / FILE).is_file() else path
    if not (path / FILE).is_file():
        raise ValueError(
            f"no segmenter at {path}: expected {FILE} and {WEIGHTS}, as sf-llava segment train writes them"
        )
    described = files.read_json_object(path / FILE)
    try:
        classes = tuple(described["class_names"])
        preprocessing = Preprocessing(**described["preprocessing"])
        backbone, origin = described["backbone"], described["origin"]
        head = None if described["head"] is None else HeadConfig(**described["head"])
        net = _build(path, backbone, origin, len(classes), head)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path / FILE} describes no segmenter: {error}") from error
    state = read_state_dict(path / WEIGHTS)
    shapes = ({name: tuple(value.shape) for name, value in one.items()} for one in (net.state_dict(), state))
    if misfit := find_misfit(*shapes):
        raise ValueError(f"{path / WEIGHTS} does not fit {FILE} ({misfit})")
    require_numbers(state, path / WEIGHTS)
    net.load_state_dict(state)
    return Segmenter(net.to(device).eval(), backbone, classes, preprocessing, origin, head)


def _build(path: Path, backbone: str, origin: dict[str, Any], num_classes: int, head: HeadConfig | None) -> nn.Module:
    if backbone == "unet":
        return UNet(num_classes, origin["width"])
    if head is None or backbone not in BACKBONES:
        raise TypeError(f"backbone {backbone!r}, head {head}")
    if backbone == "teacher":
        return TokenNet(PatchBackbone(load_teacher(origin["teacher"])), num_classes, head)
    config = SparseFormerConfig.from_dict(files.read_json_object(path / "encoder" / "config.json"))
    return TokenNet(LatentBackbone(SparseFormerModel(config)), num_classes, head)
