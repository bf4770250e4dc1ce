"""The tokenizer of an original LLaVA directory, with equal ids for equal text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import LlamaTokenizer, PreTrainedTokenizerBase

from sf_llava.weights.model_directory import read_by_transformers

IMAGE_TOKEN = "<image>"


def load_tokenizer(path: str | Path, config: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """Load the Llama tokenizer and add the tokens that the llava package adds, in its order, then ``<image>``.

    AutoTokenizer would drop the SentencePiece prefix after special tokens and give silently different ids.

    Args:
        path: the directory.
        config: its config.json.
    """
    names = ("tokenizer.model", "tokenizer.json")
    if Path(path).is_dir() and not any((Path(path) / name).is_file() for name in names):
        raise ValueError(f"{path} has no tokenizer: expected tokenizer.model (or tokenizer.json)")
    with read_by_transformers(f"the tokenizer in {path}"):
        tokenizer = LlamaTokenizer.from_pretrained(path, legacy=True)
    added = ["<im_patch>"] * config.get("mm_use_im_patch_token", True)
    added += ["<im_start>", "<im_end>"] * config.get("mm_use_im_start_end", False)
    tokenizer.add_tokens([*added, IMAGE_TOKEN], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token
    return tokenizer
