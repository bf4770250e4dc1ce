"""The public ways into a LLaVA of transformers that hold for every release the package supports.

Letters: B prompts, L prompt tokens, V visual tokens of all prompts together, W width of the LLM.
"""

import inspect
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, LlavaForConditionalGeneration


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


def find_cache(values: Any) -> Cache | None:
    """Find the cache among the arguments of a call, whatever it is called there."""
    return next((value for value in values if isinstance(value, Cache)), None)
