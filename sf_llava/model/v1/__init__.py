"""SparseFormer v1, the classifier of before the bootstrapping: its configuration, its model, and that of clips.

SparseFormer: Sparse Visual Recognition via Limited Latent Tokens (ICLR 2024).
"""

from transformers import AutoConfig, AutoModel

from sf_llava.model.v1.configuration import SparseFormerV1Config, v1_preset
from sf_llava.model.v1.model import SparseFormerV1Model

__all__ = ["SparseFormerV1Config", "SparseFormerV1Model", "v1_preset"]

AutoConfig.register(SparseFormerV1Config.model_type, SparseFormerV1Config, exist_ok=True)
AutoModel.register(SparseFormerV1Config, SparseFormerV1Model, exist_ok=True)
