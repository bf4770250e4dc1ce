"""Run the official SparseFormer on the tiny state dicts of tests/helpers/official_state.py and keep what it computes.

    PYTHONPATH=tests/helpers python tests/golden/make.py CHECKOUT/sparseformer

CHECKOUT is a clone of https://github.com/showlab/sparseformer (f4484c4); see README.md beside this file.
"""

import sys
from pathlib import Path

import official_state as tiny
import torch
from safetensors.torch import save_file


def build(kind: str) -> torch.nn.Module:
    """Build the official model of a kind at the tiny size, float64, with the tiny state dict, strictly."""
    from sparseformer.config import make_btsp_attr, make_btsp_ops_list, make_clip_attr
    from sparseformer.modeling import SparseFormer

    model = SparseFormer(
        conv_dim=tiny.CHANNELS,
        num_latent_tokens=tiny.LATENTS,
        num_sampling_points=tiny.POINTS,
        cls_token_insert_layer=2,
        width_configs=[tiny.FOCUSING, tiny.WIDTH, *[tiny.WIDTH] * tiny.CORTEX_BLOCKS],
        repeats=[tiny.ITERATIONS, 1, *[1] * tiny.CORTEX_BLOCKS],
        ops_list=make_btsp_ops_list(tiny.CORTEX_BLOCKS),
        head_op="cls",
        proj_dim=tiny.PROJECTED,
        proj_bias=kind == "augreg",
        compatible_config=make_clip_attr() if kind == "clip" else make_btsp_attr(),
    )
    model.load_state_dict(tiny.make_state(kind), strict=True)
    return model.double().eval()


@torch.no_grad()
def compute(model: torch.nn.Module, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Give the embedding or logits, all tokens behind the last norm, and the last RoIs, float32."""
    model.debug_returns = False
    found = {"embedding": model(pixel_values.double())}
    model.debug_returns = True
    returned = model(pixel_values.double())
    found |= {"final_tokens_after_norm": returned["token_embedding"], "final_rois": returned["token_roi"]}
    return {name: value.float().contiguous() for name, value in found.items()}


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    for kind in tiny.KINDS:
        save_file(compute(build(kind), tiny.make_pixel_values()), Path(__file__).with_name(f"{kind}.safetensors"))
