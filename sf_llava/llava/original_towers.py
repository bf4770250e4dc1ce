"""The vision tower that an original LLaVA directory names: a CLIP or ``sparseformer:DIR``."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.image_processing_backends import PilBackend
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from sf_llava.configuration import SparseFormerConfig
from sf_llava.files import read_json_object
from sf_llava.llava.reading import has_cls
from sf_llava.model.loading import load_encoder
from sf_llava.weights.fit import describe_misfit
from sf_llava.weights.model_directory import check_json_files, check_model_directory, read_by_transformers, reason

PREFIX = "sparseformer:"
_VIT_L14 = dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    patch_size=14,
    projection_dim=768,
)
_KNOWN = {  # towers of LLaVA's own checkpoints, which often come without the tower's config
    "openai/clip-vit-large-patch14": _VIT_L14 | dict(image_size=224),
    "openai/clip-vit-large-patch14-336": _VIT_L14 | dict(image_size=336),
}


@dataclass
class NamedTower:
    """A vision tower that a LLaVA directory names, before its weights are needed.

    ``patch_size`` and the next number are the processor's.
    """

    name: str
    config: CLIPVisionConfig | SparseFormerConfig
    image_processor: PilBackend
    patch_size: int
    num_additional_image_tokens: int

    def strategy(self, feature: str) -> str:
        """Say in transformers' words which tokens are read where the package reads ``patch`` or ``cls_patch``.

        Raises:
            ValueError: an unknown feature, or CLS of a tower that has none.
        """
        if feature not in ("patch", "cls_patch"):
            raise ValueError(f"unknown mm_vision_select_feature {feature!r}; known: patch, cls_patch")
        if has_cls(self.config):
            return "default" if feature == "patch" else "full"
        if feature == "cls_patch":
            raise ValueError(f"mm_vision_select_feature is cls_patch but the tower {self.name} has no CLS")
        return "full"

    def num_tokens(self, strategy: str) -> int:
        """Count the tokens of one image under transformers' strategy ``default`` or ``full``."""
        patches = (self.config.image_size // self.patch_size) ** 2
        return patches + self.num_additional_image_tokens - (strategy == "default")

    def load_weights(self) -> dict[str, Tensor]:
        """Load the tower's own weights, for a LLaVA directory that comes without them."""
        if isinstance(self.config, SparseFormerConfig):
            return load_encoder(self.name.removeprefix(PREFIX)).state_dict()
        if Path(self.name).is_dir():
            check_model_directory(self.name)
        try:
            tower, report = CLIPVisionModel.from_pretrained(self.name, output_loading_info=True)
        except Exception as error:  # each weights format has errors of its own for a broken file
            raise ValueError(
                f"the directory has no weights of its vision tower and {self.name} cannot be loaded ({reason(error)}): "
                "name a local copy of the tower (`tower` DIR)"
            ) from error
        if misfit := describe_misfit(report["missing_keys"], misshaped=report["mismatched_keys"]):
            raise ValueError(f"{self.name} lacks weights of the vision tower: {misfit}")
        return tower.state_dict()


def describe_tower(name: str, directory: str, pad: bool) -> NamedTower:
    """Find config and image preprocessing of the tower called ``name``.

    Args:
        name: ``sparseformer:DIR``, a CLIP directory, or a hub name.
        directory: the LLaVA directory, for messages.
        pad: pad pictures to squares first, as LLaVA-1.5 does.
    """
    if name.startswith(PREFIX):
        where = Path(name.removeprefix(PREFIX))
        if not (where / "config.json").is_file():
            raise ValueError(f"{directory} names the tower {name}, but there is no config.json in {where}")
        check_json_files(where)
        with read_by_transformers(where / "config.json"):
            config = SparseFormerConfig.from_pretrained(where)
        processor = _build_processor(pad, config.image_size, config.image_mean, config.image_std)
        if config.resize_mode == "squash" and not pad:
            processor.size = type(processor.size)(height=config.image_size, width=config.image_size)
        return NamedTower(name, config, processor, config.image_size, config.num_tokens - 1)
    if name in _KNOWN and not Path(name).is_dir():
        config, fields = CLIPVisionConfig(**_KNOWN[name]), None
    else:
        check_json_files(name)
        _require_clip(Path(name) / "config.json")
        try:
            config = CLIPVisionConfig.from_pretrained(name)
        except Exception as error:  # nothing there, or values of other types
            raise ValueError(
                f"the vision tower {name} of {directory} is no local directory and cannot be loaded: name a local copy "
                "(`tower` DIR)"
            ) from error
        file = Path(name) / "preprocessor_config.json"
        with read_by_transformers(file):
            fields = CLIPImageProcessorPil.from_pretrained(name) if file.is_file() else None
    processor = _build_processor(pad, config.image_size)
    if fields is not None:
        for field in ("size", "crop_size", "image_mean", "image_std", "resample"):
            setattr(processor, field, getattr(fields, field))
    return NamedTower(name, config, processor, config.patch_size, 1)


def _require_clip(config: Path) -> None:
    """Refuse a local tower of another kind."""
    kind = read_json_object(config).get("model_type") if config.is_file() else "clip"
    if kind == SparseFormerConfig.model_type:
        raise ValueError(f"{config.parent} is a SparseFormer: name it {PREFIX}{config.parent}")
    if not str(kind).startswith("clip"):
        raise ValueError(f"{config.parent} is no CLIP vision tower: its config.json has model_type {kind!r}")


def _build_processor(pad: bool, side: int, *normalisation: tuple[float, ...]) -> PilBackend:
    fields = dict(zip(("image_mean", "image_std"), map(list, normalisation), strict=False))
    sizes = dict(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return LlavaImageProcessorPil(do_pad=True, **sizes, **fields) if pad else CLIPImageProcessorPil(**sizes, **fields)
