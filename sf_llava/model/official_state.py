"""What the loaders of released files share: sizes read from tensors with suspicion, and strict loading."""

import re
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from sf_llava.weights.fit import find_misfit
from sf_llava.weights.tensor_files import require_numbers

Model = TypeVar("Model", bound=PreTrainedModel)


class OfficialState:
    """A state dict in an official layout.

    Args:
        tensors: by official name.
        kind: what it is taken for, to be named where it turns out to be none.
    """

    def __init__(self, tensors: Mapping[str, Tensor], kind: str) -> None:
        self.tensors, self.kind = tensors, kind

    def refuse(self, reason: str) -> ValueError:
        """Make the error that says why the tensors are not of this kind."""
        return ValueError(f"not a {self.kind} checkpoint: {reason}")

    def shape(self, key: str, num_dimensions: int) -> tuple[int, ...]:
        """Give a tensor's shape; a checkpoint without it, or with another number of dimensions, is none of ours."""
        if key not in self.tensors:
            raise self.refuse(f"no tensor {key}")
        found = tuple(self.tensors[key].shape)
        if len(found) != num_dimensions or 0 in found:
            raise self.refuse(
                f"{key} has shape {found}, where {num_dimensions} dimension(s) of at least 1 are expected"
            )
        return found

    def num_layers(self, num_others: int, tensors_per_layer: int) -> int:
        """Count the layers behind the first ``num_others``, each of so many tensors at least: none may be left out."""
        layers = {int(match[1]) for key in self.tensors if (match := re.match(r"layers\.(\d{1,9})\.", key))}
        last = max(layers, default=-1)
        if len(layers) != last + 1 or len(self.tensors) < tensors_per_layer * (last + 1 - num_others):
            raise self.refuse(
                f"keys name a layer {last}, but there are only {len(layers)} layers and {len(self.tensors)} tensors"
            )
        return last + 1 - num_others

    def load(self, model_class: type[Model], config: PretrainedConfig, converted: Mapping[str, Tensor]) -> Model:
        """Load renamed tensors into a model of this configuration, in float32 and eval mode.

        Raises:
            ValueError: some are missing, unexpected, of another shape, or no finite numbers.
        """
        with torch.device("meta"):  # names and shapes alone: no memory is taken on a file's word
            expected = model_class(config).state_dict()
        asked, found = ({name: tuple(value.shape) for name, value in state.items()} for state in (expected, converted))
        if misfit := find_misfit(asked, found):
            raise self.refuse(misfit)
        require_numbers(converted, "the checkpoint")
        model = model_class(config)
        model.load_state_dict(converted)
        return model.eval()
