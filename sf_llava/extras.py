"""Packages that only some uses need, by the extra that installs each: ``pip install 'sf_llava[data]'``."""

import importlib.util

EXTRAS = {
    "open_clip": "teachers",
    "timm": "teachers",
    "datasets": "data",
    "pyarrow": "data",
    "webdataset": "data",
    "matplotlib": "plots",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
    "gradio": "demo",
    "fastapi": "demo",
    "starlette": "demo",
    "uvicorn": "demo",
    "bitsandbytes": "quantisation",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
    "openvino": "export",
    "nncf": "export",
    "peft": "train",
}
"""Extras by the module that is imported."""


def is_installed(module: str) -> bool:
    """Whether a top-level module can be imported; it is not."""
    return importlib.util.find_spec(module) is not None


def require(purpose: str, *modules: str) -> None:
    """Say in one sentence what to install where a package is missing; nothing is imported.

    Args:
        purpose: what needs the packages, as a sentence begins: "reading parquet".
        modules: top-level modules among ``EXTRAS``.

    Raises:
        ModuleNotFoundError: one of them is not installed.
    """
    for module in modules:
        if not is_installed(module):
            raise ModuleNotFoundError(
                f"{purpose} needs {module}, which is not installed: pip install 'sf_llava[{EXTRAS[module]}]'",
                name=module,
            )
