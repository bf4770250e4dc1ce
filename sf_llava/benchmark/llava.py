"""``benchmark.py llava``: where the time of a LLaVA goes: tower, projector, prefill and one decoded token apart.

256 visual tokens come from CLIP ViT-L/14-224, 128 and 64 from SF-L; every tower stops at the layer that LLaVA reads.
The language model has random weights and the geometry of ``--llm``; the prompt has ``TEXT_TOKENS`` text tokens.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, DynamicCache, LlamaConfig, LlamaForCausalLM

from sf_llava.benchmark.report import print_table, save
from sf_llava.benchmark.timing import interleave
from sf_llava.configuration import preset
from sf_llava.model import SparseFormerModel

TEXT_TOKENS = 64
LAYER = -2
LLMS = {  # width, hidden width, layers, heads
    "mini": (512, 1408, 4, 8),
    "1b": (2048, 5632, 22, 32),
    "7b": (4096, 11008, 32, 32),
    "13b": (5120, 13824, 40, 40),
}


def run(
    output: Path, llm: str, batch_size: int, device: str, dtype: str, repeats: int, seed: int
) -> list[dict[str, Any]]:
    """Time the parts for 256, 128 and 64 visual tokens, print the table, write ``llava_LLM_DEVICE_DTYPE.json``."""
    torch.manual_seed(seed)
    width, hidden, layers, heads = LLMS[llm]
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=32000,
    )
    with torch.device(device):
        torch.set_default_dtype(getattr(torch, dtype))
        try:
            language_model = LlamaForCausalLM(config).eval()
            towers = {256: _clip(), 128: _sparseformer(128), 64: _sparseformer(64)}
            projector = nn.Linear(1024, width)
        finally:
            torch.set_default_dtype(torch.float32)
    rows = [_measure(*item, projector, language_model, batch_size, device, repeats) for item in towers.items()]
    parts = ["tower", "projector", "prefill", "decode"]
    header = ["visual tokens", "batch", *(f"{part} ms" for part in parts), "to first token ms", "KV cache MiB"]
    title = f"LLaVA with a {llm} language model, {TEXT_TOKENS} text tokens, {dtype}"
    print_table(title, header, [_cells(row, parts) for row in rows])
    name = f"llava_{llm}_{torch.device(device).type}_{dtype}"
    save(output, name, device, rows, dtype=dtype, repeats=repeats, llm=llm, text_tokens=TEXT_TOKENS)
    return rows


def _clip() -> CLIPVisionModel:
    """CLIP ViT-L/14-224 with random weights, cut behind LLaVA's layer."""
    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24 + LAYER + 1,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=768,
    )
    return CLIPVisionModel(config).eval()


def _sparseformer(num_latents: int) -> SparseFormerModel:
    return SparseFormerModel(preset("sf-l-clip-224", num_latents=num_latents)).to(torch.get_default_dtype()).eval()


def _measure(
    tokens: int, tower: nn.Module, projector: nn.Module, llm: LlamaForCausalLM, batch: int, device: str, repeats: int
) -> dict[str, Any]:
    dtype = projector.weight.dtype
    pixels = torch.randn(batch, 3, 224, 224, device=device, dtype=dtype)

    def see() -> Tensor:
        if isinstance(tower, SparseFormerModel):
            return tower(pixels, output_hidden_states=LAYER).hidden_states[LAYER][:, 1:]
        return tower(pixels).last_hidden_state[:, 1:]

    with torch.inference_mode():
        latents = see()
        assert latents.shape[1] == tokens
        visual = projector(latents)
        text = torch.randn(batch, TEXT_TOKENS, visual.shape[-1], device=device, dtype=dtype)
        prompt = torch.cat([visual, text], dim=1)
        cache = llm(inputs_embeds=prompt, use_cache=True, logits_to_keep=1).past_key_values
        length = cache.get_seq_length()

        def decode() -> None:
            llm(inputs_embeds=text[:, :1], past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.crop(-1)

        functions = {
            "tower": see,
            "projector": lambda: projector(latents),
            "prefill": lambda: llm(
                inputs_embeds=prompt, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1
            ),
            "decode": decode,
        }
        timings = interleave(functions, device, repeats)
    config = llm.config
    kv_bytes = 2 * batch * length * config.num_hidden_layers * config.hidden_size * dtype.itemsize
    return {
        "visual_tokens": tokens,
        "batch_size": batch,
        "parts": {part: timing.to_dict() for part, timing in timings.items()},
        "kv_cache_bytes": kv_bytes,
    }


def _cells(row: dict[str, Any], parts: list[str]) -> list[str]:
    seconds = {part: row["parts"][part]["seconds"] for part in parts}
    first = seconds["tower"] + seconds["projector"] + seconds["prefill"]
    return [
        str(row["visual_tokens"]),
        str(row["batch_size"]),
        *(f"{seconds[part] * 1e3:.2f}" for part in parts),
        f"{first * 1e3:.2f}",
        f"{row['kv_cache_bytes'] / 2**20:.1f}",
    ]
