"""Put a SparseFormer in the place of a loaded LLaVA's vision tower, and take it out again.

    with swapped(model, processor, "path/to/encoder"):      # model.generate(...) sees through the SparseFormer
        ...                                                 # behind it the old tower is back, bit for bit

    record = swap(model, processor, "path/to/encoder")      # the same, for as long as you like
    restore(record)

Projector and LLM are left as they are: the encoder speaks the language of the tower it was bootstrapped from.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from sf_llava.configuration import SparseFormerConfig
from sf_llava.llava.host import find_llava, kind_of, unwrap
from sf_llava.llava.reading import has_cls
from sf_llava.llava.tokens import (
    PROCESSOR_FIELDS,
    check_strategy,
    count_image_tokens,
    count_patches,
    fit_image_processor,
    fit_processor,
)
from sf_llava.model import SparseFormerModel
from sf_llava.model.loading import load_encoder


class Interface(NamedTuple):
    """What a tower's tokens meet in a LLaVA.

    Attributes:
        width: channels that the projector takes.
        dtype: in which it computes.
        device: where.
        spread: whether accelerate fetches its inputs there, as in a model spread over devices.
    """

    width: int
    dtype: torch.dtype
    device: torch.device
    spread: bool


@dataclass
class Swap:
    """What :func:`restore` needs: the model as it was.

    ``encoder`` is the tower now in place, ``hooked`` whether swap let accelerate fetch its inputs.
    """

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    encoder: SparseFormerModel
    tower: nn.Module
    interface: Interface
    training: bool
    hooked: bool
    vision_config: Any
    vision_feature_layer: int | list[int]
    image_seq_length: int
    processor_fields: dict[str, Any]
    tower_marks: dict[str, tuple[int, int]]
    units: list[Any]

    @property
    def num_patches(self) -> int:
        """M, the patches of the tower that was taken out, which the LLM was trained with.

        Raises:
            ValueError: they cannot be counted, as of a tower that is a SparseFormer itself.
        """
        return count_patches(self.vision_config)


def swap(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    encoder: SparseFormerModel | str | Path,
    num_latents: int | None = None,
) -> Swap:
    """Replace the vision tower of ``model`` by ``encoder`` and tell ``processor`` the new size and token count.

    Args:
        model: a loaded LLaVA, in any precision, quantised or not, on one device or several; in the wrapper of
            torch.compile, DataParallel or PEFT it is changed inside.
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
    interface = find_interface(model)
    encoder = _fetch_encoder(encoder, interface.dtype)
    if num_latents is not None:
        encoder = encoder.with_num_latents(num_latents)
    check_fit(encoder, model.config, interface.width)
    images = fit_image_processor(processor, encoder.config)
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
        vision_config=model.config.vision_config,
        vision_feature_layer=model.config.vision_feature_layer,
        image_seq_length=model.config.image_seq_length,
        processor_fields={name: getattr(processor, name) for name in PROCESSOR_FIELDS},
        tower_marks=_mark(old_tower),
        units=[part._no_split_modules for part in (model, model.model)],
    )
    strategy = model.config.vision_feature_select_strategy
    layers = find_layers(encoder.config, model.config)
    encoder.to(interface.device)
    if record.hooked:
        add_hook_to_module(encoder, AlignDevicesHook(execution_device=interface.device))
    model.model.vision_tower = encoder
    model.config.vision_config = copy.deepcopy(encoder.config)
    model.config.vision_feature_layer = layers[0] if isinstance(model.config.vision_feature_layer, int) else layers
    model.config.image_seq_length = count_image_tokens(encoder.config, strategy)
    fit_processor(processor, images, encoder.config, strategy)
    _declare_units(model, old_tower, encoder)
    assert _mark(model, excluded=encoder) == others, "the swap touched weights outside the vision tower"
    return record


