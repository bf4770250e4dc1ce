"""The video model of SparseFormer v1: RoIs in space and time, made from the model of pictures.

The authors' video code starts so too; weights trained on clips were not released.
"""

import torch
from torch import Tensor

from sf_llava.model.v1.configuration import SparseFormerV1Config
from sf_llava.model.v1.model import SparseFormerV1Model


def inflate(model: SparseFormerV1Model, replicates: int = 1) -> SparseFormerV1Model:
    """Make a model of clips out of one of pictures.

    Every latent is repeated for each of ``replicates`` equal spans of time. Its RoI fills that span, in whose middle it
    reads until training teaches it to move.

    Args:
        model: of pictures, with N latents.
        replicates: R.

    Returns:
        The model of clips, with R N latents, the first N of them in the first span; in eval mode.

    Raises:
        ValueError: a model of clips, or less than one replicate.
    """
    if model.config.is_video or replicates < 1:
        raise ValueError(
            f"expected a model of pictures and at least 1 replicate, got one of "
            f"{'clips' if model.config.is_video else 'pictures'} and {replicates}"
        )
    fields = model.config.to_diff_dict() | {"is_video": True, "num_latents": replicates * model.config.num_latents}
    inflated = SparseFormerV1Model(SparseFormerV1Config.from_dict(fields))
    inflated.load_state_dict({name: _inflate(name, value, replicates) for name, value in model.state_dict().items()})
    return inflated.to(model.dtype).eval()


def _inflate(name: str, value: Tensor, replicates: int) -> Tensor:
    """Give the weight of a model of clips: as it is, or with replicates, or with zeros for the third axis."""
    if name == "focusing.initial_rois":
        ticks = torch.arange(replicates + 1, dtype=value.dtype, device=value.device) / replicates
        spans = torch.stack([ticks[:-1], ticks[1:]], dim=-1).repeat_interleave(len(value), dim=0)  # [R N, 2]
        corners = torch.cat([value.repeat(replicates, 1).unflatten(1, (2, 2)), spans[..., None]], dim=-1)
        return corners.flatten(1)  # [R N, 6]
    if name == "focusing.latent_embedding":
        return value.repeat(replicates, 1)
    if name.endswith(("roi_deltas.weight", "offsets.weight", "offset_bias")):
        rows = value.unflatten(0, (-1, 2))
        return torch.cat([rows, torch.zeros_like(rows[:, :1])], dim=1).flatten(0, 1)
    return value
