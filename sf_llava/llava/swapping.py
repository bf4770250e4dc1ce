"""Put a SparseFormer in the place of a loaded LLaVA's vision tower, and take it out again.

    with swapped(model, processor, "path/to/encoder"):      # model.generate(...) sees through the SparseFormer
        ...                                                 # behind it the old tower is back, bit for bit

    record = swap(model, processor, "path/to/encoder")      # the same, for as long as you like
    restore(record)

Projector and LLM are left as they are: the encoder speaks the language of the tower it was bootstrapped from.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, ProcessorMixin

from sf_llava.configuration import SparseFormerConfig
from sf_llava.llava.families import family_of
from sf_llava.llava.fitting import Interface, check_fit, find_interface, find_layers
from sf_llava.llava.host import find_llava, kind_of, unwrap
from sf_llava.llava.preparing import fit_grid, fit_image_processor, fit_video_processor, fit_whole_grid
from sf_llava.llava.reading import layer_field, strategy_of
from sf_llava.llava.tokens import (
    check_processor,
    count_image_tokens,
    count_patches,
    fit_processor,
    keep_fields,
)
from sf_llava.model import SparseFormerModel
from sf_llava.model.loading import load_encoder


@dataclass
class Swap:
    """What :func:`restore` needs: the model as it was.

    ``encoder`` is the tower now in place, ``hooked`` whether swap let accelerate fetch its inputs.
    """

    model: LlavaForConditionalGeneration
    processor: ProcessorMixin
    encoder: SparseFormerModel
    tower: nn.Module
    interface: Interface
    training: bool
    hooked: bool
    classes: list[type]
    config_fields: dict[str, Any]
    processor_fields: dict[str, Any]
    tower_marks: dict[str, tuple[int, int]]
    units: list[Any]

    @property
    def vision_config(self) -> Any:
        """Configuration of the tower that was taken out."""
        return self.config_fields["vision_config"]

    @property
    def num_patches(self) -> int:
        """M, the patches of the tower that was taken out, which the LLM was trained with.

        Raises:
            ValueError: they cannot be counted, as of a tower that is a SparseFormer itself.
        """
        return count_patches(self.vision_config)


def swap(
    model: LlavaForConditionalGeneration,
    processor: ProcessorMixin,
    encoder: SparseFormerModel | str | Path,
    num_latents: int | None = None,
) -> Swap:
    """Replace the vision tower of ``model`` by ``encoder`` and tell ``processor`` the new size and token count.

    A LLaVA that cuts pictures into tiles, and its processor, become the classes of tiles.py, which lay tiles flat, or
    read a picture in one view where the encoder was bootstrapped to (``teacher_tiles`` of its configuration).

    Args:
        model: a loaded LLaVA of any family (families.py), in any precision, quantised or not, on one device or
            several; in the wrapper of torch.compile, DataParallel or PEFT it is changed inside.
        processor: its processor.
        encoder: a SparseFormer, or the directory of one or of its run. It is moved to the projector's device; one of
            another dtype than the projector computes in stays as it is, and a copy takes the tower's place.
        num_latents: N, for an elastic encoder; default: its own.

    Returns:
        The record that :func:`restore` takes.

    Raises:
        ValueError: model, processor or encoder are of another kind, or the encoder's CLS, width or number of layers
            does not fit; nothing has been changed then.
    """
    model = find_llava(model, to_change=True)
    family = family_of(model)
    assert family is not None, "find_llava has let it pass"
    interface = find_interface(model)
    encoder = _fetch_encoder(encoder, interface.dtype)
    if num_latents is not None:
        encoder = encoder.with_num_latents(num_latents)
    check_fit(encoder, model.config, interface.width)
    check_processor(processor, family.processor)
    config = model.config
    changes = _changes_of_config(encoder.config, config, has_tiles=family.flat is not None)
    images = fit_image_processor(processor, encoder.config, changes.get("image_grid_pinpoints"))
    videos = fit_video_processor(processor, encoder.config)
    encoder = _cast(encoder, interface.dtype)
    old_tower = model.model.vision_tower
    others = _mark(model, excluded=old_tower)
    record = Swap(
        model=model,
        processor=processor,
        encoder=encoder,
        tower=old_tower,
        interface=interface,
        training=model.training,
        hooked=interface.spread and not hasattr(encoder, "_hf_hook"),
        classes=[type(part) for part in _parts(model, processor)],
        config_fields={name: getattr(config, name) for name in changes},
        processor_fields=keep_fields(processor),
        tower_marks=_mark(old_tower),
        units=[part._no_split_modules for part in (model, model.model)],
    )
    encoder.to(interface.device)
    if record.hooked:
        add_hook_to_module(encoder, AlignDevicesHook(execution_device=interface.device))
    model.model.vision_tower = encoder
    for name, value in changes.items():
        setattr(config, name, value)
    fit_processor(processor, images, encoder.config, strategy_of(config), videos)
    if family.flat is not None:
        _become(model, processor, family.flat)
    _declare_units(model, old_tower, encoder)
    assert _mark(model, excluded=encoder) == others, "the swap touched weights outside the vision tower"
    return record


def _changes_of_config(encoder: SparseFormerConfig, config: Any, has_tiles: bool) -> dict[str, Any]:
    """Say what of a LLaVA's config becomes what, by name, with an encoder in place."""
    field, layers = layer_field(config), find_layers(encoder, config)
    changes: dict[str, Any] = {
        "vision_config": copy.deepcopy(encoder),
        field: layers[0] if isinstance(getattr(config, field), int) else layers,
    }
    if hasattr(config, "image_seq_length"):
        changes["image_seq_length"] = count_image_tokens(encoder, strategy_of(config))
    if has_tiles:
        grid, side, tiles = config.image_grid_pinpoints, config.vision_config.image_size, encoder.teacher_tiles
        changes["image_grid_pinpoints"] = (
            fit_grid(grid, encoder.image_size, side)
            if tiles == 1
            else fit_whole_grid(grid, encoder.image_size, side, tiles)
        )
    return changes


