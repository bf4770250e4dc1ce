"""The entry point of vLLM (``vllm.general_plugins``) and of SGLang (``sglang.srt.plugins``).

Both call it in each of their processes before a model's configuration is read, wherever this package is installed:

    vllm serve DIR --model-impl transformers
    python -m sglang.launch_server --model-path DIR --model-impl transformers

then take the directory of a saved LLaVA whose tower is a SparseFormer. Importing this module loads nothing.
"""


def register() -> None:
    """Make the encoder known to transformers' Auto classes, with which both servers build a LLaVA's tower."""
    import sf_llava.model  # noqa: F401 (registers)
