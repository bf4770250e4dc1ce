"""The entry point of vLLM (``vllm.general_plugins``) and of SGLang (``sglang.srt.plugins``).

Both call it in each of their processes before a model's configuration is read, wherever this package is installed:

    vllm serve DIR --model-impl transformers
    python -m sglang.launch_server --model-path DIR --model-impl transformers

then take the directory of a saved LLaVA whose tower is a SparseFormer. Importing this module loads nothing.
"""

from contextlib import suppress
from typing import Any

NOT_SERVED = ("sparseformer_llava_next", "sparseformer_llava_next_video", "sparseformer_llava_onevision")
"""What the saved directories of LLaVAs with tiles call themselves."""


def register() -> None:
    """Make the encoder known to transformers' Auto classes, with which both servers build a LLaVA's tower."""
    from transformers import AutoConfig

    import sf_llava.model  # noqa: F401 (registers)

    for model_type in NOT_SERVED:
        with suppress(ValueError):  # known already: the process has imported what loads it
            AutoConfig.register(model_type, _refused(model_type))


def _refused(model_type: str) -> Any:
    """Make a configuration that says why a directory is not served."""
    from transformers import PretrainedConfig

    class NotServed(PretrainedConfig):
        def __init__(self, **fields: Any) -> None:
            raise ValueError(
                f"a LLaVA that cuts pictures into tiles ({model_type}) is not served: ask it through "
                "sf_llava.load_llava, sf-llava scienceqa run or lmms-eval"
            )

    NotServed.model_type = model_type
    return NotServed
