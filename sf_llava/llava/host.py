"""The public ways into a LLaVA of transformers that hold for every release the package supports.

Letters: B prompts, L prompt tokens, V visual tokens of all prompts together, W width of the LLM.
"""

import inspect
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import Cache, DynamicCache, LlavaForConditionalGeneration


def find_llava(model: Any, to_change: bool = False) -> LlavaForConditionalGeneration:
    """Take a LLaVA out of what is wrapped around it.

    Args:
        model: a LLaVA, or one in torch.compile's, DataParallel's or PEFT's wrapper.
        to_change: its modules will be exchanged, which a DistributedDataParallel or FSDP would not notice.

    Raises:
        ValueError: it is no such model, or the wrapper is none that can be looked through.
    """
    inner = unwrap(model)
    if not isinstance(inner, LlavaForConditionalGeneration):
        raise ValueError(_what_is_wrong(model, inner))
    if to_change and (isinstance(inner, FSDPModule) or isinstance(model, DistributedDataParallel)):
        name = "fully_shard" if isinstance(inner, FSDPModule) else type(model).__name__
        raise ValueError(
            f"the LLaVA is inside {name}, which goes on with the weights it was given: change the tower first, wrap "
            "then"
        )
    return inner


def unwrap(module: Any) -> Any:
    """Look through torch.compile, DataParallel, DistributedDataParallel and PEFT's adapters; their weights stay.

    Raises:
        ValueError: PEFT's adapters are virtual tokens, which live in the wrapper.
    """
    inner: Any = module
    while True:
        if isinstance(compiled := getattr(inner, "_orig_mod", None), nn.Module):  # torch's only name for it
            inner = compiled
        elif isinstance(inner, (nn.DataParallel, DistributedDataParallel)):
            inner = inner.module
        elif isinstance(inner, nn.Module) and hasattr(inner, "get_base_model") and hasattr(inner, "peft_config"):
            wrapper: Any = inner
            for adapter in wrapper.peft_config.values():
                if getattr(adapter, "is_prompt_learning", False):
                    raise ValueError(
                        f"the model is inside PEFT's {type(inner).__name__} with virtual tokens "
                        f"({type(adapter).__name__}), which are lost outside it: give the model without them"
                    )
            inner = wrapper.get_base_model()
        else:
            return inner


def kind_of(value: Any) -> str:
    """Name what was given, in a sentence about what was expected."""
    return "None" if value is None else type(value).__name__


def _what_is_wrong(model: Any, inner: Any) -> str:
    """Word what was given in place of a LLaVA."""
    expected = f"expected a LlavaForConditionalGeneration, not {kind_of(inner)}"
    if hasattr(getattr(inner, "config", None), "image_grid_pinpoints"):
        return f"{expected}: models that tile an image lay its tokens on a grid, which a SparseFormer does not have"
    parts = inner.modules() if isinstance(inner, nn.Module) else ()
    if any(isinstance(part, LlavaForConditionalGeneration) for part in parts):
        return f"{expected}: take the LLaVA out of this wrapper"
    return expected if inner is model else f"{expected} (in {type(model).__name__})"


def embed_prompts(model: LlavaForConditionalGeneration, input_ids: Tensor, features: Tensor) -> Tensor:
    """Embed prompts (B, L) with projected visual tokens (V, W) in the places of their image tokens: (B, L, W).

    Raises:
        ValueError: the prompts hold another number of image tokens.
    """
    embeds = model.get_input_embeddings()(input_ids)
    image = input_ids == model.config.image_token_id
    if (expected := int(image.sum())) != len(features):
        raise ValueError(f"the prompts hold {expected} image tokens but the pictures give {len(features)}")
    return embeds.masked_scatter(image[..., None], features.to(embeds.device, embeds.dtype))


def new_cache(model: LlavaForConditionalGeneration) -> dict[str, Cache]:
    """Make an empty cache of the LLM, under the name that ``model``'s forward has for it; the model fills it in place.

    Raises:
        RuntimeError: forward takes no cache by a name known here.
    """
    known = inspect.signature(model.forward).parameters
    for name in ("cache", "past_key_values"):  # transformers from 5.24, and before
        if name in known:
            return {name: DynamicCache(config=model.config.get_text_config())}
    raise RuntimeError(
        f"{type(model).__name__}.forward takes neither cache nor past_key_values: this release of transformers is not "
        "supported"
    )


def find_cache(values: Iterable[Any]) -> Cache | None:
    """Find the cache among the arguments of a call, whatever it is called there."""
    return next((value for value in values if isinstance(value, Cache)), None)