def _parts(model: LlavaForConditionalGeneration, processor: ProcessorMixin) -> tuple[Any, Any, Any, Any]:
    """What has a class of its own in a LLaVA that lays tiles flat, in the order of :class:`~.tiles.Flat`."""
    return model, model.model, model.config, processor


def _become(model: LlavaForConditionalGeneration, processor: ProcessorMixin, classes: Iterable[type]) -> None:
    """Change the classes of a LLaVA's parts, which hold the same data."""
    for part, new in zip(_parts(model, processor), classes, strict=True):
        part.__class__ = new


@contextmanager
def swapped(
    model: LlavaForConditionalGeneration,
    processor: ProcessorMixin,
    encoder: SparseFormerModel | str | Path,
    num_latents: int | None = None,
) -> Iterator[Swap]:
    """Look through ``encoder`` while the context is open; arguments and errors as of :func:`swap`.

    The old tower comes back whatever ends the block.

    Returns:
        Yields the record of the swap: ``encoder`` is the tower in place, ``num_patches`` are those of the other.
    """
    record = swap(model, processor, encoder, num_latents)
    try:
        yield record
    finally:
        restore(record)


def restore(record: Swap) -> None:
    """Put the original vision tower back; model and processor are then what they were before :func:`swap`.

    Where the model was cast, moved, or set to train or eval in the meantime, the tower follows.

    Raises:
        ValueError: the encoder of this swap is not the tower in place (restored already, or swapped once more), PEFT
            holds a copy of it, or the original tower was changed.
    """
    model, processor = record.model, record.processor
    find_llava(model, to_change=True)
    _check_in_place(model.model.vision_tower, record.encoder)
    if _mark(record.tower) != record.tower_marks:
        raise ValueError("the original vision tower was changed while it was out of the model: load the model again")
    _follow(record, find_interface(model))
    if record.hooked:
        remove_hook_from_module(record.encoder)
    model.model.vision_tower = record.tower
    _become(model, processor, record.classes)
    for name, value in record.config_fields.items():
        setattr(model.config, name, value)
    for part, units in zip((model, model.model), record.units, strict=True):
        part._no_split_modules = units
    for name, value in record.processor_fields.items():
        setattr(processor, name, value)


def _fetch_encoder(encoder: Any, dtype: torch.dtype) -> SparseFormerModel:
    """Load an encoder from a directory, or take a SparseFormer out of what is wrapped around it."""
    if isinstance(encoder, (str, Path)):
        return load_encoder(encoder, dtype=dtype)
    inner = unwrap(encoder)
    if not isinstance(inner, SparseFormerModel):
        raise ValueError(f"swap takes a SparseFormerModel or the directory of one, not {kind_of(encoder)}")
    return inner


def _cast(encoder: SparseFormerModel, dtype: torch.dtype) -> SparseFormerModel:
    """Give the encoder in ``dtype``, geometry in float32: itself, or a copy, so that the original loses no digit."""
    return encoder if encoder.dtype == dtype else copy.deepcopy(encoder).to(dtype)


def _declare_units(model: LlavaForConditionalGeneration, old: nn.Module, new: nn.Module) -> None:
    """Tell what stays whole when the model is sharded, as transformers does when a model is built with its tower."""
    gone, come = (set(getattr(tower, "_no_split_modules", None) or ()) for tower in (old, new))
    for part in (model, model.model):
        part._no_split_modules = (set(part._no_split_modules or ()) - gone) | come


def _check_in_place(tower: nn.Module, encoder: SparseFormerModel) -> None:
    """Check that the tower in a model is this encoder, wrapped or not."""
    if unwrap(tower) is encoder:
        return
    if any(part is encoder for part in tower.modules()):
        raise ValueError(
            f"the encoder is inside {type(tower).__name__}, which holds trained weights of its own: keep those, set "
            "record.model.model.vision_tower = record.encoder, then restore"
        )
    raise ValueError(
        "this swap is not in place: it was restored already, or a later swap must be restored first, or another tower "
        "was put there (with the swap's record: set record.model.model.vision_tower = record.encoder, then restore)"
    )


def _follow(record: Swap, now: Interface) -> None:
    """Cast and move the tower that was out of the model as the model was cast and moved since."""
    if now.dtype != record.interface.dtype:
        record.tower.to(now.dtype)
    if now.device != record.interface.device:
        record.tower.to(now.device)
    if record.model.training != record.training:
        record.tower.train(record.model.training)


def _mark(module: nn.Module, excluded: nn.Module | None = None) -> dict[str, tuple[int, int]]:
    """Mark every parameter and buffer by identity and by torch's count of in-place changes."""
    inside = {id(tensor) for tensor in _tensors(excluded).values()} if excluded is not None else set()
    return {
        name: (id(tensor), 0 if tensor.is_inference() else tensor._version)
        for name, tensor in _tensors(module).items()
        if id(tensor) not in inside
    }


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())
