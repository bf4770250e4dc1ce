"""A student as the image tower of an open_clip model: everything written for open_clip runs on it unchanged.

    clip, _, preprocess = open_clip.create_model_and_transforms("ViT-L-14-quickgelu", pretrained="openai")
    clip.visual = as_open_clip_visual(load_encoder("runs/sf-l-64"))
    clip.encode_image(preprocess(image)[None])

Saving is ``clip.state_dict()`` (the tower's keys start with ``visual.student.``); loading is
``open_clip.load_checkpoint`` into a model whose tower was set the same way, from a student of the same configuration.
Letters: B images, N latents, D width, E embedding.
"""

import inspect
from collections.abc import Sequence

import torch
from open_clip import CoCa
from open_clip.transform import PreprocessCfg
from open_clip.transformer import feature_take_indices
from open_clip.utils import to_2tuple
from torch import Tensor, nn

from sf_llava.model import SparseFormerModel


def as_open_clip_visual(student: SparseFormerModel, interpolation: str = "bicubic") -> "OpenClipVisual":
    """Make a student fit ``clip.visual``.

    Args:
        student: bootstrapped from a CLIP or SigLIP teacher; shared, not copied.
        interpolation: of the teacher's preprocessing (``clip.visual.preprocess_cfg["interpolation"]``).

    Raises:
        ValueError: the student has no projection into CLIP's embedding.
    """
    return OpenClipVisual(student, interpolation)


class OpenClipVisual(nn.Module):
    """The interface of ``open_clip.transformer.VisionTransformer`` around a student.

    Attributes:
        student: the encoder.
        image_size: (S, S) pixels.
        output_dim: E.
        image_mean, image_std, preprocess_cfg: what open_clip builds transforms from.
    """

    def __init__(self, student: SparseFormerModel, interpolation: str) -> None:
        super().__init__()
        config = student.config
        if config.use_cls and not config.projection_dim:
            raise ValueError("the student has no projection into CLIP's embedding: it was bootstrapped from no CLIP")
        self.student = student
        self.image_size = to_2tuple(config.image_size)
        self.output_dim = config.projection_dim or config.hidden_size
        self.image_mean = tuple(config.image_mean)
        self.image_std = tuple(config.image_std)
        preprocessing = PreprocessCfg(self.image_size, mean=self.image_mean, std=self.image_std)
        self.preprocess_cfg = vars(preprocessing) | {
            "interpolation": interpolation,
            "resize_mode": config.resize_mode,
        }

    def forward(self, x: Tensor) -> Tensor:
        """Embed (B, 3, S, S) normalised pixels: (B, E), not normalised.

        Raises:
            ValueError: a CoCa asks.
        """
        _refuse_coca()
        return self.student(x).image_embeds

    def lock(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freeze all but the last groups of: focusing part, cortex blocks (the final norm with the last), head.

        ``freeze_bn_stats`` is part of the interface; there are no batch norms.
        """
        student = self.student
        cortex: list[nn.Module | nn.Parameter] = list(student.cortex)
        first = [student.cls_token] if student.config.use_cls else []
        head = [part for name, part in student.named_children() if name in ("pool", "projection")]
        groups: list[list[nn.Module | nn.Parameter]] = [
            [student.early_conv, student.focusing, *first],
            *([block] for block in cortex[:-1]),
            [cortex[-1], student.norm],
            [*head],
        ]
        self.requires_grad_(False)
        for group in groups[len(groups) - min(unlocked_groups, len(groups)) :]:
            for part in group:
                part.requires_grad_(True)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, or stop doing so."""
        if enable:
            self.student.gradient_checkpointing_enable()
        else:
            self.student.gradient_checkpointing_disable()

    def no_weight_decay(self) -> set[str]:
        """Name the embeddings among the parameters of two dimensions."""
        return {"student.focusing.initial_rois", "student.focusing.stage_embedding"}

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        stop_early: bool = False,
        normalize_intermediates: bool = False,
        intermediates_only: bool = False,
        output_fmt: str = "NCHW",
        output_extra_tokens: bool = False,
    ) -> dict[str, Tensor | list[Tensor]]:
        """Give the outputs of cortex blocks.

        Args:
            x: (B, 3, S, S) normalised pixels.
            indices: the last n blocks if a number, these blocks if a list, all if None.
            stop_early: with ``intermediates_only``, do not compute later blocks.
            normalize_intermediates: apply the final norm to them.
            intermediates_only: leave ``image_features`` out.
            output_fmt: ``NLC``; latents have no place in a grid.
            output_extra_tokens: give the CLS tokens too, where there are any.

        Returns:
            ``image_intermediates``: list of (B, N, D); ``image_intermediates_prefix``: list of (B, 1, D);
            ``image_features``: (B, E), not normalised.

        Raises:
            ValueError: another format, or a CoCa asks.
        """
        _refuse_coca()
        if output_fmt != "NLC":
            raise ValueError(
                f"a SparseFormer's latents form no grid, so output_fmt {output_fmt!r} does not exist: "
                "ask for 'NLC' (in CLIP.forward_intermediates, image_output_fmt='NLC')"
            )
        taken, _ = feature_take_indices(self.student.config.num_hidden_layers, indices)
        layers = [index + 1 for index in taken]  # hidden state 0 enters the first block
        output = self.student(x, output_hidden_states=layers if stop_early and intermediates_only else True)
        states = [output.hidden_states[layer] for layer in layers]
        if normalize_intermediates:
            states = [self.student.norm(state) for state in states]
        first = int(self.student.config.use_cls)
        result: dict[str, Tensor | list[Tensor]] = {"image_intermediates": [state[:, first:] for state in states]}
        if output_extra_tokens and first:
            result["image_intermediates_prefix"] = [state[:, :1] for state in states]
        if not intermediates_only:
            result["image_features"] = output.image_embeds
        return result


def _refuse_coca() -> None:
    """Refuse to be a CoCa's tower: it takes the batch's rows for an embedding and tokens where there are two.

    A module does not know the model that it was put into, so this looks for one among its callers.
    """
    if torch.compiler.is_compiling():
        return
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), CoCa):
            raise ValueError(
                "a SparseFormer cannot be the tower of a CoCa, whose decoder reads tokens of an attentional pooler: "
                "use a CLIP of open_clip"
            )
        frame = frame.f_back
