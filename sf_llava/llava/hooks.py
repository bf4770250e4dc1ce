"""Hooks before a LLaVA's LLM: an attention bias from text to latents, and prompts laid out in another way.

They see the call that every LLM of transformers takes (``inputs_embeds``, ``attention_mask``, ``position_ids``) and
find the cache by its type. What they cannot see for certain they do not guess: they raise.

Letters: B prompts, L prompt tokens, R rows of a call (B, or B times as many for beams and samples), Q its tokens, K
keys that they attend to, W width.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from sf_llava.llava.host import find_cache, find_llava

ATTENTION = ("eager", "sdpa")  # kernels that take an additive mask
FULL, SLIDING = "full_attention", "sliding_attention"


class _Call:
    """One call of the LLM: its embeddings (R, Q, W), and how many tokens the cache held before."""

    def __init__(self, arguments: Mapping[str, Any], args: tuple, prompt_length: int) -> None:
        embeds = arguments.get("inputs_embeds")
        if not isinstance(embeds, Tensor) or embeds.ndim != 3:
            raise RuntimeError(
                "the LLM was called without inputs_embeds of three dimensions, so its latents cannot be found: this "
                "release of transformers is not supported"
            )
        self.embeds, self.length = embeds, embeds.shape[1]
        self.cache = find_cache((*args, *arguments.values()))
        if self.cache is None and self.length < prompt_length:
            raise ValueError(
                f"the LLM was asked to read {self.length} tokens without a cache, but the prompts have "
                f"{prompt_length}: where their latents are is not known; generate without this option (guidance_scale?)"
            )
        self.start = 0 if self.cache is None else int(self.cache.get_seq_length())

    def count_keys(self, config: Any) -> int:
        """Count K, which must be the same in all layers.

        Raises:
            ValueError: layers that attend in other ways, a window that is exceeded.
        """
        layers = getattr(config, "num_hidden_layers", 1)
        sizes = {(self.length, 0)}
        if self.cache is not None:
            sizes = {tuple(self.cache.get_mask_sizes(self.length, layer)) for layer in range(layers)}
        window = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or ()) - {FULL, SLIDING}
        if kinds or len(sizes) > 1 or next(iter(sizes))[1] or (window and self.start + self.length > window):
            raise ValueError(
                "an attention bias needs an LLM whose layers all attend to all earlier tokens; here they attend by "
                f"{', '.join(sorted(kinds)) or f'a window of {window} tokens'} to {sorted(sizes)} keys"
            )
        return int(next(iter(sizes))[0])

    def of_rows(self, prompts: Tensor) -> Tensor:
        """Repeat what belongs to prompts (B, ...) for the rows of this call (R, ...): those of a prompt are neighbours.

        Raises:
            ValueError: R is no multiple of B.
        """
        rows = len(self.embeds)
        if rows % len(prompts):
            raise ValueError(f"the LLM was asked about {rows} rows, which is no multiple of {len(prompts)} prompts")
        return prompts.to(self.embeds.device).repeat_interleave(rows // len(prompts), dim=0)


@contextmanager
def weigh_latents(model: LlavaForConditionalGeneration, latents: Tensor, bias: float) -> Iterator[None]:
    """Add ``bias`` to all attention scores of the LLM from text to latents, while the context is open.

    Args:
        model: its LLM attends by ``eager`` or ``sdpa``.
        latents: (B, L) bool, which tokens of the prompts are latents; everything generated behind them is text.
        bias: added to the scores before the softmax.

    Raises:
        ValueError: another attention kernel, or layers that do not attend to all earlier tokens.
        RuntimeError: the LLM was never called through the hook, so the bias was not applied.
    """
    llm: nn.Module = find_llava(model).model.language_model
    kernel = getattr(llm.config, "_attn_implementation", None)  # transformers has a public setter alone
    if kernel not in ATTENTION:
        raise ValueError(
            f"the LLM's attention is {kernel!r}, which takes no additive mask: load the model with "
            f"attn_implementation {' or '.join(ATTENTION)}"
        )
    calls = 0

    def widen_mask(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        nonlocal calls
        calls += 1
        call = _Call(kwargs, args, latents.shape[1])
        keys, device = call.count_keys(llm.config), call.embeds.device
        query = call.start + torch.arange(call.length, device=device)
        key = torch.arange(keys, device=device)
        size = max(keys, call.start + call.length) - latents.shape[1]
        is_latent = F.pad(call.of_rows(latents), (0, max(size, 0)))  # [R, K]; behind the prompt stands text
        scores = torch.where(is_latent[:, None, :keys] & ~is_latent[:, query, None], bias, 0.0)[:, None]  # [R, 1, Q, K]
        plain = _additive(kwargs.get("attention_mask"), key <= query[:, None], call)
        mask = (plain + scores.to(plain.dtype)).clamp(min=torch.finfo(plain.dtype).min)
        return args, kwargs | {"attention_mask": mask}

    with _before(llm, widen_mask):
        yield
    if not calls:
        raise RuntimeError("the attention bias was not applied: the LLM was not called through its hook")


@contextmanager
def _before(module: nn.Module, hook: Callable[..., Any], **options: Any) -> Iterator[None]:
    """Call a hook before every call of ``module``. Compiled code would not look for it, so it runs uncompiled."""
    handle = module.register_forward_pre_hook(hook, with_kwargs=True, **options)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        handle.remove()


def _additive(given: Any, causal: Tensor, call: _Call) -> Tensor:
    """Make the mask that the LLM was called with additive, (R, 1, Q, K) in the embeddings' dtype.

    Args:
        given: None, (R, keys so far), or (R, 1, Q, K), bool or additive.
        causal: (Q, K) bool, which keys a query may attend to at all.
        call: its rows and tokens.

    Raises:
        ValueError: a mask of another kind.
    """
    dtype, shape = call.embeds.dtype, (len(call.embeds), 1, *causal.shape)
    plain = torch.zeros(shape, dtype=dtype, device=causal.device)
    allowed = causal
    if isinstance(given, Tensor) and given.ndim == 2 and given.shape[1] >= call.start + call.length:
        given = given.to(causal.device).bool()[:, : causal.shape[1]]
        allowed = causal & F.pad(given, (0, causal.shape[1] - given.shape[1]))[:, None, None, :]
    elif isinstance(given, Tensor) and given.ndim == 4 and given.shape[2:] == shape[2:]:
        given = given.to(causal.device)
        allowed = causal & given if given.dtype == torch.bool else causal
        plain = plain if given.dtype == torch.bool else plain + given.to(dtype)
    elif given is not None:
        found = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(
            f"an attention bias needs a mask (rows, tokens) or {shape}, but the LLM was called with {found}: generate "
            "without this option"
        )
    return plain.masked_fill(~allowed, torch.finfo(dtype).min)


@contextmanager
def read_prompts(
    model: LlavaForConditionalGeneration, words: Tensor, embeds: Tensor, positions: Tensor
) -> Iterator[None]:
    """Let the LLM read other embeddings and positions for its prompts, while the context is open.

    Args:
        model: it is asked about prompts whose tokens embed as ``words``; what follows is counted on from ``positions``.
        words: (B, L, W) what the LLM would read.
        embeds: (B, L, W) what it reads.
        positions: (B, L) int64, where.

    Raises:
        ValueError: the LLM is called with other tokens than the prompts', before it has read all of them.
    """
    llm: nn.Module = find_llava(model).model.language_model
    length = words.shape[1]

    def replace(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        call = _Call(kwargs, args, length)
        stop = call.start + call.length
        read = call.embeds
        if call.start < length:
            expected = call.of_rows(words)[:, call.start : stop]
            if not torch.equal(read[:, : length - call.start], expected):
                raise ValueError(
                    "the LLM was called with other tokens than the prompts' (guidance_scale, or adapters with virtual "
                    "tokens?): latents cannot stand among them; generate without this option"
                )
            read = torch.cat([call.of_rows(embeds)[:, call.start : stop], read[:, length - call.start :]], dim=1)
        behind = positions[:, -1:] + 1 + torch.arange(max(stop - length, 0), device=positions.device)
        numbers = call.of_rows(torch.cat([positions, behind], dim=1))[:, call.start : stop]
        return args, kwargs | {"inputs_embeds": read, "position_ids": numbers}

    with _before(llm, replace, prepend=True):
        yield
