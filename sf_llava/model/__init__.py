"""The SparseFormer: early convolution, focusing transformer, cortex transformer; transformers' Auto classes know it."""

import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from sf_llava.configuration import SparseFormerConfig
from sf_llava.model.image_processor import SparseFormerImageProcessor
from sf_llava.model.sparseformer import SparseFormerModel, SparseFormerOutput

__all__ = ["SparseFormerModel", "SparseFormerOutput"]

AutoConfig.register(SparseFormerConfig.model_type, SparseFormerConfig, exist_ok=True)
AutoModel.register(SparseFormerConfig, SparseFormerModel, exist_ok=True)
if int(transformers.__version__.split(".")[0]) >= 5:  # beside an older one the llava package prepares the pictures
    AutoImageProcessor.register(
        SparseFormerConfig,
        image_processor_classes={"pil": SparseFormerImageProcessor, "torchvision": SparseFormerImageProcessor},
        exist_ok=True,
    )