@contextmanager
def swapped(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
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
    model.config.vision_config = record.vision_config
    model.config.vision_feature_layer = record.vision_feature_layer
    model.config.image_seq_length = record.image_seq_length
    for part, units in zip((model, model.model), record.units, strict=True):
        part._no_split_modules = units
    for name, value in record.processor_fields.items():
        setattr(processor, name, value)


def find_interface(model: LlavaForConditionalGeneration) -> Interface:
    """Find what the projector takes, in which precision it computes, and where.

    A quantised projector stores integers; it computes in the precision of what is never quantised, the embeddings.

    Raises:
        ValueError: a projector without a linear layer.
    """
    layers = [layer for layer in model.model.multi_modal_projector.modules() if hasattr(layer, "in_features")]
    if not layers:
        name = type(model.model.multi_modal_projector).__name__
        raise ValueError(f"the projector, a {name}, has no linear layer: which tokens it takes is not known")
    weights = [layer.weight for layer in layers if isinstance(getattr(layer, "weight", None), Tensor)]
    plain = [weight.dtype for weight in weights if weight.dtype.is_floating_point and weight.dtype.itemsize > 1]
    words = model.get_input_embeddings().weight
    hook = getattr(layers[0], "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return Interface(
        width=layers[0].in_features,
        dtype=plain[0] if plain else words.dtype,
        device=next(iter([*layers[0].parameters(), words])).device if device is None else torch.device(device),
        spread=device is not None,
    )


def check_fit(encoder: SparseFormerModel, config: Any, width: int) -> None:
    """Check an encoder against a LLaVA's config and the channels that its projector takes: CLS, width, layers.

    Raises:
        ValueError: it does not fit; the message says which encoder would.
    """
    if (with_cls := has_cls(config.vision_config)) != encoder.config.use_cls:
        towers, encoders = ("CLS", "none") if with_cls else ("no CLS", "one")
        raise ValueError(
            f"the vision tower of this LLaVA ({config.vision_config.model_type}) has {towers} but the encoder has "
            f"{encoders}: bootstrap an encoder from the tower that this LLaVA was trained with"
        )
    check_strategy(encoder.config, config.vision_feature_select_strategy)
    layers = find_layers(encoder.config, config)
    given = encoder.config.hidden_size * len(layers)
    if given != width:
        raise ValueError(
            f"the projector takes {width} channels but the encoder gives {given} "
            f"(hidden_size {encoder.config.hidden_size}, {len(layers)} layer(s)): bootstrap an encoder from the tower "
            "that this LLaVA was trained with"
        )
    known = encoder.config.hidden_state_layers
    for layer in layers:
        if layer not in known:
            raise ValueError(
                f"the model reads hidden state {layer} of its vision tower but the encoder has {known.stop} "
                f"(its input and {known[-1]} layers)"
            )


def find_layers(encoder: SparseFormerConfig, config: Any) -> list[int]:
    """Find the encoder's hidden states that stand for those which a LLaVA reads of its own tower.

    The cortex is the end of the teacher, so states count from the end. A LLaVA may hold its tower without the last
    blocks (a SigLIP of 26 blocks of 27, read at -1); then the same state has another number in the encoder.

    Args:
        encoder: configuration of the encoder.
        config: of the LLaVA, its own tower's in it.

    Returns:
        A layer for each that is read, as ``output_hidden_states`` takes them.

    Raises:
        ValueError: the LLaVA reads its tower behind more blocks than the encoder's teacher has.
    """
    layers = config.vision_feature_layer
    layers = [layers] if isinstance(layers, int) else list(layers)
    depth = getattr(config.vision_config, "num_hidden_layers", None)
    if not encoder.num_teacher_layers or depth is None or isinstance(config.vision_config, SparseFormerConfig):
        return layers
    blocks = [layer if layer >= 0 else layer + depth + 1 for layer in layers]  # in front of the state
    if max(blocks) > encoder.num_teacher_layers:
        raise ValueError(
            f"the model reads its vision tower behind block {max(blocks)}, but the encoder's teacher has "
            f"{encoder.num_teacher_layers}: bootstrap an encoder from the tower that this LLaVA was trained with"
        )
    return [count - encoder.num_teacher_layers - 1 for count in blocks]


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
