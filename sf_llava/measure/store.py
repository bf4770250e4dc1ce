"""Embeddings on disk, found again by everything they depend on.

That is: the pixels or texts, the weights, the preprocessing, the dtype and the code that computes them. A digest lies
with them: a file that is not as it was written is not used but written anew.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sf_llava import files

CODE = ("data", "model", "ops", "teachers")
"""Parts of the package on which embeddings depend."""


class EmbeddingStore:
    """Embeddings on disk, one safetensors file an entry; the main process reads and writes."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def read(self, key: str) -> tuple[Tensor, dict] | None:
        """Return the embeddings and what was noted with them; None if there are none, or (warning) damaged ones."""
        path = self.directory / f"{key}.safetensors"
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                embeds, entry = file.get_tensor("embeds"), json.loads(file.metadata()["entry"])
            if entry["digest"] != _digest_entry(key, embeds, entry["note"]):
                raise ValueError("the digest that was written with it is another")
            return embeds, entry["note"]
        except Exception as error:  # damage to the header raises safetensors' own, KeyError and more
            warnings.warn(f"kept embeddings {path} are damaged ({error}): they are computed again", stacklevel=2)
            return None

    def write(self, key: str, embeds: Tensor, note: dict) -> None:
        """Keep embeddings, atomically; where that is impossible (a full disk) warn, since results need them no more."""
        path, embeds = self.directory / f"{key}.safetensors", embeds.contiguous()
        entry = {"note": note, "digest": _digest_entry(key, embeds, note)}
        data = save({"embeds": embeds}, {"entry": json.dumps(entry)})  # one field: safetensors keeps no order of them
        try:
            files.write_bytes(path, data)
        except OSError as error:
            warnings.warn(f"embeddings could not be kept in {path} ({error}): another run computes them", stacklevel=2)


def _digest_entry(key: str, embeds: Tensor, note: dict) -> str:
    return digest_texts(key, json.dumps(note), digest_tensors({"embeds": embeds}))


def fingerprint(module: nn.Module) -> str:
    """Digest a module: its structure and configuration, its weights, and the code that runs it."""
    about = f"{module!r}{getattr(module, 'config', '')}{torch.__version__}{_digest_code()}"
    return digest_texts(about, digest_weights(module))


def digest_weights(module: nn.Module) -> str:
    """Digest a module's parameters and buffers."""
    return digest_tensors(module.state_dict())


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Digest tensors: their names, dtypes, shapes, device types and bytes."""
    digest = hashlib.blake2b(digest_size=20)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device.type}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_texts(*parts: str) -> str:
    """Digest texts; where one ends and the next begins counts."""
    digest = hashlib.blake2b(digest_size=20)
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()


@cache
def _digest_code() -> str:
    package = Path(__file__).resolve().parents[1]
    paths = [package / "configuration.py", *(path for part in CODE for path in sorted((package / part).rglob("*.py")))]
    return digest_texts(*(path.read_text(encoding="utf-8") for path in paths))
