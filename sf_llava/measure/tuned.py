"""A teacher with fewer tokens in every block, its blocks tuned for that: ToMe and DiffRate as students (Table 4).

    tuned = TunedTeacher(teacher, "tome:8")  # the teacher's blocks at first; a bootstrap with ``reduce`` trains them
    tuned.save_pretrained("encoder")
    tuned = load_tuned("encoder", teacher)

What stands around the blocks (patches, positions, final norm, projection or classifier) stays the teacher's and is not
trained. A saved directory holds the blocks, and a copy of the head, by which another teacher is found out.

Letters: B images, S pixels, D width, E embedding width.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PretrainedConfig

from sf_llava import files
from sf_llava.measure.baselines import reduce_teacher, reduced_candidate
from sf_llava.measure.encoders import Candidate
from sf_llava.model import SparseFormerModel, SparseFormerOutput
from sf_llava.model.cortex import TransformerBlock
from sf_llava.model.loading import TUNED_TEACHER, find_encoder, model_type_of
from sf_llava.teachers.base import Teacher, load_strictly
from sf_llava.weights.fit import find_misfit
from sf_llava.weights.tensor_files import read_state_dict

CONFIG, WEIGHTS = "config.json", "model.safetensors"
BLOCKS = "reduced.blocks."
"""Where the blocks stand in the state dict; files hold them without the first word."""


@dataclass(frozen=True)
class TunedConfig:
    """What is asked of a student's configuration, under the names that a SparseFormer's has.

    Attributes:
        reduction: ``tome:R`` or ``diffrate:R``, R tokens fewer in every block.
        num_latents: patch tokens that are left behind the last block; CLS is not counted.
        num_hidden_layers, image_size, image_mean, image_std: the teacher's.
    """

    reduction: str
    num_latents: int
    num_hidden_layers: int
    image_size: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    use_cls: bool = True
    num_latents_range: None = None

    def to_json(self) -> dict[str, Any]:
        """Give what ``config.json`` holds."""
        return {"model_type": TUNED_TEACHER} | {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }


class TunedTeacher(nn.Module):
    """A reduced teacher with blocks of its own, float32 copies of the teacher's that can be trained.

    Args:
        teacher: with CLS, without registers; shared, not copied.
        reduction: as of :func:`reduce_teacher`, which also says what is refused.
    """

    def __init__(self, teacher: Teacher, reduction: str) -> None:
        super().__init__()
        self.reduced = reduce_teacher(teacher, reduction)
        shape = (teacher.hidden_size, teacher.num_attention_heads, teacher.intermediate_size)
        kind = (teacher.hidden_act, teacher.layer_norm_eps)
        depth = teacher.num_hidden_layers
        self.reduced.blocks = nn.ModuleList(TransformerBlock(PretrainedConfig(), *shape, *kind) for _ in range(depth))
        for index, block in enumerate(self.reduced.blocks):
            block.load_state_dict(teacher.block_state_dict(index))
        self.reduced.blocks.to(teacher.device)
        preprocessing = teacher.preprocessing
        self.config = TunedConfig(
            reduction, self.reduced.num_tokens, depth, teacher.image_size, preprocessing.mean, preprocessing.std
        )

    def forward(self, pixel_values: Tensor) -> SparseFormerOutput:
        """Embed (B, 3, S, S) pixels as a SparseFormer does: ``image_embeds`` (B, E) alone are there."""
        return SparseFormerOutput(image_embeds=self.reduced(pixel_values))

    @property
    def teacher(self) -> Teacher:
        """The teacher whose embedding and head it has."""
        return self.reduced.teacher

    @property
    def cortex(self) -> nn.ModuleList:
        """Its blocks, called as a SparseFormer's."""
        assert self.reduced.blocks is not None, "it was given some when it was made"
        return self.reduced.blocks

    def num_parameters(self) -> int:
        """Count the parameters of the image tower with its head."""
        return self.teacher.num_parameters()

    def save_pretrained(self, directory: str | Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write ``config.json``, and the blocks with a copy of the head as ``model.safetensors``.

        Args:
            directory: is made.
            state_dict: its own, gathered from several processes; default: what it holds.
        """
        state = self.state_dict() if state_dict is None else state_dict
        blocks = {name.partition(".")[2]: value for name, value in state.items() if name.startswith(BLOCKS)}
        tensors = {name: value.contiguous() for name, value in (blocks | self.teacher.head_state_dict()).items()}
        directory = files.make_directory(directory)
        files.write_json(directory / CONFIG, self.config.to_json())
        save_file(tensors, directory / WEIGHTS)


Student = SparseFormerModel | TunedTeacher
"""What a bootstrap trains."""


def tuned_candidate(name: str, tuned: TunedTeacher) -> Candidate:
    """Compare a tuned teacher with other students, and with itself off the shelf."""
    off_the_shelf = reduced_candidate(tuned.config.reduction, tuned.reduced)
    return replace(off_the_shelf, name=name, kind=f"{off_the_shelf.kind}, tuned")


def is_tuned(path: str | Path) -> bool:
    """Tell whether an encoder or run directory holds a tuned teacher; errors as of :func:`find_encoder`."""
    return model_type_of(path) == TUNED_TEACHER


def load_tuned(path: str | Path, teacher: Teacher) -> TunedTeacher:
    """Load a tuned teacher strictly, in the dtype of its teacher and where that is.

    Args:
        path: encoder or run directory.
        teacher: that it was made from.

    Raises:
        ValueError: nothing there, a damaged file, weights that do not fit, or another teacher's.
    """
    directory = find_encoder(path)
    fields = files.read_json_object(directory / CONFIG)
    tuned = TunedTeacher(teacher, str(fields.get("reduction")))
    wanted = tuned.config.to_json()
    if wrong := [f"{name} is {fields.get(name)!r}" for name in wanted if fields.get(name) != wanted[name]]:
        raise ValueError(f"{directory / CONFIG} is not of {teacher.name} with fewer tokens: {', '.join(wrong)}")
    state, head = read_state_dict(directory / WEIGHTS), teacher.head_state_dict()
    found = {name: state.pop(name) for name in head if name in state}
    if misfit := find_misfit(*({name: value.shape for name, value in one.items()} for one in (head, found))):
        raise ValueError(f"{directory / WEIGHTS} does not hold the head of {teacher.name}: {misfit}")
    for name, value in head.items():
        if not torch.allclose(found[name].float(), value.float().cpu(), rtol=1e-2, atol=1e-3):
            raise ValueError(f"{name} in {directory / WEIGHTS} is not that of {teacher.name}: it is another teacher's")
    load_strictly(nn.ModuleDict({"blocks": tuned.cortex}), state, str(directory / WEIGHTS))
    tuned.cortex.to(teacher.device, teacher.dtype)
    return tuned.requires_grad_(False).eval()
