"""What lmms-eval finds through the entry point group ``lmms_eval.models``: the model name ``sf_llava``.

lmms-eval asks for it whatever model it is to run; importing ``sf_llava.llava`` then lets its own ``llava_hf`` load a
saved LLaVA whose tower is a SparseFormer.
"""

from lmms_eval.models.registry_v2 import ModelManifest

import sf_llava.llava  # noqa: F401 (registers)


def manifest() -> ModelManifest:
    """Name the model and the class behind it, which is imported when it is asked for."""
    return ModelManifest(model_id="sf_llava", simple_class_path="sf_llava.harness.model.SparseFormerLlava")
