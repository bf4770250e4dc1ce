"""Embeddings on disk, found again by everything they depend on.

That is: the pixels or texts, the weights, the preprocessing, the dtype and the code that computes them.
"""

import hashlib
import json
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
        """Return the embeddings and what was noted with them, or None."""
        path = self.directory / f"{key}.safetensors"
        if not path.is_file():
            return None
        with safe_open(path, "pt") as file:
            return file.get_tensor("embeds"), json.loads(file.metadata()["note"])

    def write(self, key: str, embeds: Tensor, note: dict) -> None:
        """Keep embeddings, atomically."""
        data = save({"embeds": embeds.contiguous()}, {"note": json.dumps(note)})
        files.write_bytes(self.directory / f"{key}.safetensors", data)


def fingerprint(module: nn.Module) -> str:
    """Digest a module: its structure and configuration, its weights, and the code that runs it."""
    about = f"{module!r}{getattr(module, 'config', '')}{torch.__version__}{_digest_code()}"
    return digest_texts(about, digest_weights(module))


def digest_weights(module: nn.Module) -> str:
    """Digest a module's parameters and buffers: their names, dtypes, shapes, device types and bytes."""
    digest = hashlib.blake2b(digest_size=20)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device.type}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
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
