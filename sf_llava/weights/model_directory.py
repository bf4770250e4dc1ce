"""Directories in transformers' format, looked through before transformers reads them.

What would end in a traceback, in endless work or in other weights than those of the directory is told in a sentence:
adapters without their model, shards that are missing or lie elsewhere, weights that hold code, JSON that cannot be
read, more layers than there are tensors.
"""

import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sf_llava.files import read_json_object
from sf_llava.weights.fit import some
from sf_llava.weights.tensor_files import read_state_dict

WEIGHTS = (  # in the order in which transformers looks for them
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
ADAPTERS = "adapter_config.json"


def check_model_directory(directory: str | Path) -> None:
    """Check JSON files and weights of a local model directory.

    Raises:
        ValueError: says what in the directory cannot be read, or should not be.
        OSError: one of its files is a pipe, a device or a directory.
    """
    directory = Path(directory)
    check_no_adapters(directory)
    check_json_files(directory)
    names = {name for file in _weights_files(directory) for name in read_state_dict(file)}
    if (directory / "config.json").is_file():
        _check_config(directory / "config.json", read_json_object(directory / "config.json"), len(names))


def check_no_adapters(directory: str | Path) -> None:
    """Refuse LoRA adapters: without their model, or where transformers would put them on other weights.

    Raises:
        ValueError: says of which model they are, and how to merge them.
    """
    directory = Path(directory)
    if (directory / ADAPTERS).is_file():
        base = read_json_object(directory / ADAPTERS).get("base_model_name_or_path")
        raise ValueError(
            f"{directory} holds LoRA adapters ({ADAPTERS}) of the model {base}: merge them into it first (a LLaVA of "
            "the llava package by its scripts/merge_lora_weights.py, others by PEFT's merge_and_unload and "
            "save_pretrained) and name the merged directory"
        )


def check_json_files(directory: str | Path) -> None:
    """Read every JSON file that transformers would read in ``directory``.

    Raises:
        ValueError: one is no JSON object in plain UTF-8; the message names it.
        OSError: one is a pipe, a device or a directory.
    """
    for path in (Path(directory) / name for name in JSON_FILES):
        if path.exists():
            read_json_object(path)
            try:
                json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(
                    f"{path} begins with a byte order mark or is no UTF-8: save it as plain UTF-8, as transformers "
                    "expects it"
                ) from error


@contextmanager
def read_by_transformers(what: str | Path) -> Iterator[None]:
    """Make whatever transformers raises of a bad file one sentence that names what was read.

    Raises:
        ValueError: with the first words of the reason.
    """
    try:
        yield
    except Exception as error:  # configurations, tokenizers and weights have errors of many kinds
        raise ValueError(f"{what} could not be read ({reason(error)}); a file may be truncated or missing") from error


def reason(error: Exception) -> str:
    """Shorten a library's error; where torch advises to let code run, say what is the case instead."""
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        return "its weights hold more than tensors, which could run code"
    return (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".:")


def _weights_files(directory: Path) -> list[Path]:
    """Find the files that transformers would take the weights from."""
    found = next((directory / name for name in WEIGHTS if (directory / name).exists()), None)
    if found is None:
        raise ValueError(f"{directory} holds no weights: expected one of {', '.join(WEIGHTS)}")
    if not found.name.endswith(".index.json"):
        return [found]
    shards = read_json_object(found).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{found} names no files: expected a weight_map from tensors to file names")
    names = sorted(set(shards.values()))
    if outside := [name for name in names if "\\" in name or name in ("", ".", "..") or Path(name).name != name]:
        raise ValueError(f"{found} names files that are not in its directory: {some(outside)}")
    if missing := [name for name in names if not (directory / name).exists()]:
        raise ValueError(f"{directory} lacks {len(missing)} of {len(names)} weights files: {some(missing)}")
    return [directory / name for name in names]


def _check_config(path: Path, config: Mapping[str, Any], num_tensors: int) -> None:
    """Refuse what no weights can be of, and attention that would be fetched as code."""
    for name, part in (("", config), *((name, config.get(name)) for name in ("text_config", "vision_config"))):
        if not isinstance(part, Mapping):
            continue
        layers = part.get("num_hidden_layers", 1)
        if not isinstance(layers, int) or not 0 < layers <= num_tensors:
            where = f"{name} has " if name else ""
            raise ValueError(f"{path}: {where}num_hidden_layers {layers!r}, but the weights are {num_tensors} tensors")
        attention = part.get("attn_implementation")
        if attention is not None and (not isinstance(attention, str) or "/" in attention):
            raise ValueError(f"{path}: attn_implementation {attention!r} names code on the hub: take it out")
