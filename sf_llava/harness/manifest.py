"""What lmms-eval finds through the entry point group ``lmms_eval.models``: the model name ``sf_llava``."""

from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """Name the model and the class behind it, which is imported when it is asked for."""
    return ModelManifest(model_id="sf_llava", simple_class_path="sf_llava.harness.model.SparseFormerLlava")
