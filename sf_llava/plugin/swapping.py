"""Put a SparseFormer in the place of a loaded LLaVA's vision tower, and take it out again.

    swapped = swap(model, processor, "path/to/encoder")     # model.generate(...) now sees through the SparseFormer
    restore(swapped)                                        # the old tower is back, bit for bit

Projector and LLM are left as they are: the encoder speaks the language of the CLIP it was bootstrapped from.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from sf_llava.checkpoints.encoder import load_encoder
from sf_llava.model import SparseFormerModel
from sf_llava.plugin.tokens import count_image_tokens, fit_processor

_PROCESSOR_FIELDS = ("image_processor", "patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")


@dataclass
class Swap:
    """What :func:`restore` needs: the model as it was. ``encoder`` is the tower now in place."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    encoder: SparseFormerModel
    tower: nn.Module
    vision_config: Any
    image_seq_length: int
    processor_fields: dict[str, Any]
    tower_marks: dict[str, tuple[int, int]]


def swap(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, encoder: SparseFormerModel | str | Path
) -> Swap:
    """Replace the vision tower of ``model`` by ``encoder`` and tell ``processor`` the new size and token count.

    Args:
        model: a loaded LLaVA, in any precision, quantised or not, on one device or several.
        processor: its processor.
        encoder: a SparseFormer, or the directory of one or of its run, which is then loaded in the projector's dtype.

    Returns:
        The record that :func:`restore` takes.

    Raises:
        ValueError: the encoder's width, dtype or number of layers does not fit; nothing has been changed then.
    """
    if not isinstance(model, LlavaForConditionalGeneration):
        raise ValueError(
            f"swap takes a LlavaForConditionalGeneration, not a {type(model).__name__} (models that tile an image lay "
            "its tokens on a grid, which a SparseFormer does not have)"
        )
    projector = next(layer for layer in model.model.multi_modal_projector.modules() if isinstance(layer, nn.Linear))
    if not isinstance(encoder, SparseFormerModel):
        encoder = load_encoder(encoder, dtype=projector.weight.dtype)
    check_fit(encoder, model.config, projector)
    old_tower = model.model.vision_tower
    others = _mark(model, excluded=old_tower)
    swapped = Swap(
        model=model,
        processor=processor,
        encoder=encoder,
        tower=old_tower,
        vision_config=model.config.vision_config,
        image_seq_length=model.config.image_seq_length,
        processor_fields={name: getattr(processor, name) for name in _PROCESSOR_FIELDS},
        tower_marks=_mark(old_tower),
    )
    strategy = model.config.vision_feature_select_strategy
    _place(encoder, projector)
    model.model.vision_tower = encoder
    model.config.vision_config = copy.deepcopy(encoder.config)
    model.config.image_seq_length = count_image_tokens(encoder.config, strategy)
    fit_processor(processor, encoder.config, strategy)
    assert _mark(model, excluded=encoder) == others, "the swap touched weights outside the vision tower"
    return swapped


def restore(swapped: Swap) -> None:
    """Put the original vision tower back; model and processor are then what they were before :func:`swap`.

    Raises:
        ValueError: the encoder of this swap is not the tower in place (restored already, or swapped once more).
    """
    model, processor = swapped.model, swapped.processor
    if model.model.vision_tower is not swapped.encoder:
        raise ValueError("this swap is not in place: it was restored already, or a later swap must be restored first")
    if _mark(swapped.tower) != swapped.tower_marks:
        raise ValueError("the original vision tower was changed while it was out of the model: load the model again")
    _release(swapped.encoder)
    model.model.vision_tower = swapped.tower
    model.config.vision_config = swapped.vision_config
    model.config.image_seq_length = swapped.image_seq_length
    for name, value in swapped.processor_fields.items():
        setattr(processor, name, value)


def check_fit(encoder: SparseFormerModel, config: Any, projector: nn.Linear) -> None:
    """Check width, layer and dtype of an encoder against a LLaVA's config and the first layer of its projector."""
    layers = config.vision_feature_layer
    layers = [layers] if isinstance(layers, int) else list(layers)
    width = encoder.config.hidden_size * len(layers)
    if width != projector.in_features:
        raise ValueError(
            f"the projector takes {projector.in_features} channels but the encoder gives {width} "
            f"(hidden_size {encoder.config.hidden_size}, {len(layers)} layer(s)): bootstrap an encoder from the CLIP "
            "that this LLaVA was trained with"
        )
    num_states = encoder.config.num_hidden_layers + 1
    for layer in layers:
        if not -num_states <= layer < num_states:
            raise ValueError(
                f"the model reads hidden state {layer} of its vision tower but the encoder has {num_states} "
                f"(its input and {num_states - 1} layers)"
            )
    dtype, wanted = encoder.cls_token.dtype, projector.weight.dtype
    if dtype != wanted:
        raise ValueError(
            f"the projector is {wanted} but the encoder is {dtype}: load the encoder with dtype={wanted} (or give its "
            "path to swap)"
        )


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


def _place(encoder: SparseFormerModel, projector: nn.Linear) -> None:
    """Move the encoder to the projector's device; in a model spread over devices, fetch its inputs there too."""
    hook = getattr(projector, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    encoder.to(projector.weight.device if device is None else device)
    if device is not None:
        from accelerate.hooks import AlignDevicesHook, add_hook_to_module

        add_hook_to_module(encoder, AlignDevicesHook(execution_device=device))


def _release(encoder: SparseFormerModel) -> None:
    """Take off the hook that :func:`_place` may have put on."""
    if hasattr(encoder, "_hf_hook"):
        from accelerate.hooks import remove_hook_from_module

        remove_hook_from_module(encoder)
