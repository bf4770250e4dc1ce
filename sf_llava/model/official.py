"""Released SparseFormer files into our models, strictly: which kind a file is, and the loader of that kind.

The authors' package takes two kinds, whose files are called ``*_converted.pth``: bootstrapped B and L (AugReg, CLIP),
and v1 tiny, small and base. Files of v1 as the ImageNet code wrote them hold the same tensors under other names. The
video model was released as code without weights; what that code saves is read too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from sf_llava.model.official_bootstrapped import convert_bootstrapped
from sf_llava.model.official_v1 import convert_v1
from sf_llava.model.sparseformer import SparseFormerModel
from sf_llava.model.v1.model import SparseFormerV1Model
from sf_llava.weights.fit import some
from sf_llava.weights.tensor_files import read_state_dict

CONVOLUTION = "feat_extractor.conv1.weight"  # in every layout
BOOTSTRAPPED = ("cls_embedding.weight", "layers.0.stage_embedding.weight", "layers.0.pe_transition.1.weight")
V1 = ("layers.0.adaptive_mixing.m_beta", "layers.0.adaptive_mixing.s_beta", "layers.1.1.weight")


class Official(NamedTuple):
    """A released file's model, and in words which kind of file it is."""

    model: SparseFormerModel | SparseFormerV1Model
    kind: str


def load_official(path: str | Path, image_size: int | None = None) -> SparseFormerModel | SparseFormerV1Model:
    """Load a released SparseFormer ``.pth`` file.

    Args:
        path: file saved by ``torch.save``: a state dict, possibly the one in ``{"model": ...}``, possibly with a prefix
            such as DDP's ``module.`` before every key.
        image_size: input side in pixels to record, 224 by default; the tensors do not tell it.

    Returns:
        The model in float32, in eval mode: of a v1 file a :class:`~sf_llava.model.v1.SparseFormerV1Model`.

    Raises:
        OSError: no such file.
        ValueError: the file cannot be read, or its keys, shapes or numbers are not a released SparseFormer's.
    """
    return read_official(path, image_size).model


def read_official(path: str | Path, image_size: int | None = None) -> Official:
    """Load a released file and say which kind it is; see :func:`load_official`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file at {path}")
    state = read_state_dict(path)
    try:
        return Official(convert_official(state, image_size), find_kind(state))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def convert_official(
    state: Mapping[str, Tensor], image_size: int | None = None
) -> SparseFormerModel | SparseFormerV1Model:
    """Convert an official state dict; see :func:`load_official`."""
    convert = convert_v1 if find_kind(state).startswith("v1") else convert_bootstrapped
    return convert(state, 224 if image_size is None else image_size)


def find_kind(state: Mapping[str, Tensor]) -> str:
    """Say which kind of official file a state dict is from, by the names that the others lack.

    Raises:
        ValueError: from none that can be loaded; the message says what to take in its place where that is known.
    """
    if CONVOLUTION not in state:
        raise ValueError(f"not a released SparseFormer checkpoint: no tensor {CONVOLUTION} ({_guess(state)})")
    if "token_roi_cc.weight" in state:
        raise ValueError(
            "a bootstrapped SparseFormer in the layout that it was trained in, with centres and sizes of its RoIs: "
            "take the released file whose name ends in _converted.pth"
        )
    if any(name in state for name in BOOTSTRAPPED):
        if state[CONVOLUTION].dim() == 5:
            raise ValueError(
                "a bootstrapped SparseFormer of the video code, which gives RoIs in space and time no position "
                "encoding and so is unfinished for these models: v1 files alone make models of clips"
            )
        return f"bootstrapped from {'AugReg' if 'proj.bias' in state else 'CLIP'}"
    if not any(name in state for name in V1):
        raise ValueError(
            f"not a released SparseFormer checkpoint: expected one of {some((*BOOTSTRAPPED, *V1), shown=6)}, found "
            f"{some(state)}"
        )
    if "token_roi.weight" in state:
        return "v1, as the ImageNet code wrote it"
    return "v1 for clips, of the video code" if state[CONVOLUTION].dim() == 5 else "v1"


def _guess(state: Mapping[str, Tensor]) -> str:
    """Say why a file without the first convolution may lack it."""
    if wrapped := [key for key in state if key.endswith(f".{CONVOLUTION}")]:
        return f"there is {wrapped[0]}: save the file without the prefix {wrapped[0].removesuffix(CONVOLUTION)!r}"
    if "focusing.initial_rois" in state:
        return "it is in this project's own format already: from_pretrained loads its directory"
    return f"found {some(state)}"
