"""Whether an encoder fits a LLaVA: the width, precision and device of its projector, CLS, and the layers it reads."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from sf_llava.configuration import SparseFormerConfig
from sf_llava.llava.reading import blocks_read, has_cls, layers_read, strategy_of
from sf_llava.llava.tokens import check_strategy
from sf_llava.model import SparseFormerModel


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
    """Check an encoder against a LLaVA's config and the channels that its projector takes: CLS, tiles, width, layers.

    Raises:
        ValueError: it does not fit; the message says which encoder would.
    """
    if (with_cls := has_cls(config.vision_config)) != encoder.config.use_cls:
        towers, encoders = ("CLS", "none") if with_cls else ("no CLS", "one")
        raise ValueError(
            f"the vision tower of this LLaVA ({config.vision_config.model_type}) has {towers} but the encoder has "
            f"{encoders}: bootstrap an encoder from the tower that this LLaVA was trained with"
        )
    if (tiles := encoder.config.teacher_tiles) > 1 and not hasattr(config, "image_grid_pinpoints"):
        raise ValueError(
            f"the encoder reads pictures in place of {tiles} x {tiles} tiles, but this LLaVA was trained to read a "
            "picture as one view: bootstrap an encoder without `tiles`"
        )
    check_strategy(encoder.config, strategy_of(config))
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
    depth = getattr(config.vision_config, "num_hidden_layers", None)
    if depth is None or isinstance(config.vision_config, SparseFormerConfig):
        return layers_read(config)
    blocks = blocks_read(config)
    num_teacher_layers = encoder.num_teacher_layers or depth  # not known of old encoders
    if max(blocks) > num_teacher_layers:
        raise ValueError(
            f"the model reads its vision tower behind block {max(blocks)}, but the encoder's teacher has "
            f"{num_teacher_layers}: bootstrap an encoder from the tower that this LLaVA was trained with"
        )
    return [count - num_teacher_layers - 1 for count in blocks]
