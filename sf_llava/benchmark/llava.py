"""``sf-llava benchmark llava``: where the time of a LLaVA goes: tower, projector, prefill and one decoded token apart.

576 and 256 visual tokens come from CLIP ViT-L/14 at 336 and 224 px, 144, 128 and 64 from the SF-L that takes its place;
every tower stops at the layer that LLaVA reads ("blocks" counts those that ran). The language model has random weights
and the geometry of ``llm``; the prompt has ``TEXT_TOKENS`` text tokens. Memory: the tower's weights, and what it
allocates beside them at its peak.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from sf_llava.benchmark.timing import interleave, peak_memory
from sf_llava.configuration import preset
from sf_llava.extras import require
from sf_llava.model import SparseFormerModel
from sf_llava.model.cortex import CortexBlock
from sf_llava.report import device_kind, device_name, plot_parts, report, save

PARTS = ("tower", "projector", "prefill", "decode")
TEXT_TOKENS = 64
LAYER = -2
CLIP_BLOCKS = 24
LLMS = {  # width, hidden width, layers, heads
    "mini": (512, 1408, 4, 8),
    "1b": (2048, 5632, 22, 32),
    "7b": (4096, 11008, 32, 32),
    "13b": (5120, 13824, 40, 40),
}


@dataclass
class Tower:
    """A vision tower: its visual tokens, pixels, and preset (None: CLIP ViT-L/14)."""

    tokens: int
    image_size: int
    preset: str | None = None

    def build(self) -> nn.Module:
        """Build it with random weights in the default dtype, on the default device."""
        if self.preset is not None:
            config = preset(self.preset, num_latents=self.tokens)
            return SparseFormerModel(config).to(torch.get_default_dtype()).eval()
        config = CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=CLIP_BLOCKS + LAYER + 1,
            num_attention_heads=16,
            patch_size=14,
            image_size=self.image_size,
            projection_dim=768,
        )
        return CLIPVisionModel(config).eval()

    @property
    def name(self) -> str:
        return f"{'SF-L' if self.preset else 'CLIP L/14'} {self.image_size} px"


TOWERS = (
    Tower(576, 336),
    Tower(144, 336, "sf-l-clip-336"),
    Tower(256, 224),
    Tower(128, 224, "sf-l-clip-224"),
    Tower(64, 224, "sf-l-clip-224"),
)


def run(
    output: Path, llm: str, batch_size: int, device: str, dtype: str, repeats: int, seed: int
) -> list[dict[str, Any]]:
    """Time the parts behind every tower, print the table, write ``llava_LLM_KIND_DTYPE.json`` (after every row)."""
    require("the plot of this table", "matplotlib")
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
    rows = []
    with _building(device, dtype):
        language_model = LlamaForCausalLM(config).eval()
        projector = nn.Linear(1024, width)
    for tower in TOWERS:
        with _building(device, dtype):
            built = tower.build()
        rows.append(_measure(tower, built, projector, language_model, batch_size, device, repeats))
        file = f"llava_{llm}_{device_kind(device)}_{dtype}"
        path = save(output, file, device, rows, dtype=dtype, repeats=repeats, llm=llm, text_tokens=TEXT_TOKENS)
        plot_parts(path.with_suffix(".png"), rows, f"{device_name(device)}, {dtype}, {llm} language model")
    header = ["tower", "blocks", "visual tokens", "batch", *(f"{part} ms" for part in PARTS), "to first token ms"]
    header += ["weights MiB", "peak MiB", "KV cache MiB"]
    title = f"LLaVA with a {llm} language model, {TEXT_TOKENS} text tokens, {dtype}"
    report(title, header, [_cells(row) for row in rows], path)
    return rows


@contextmanager
def _building(device: str, dtype: str) -> Iterator[None]:
    """Make new weights on ``device`` in ``dtype``."""
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def _measure(
    tower: Tower,
    built: nn.Module,
    projector: nn.Module,
    llm: LlamaForCausalLM,
    batch: int,
    device: str,
    repeats: int,
) -> dict[str, Any]:
    dtype = next(projector.parameters()).dtype
    pixels = torch.randn(batch, 3, tower.image_size, tower.image_size, device=device, dtype=dtype)

    def see() -> Tensor:
        if tower.preset is None:
            return built(pixels).last_hidden_state[:, 1:]
        return built(pixels, output_hidden_states=LAYER).hidden_states[LAYER][:, 1:]

    with torch.inference_mode():
        ran, latents = _blocks_that_run(built, see)
        assert latents.shape[1] == tower.tokens
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
        peak = peak_memory(see, device)
    config = llm.config
    kv_bytes = 2 * batch * length * config.num_hidden_layers * config.hidden_size * dtype.itemsize
    return {
        "tower": tower.name,
        "blocks": ran,
        "visual_tokens": tower.tokens,
        "batch_size": batch,
        "parts": {part: timing.to_dict() for part, timing in timings.items()},
        "weight_bytes": sum(parameter.nbytes for parameter in built.parameters()),
        "peak_bytes": peak,
        "kv_cache_bytes": kv_bytes,
    }


def _blocks_that_run(tower: nn.Module, see: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """Count the transformer blocks that run in one call of ``see``; the RoIs' own block is not one of them."""
    ran: list[nn.Module] = []
    blocks = [module for module in tower.modules() if isinstance(module, CortexBlock | CLIPEncoderLayer)]
    handles = [block.register_forward_hook(lambda block, *_: ran.append(block)) for block in blocks]
    seen = see()
    for handle in handles:
        handle.remove()
    return len(ran), seen


def _cells(row: dict[str, Any]) -> list[str]:
    seconds = {part: row["parts"][part]["seconds"] for part in PARTS}
    first = seconds["tower"] + seconds["projector"] + seconds["prefill"]
    return [
        row["tower"],
        str(row["blocks"]),
        str(row["visual_tokens"]),
        str(row["batch_size"]),
        *(f"{seconds[part] * 1e3:.2f}" for part in PARTS),
        f"{first * 1e3:.2f}",
        *(f"{row[key] / 2**20:.1f}" for key in ("weight_bytes", "peak_bytes", "kv_cache_bytes")),
    ]
