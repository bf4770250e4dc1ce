"""Write what is published, whole or not at all, and upload it where that is asked for.

A published LLaVA is an ordinary LLaVA directory, as ``save_pretrained`` leaves it, and beside that: the encoder's code
(code.py), ``auto_map`` in config.json, which leads ``trust_remote_code=True`` to it, a card, and digests of all files.
"""

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi

from sf_llava import __version__, files
from sf_llava.bootstrap.run_directory import RunDirectory
from sf_llava.llava.loading import load_llava
from sf_llava.llava.placed import FIELD
from sf_llava.llava.swapping import swap
from sf_llava.llava.tokens import count_patches
from sf_llava.measure.store import digest_weights
from sf_llava.model.loading import HUB_NAME, find_encoder, load_encoder
from sf_llava.publish.card import Origin, write_card
from sf_llava.publish.code import copy_code, flat_name
from sf_llava.weights.digests import write_digests

LLAVA, PLACED, ENCODER = "sf_llava.publish.llava", "sf_llava.publish.placed", "sf_llava.model.sparseformer"
CONFIGURATION, IMAGES = "sf_llava.configuration", "sf_llava.model.image_processor"
CARD = "README.md"


def publish_llava(
    llava: str | Path,
    encoder: str | Path,
    output: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    positions_and_bias: bool = False,
    license: str | None = None,
    title: str | None = None,
) -> None:
    """Write a LLaVA with an encoder for its tower as a directory that loads with and without this package.

    Args:
        llava: directory or name, as :func:`~sf_llava.load_llava` takes it.
        encoder: directory of an encoder or its run.
        output: directory to write; nothing, or an empty directory, may be there.
        dtype: of the weights; by default as the LLaVA's were saved.
        positions_and_bias: let it read by RoI centre with the attention bias in every call; servers with a forward of
            their own (vLLM) read its tokens as they come all the same.
        license: of the weights, for the card, as the hub spells it.
        title: what the directory will be called; its own name by default.

    Raises:
        ValueError: no LLaVA, no encoder, one that does not fit, something lies at ``output``, or positions are asked
            for where the LLaVA's own tower has no square grid of patches.
        OSError: ``output`` cannot be written.
    """
    _check_output(output)
    source = find_encoder(encoder)
    model, processor = load_llava(llava, dtype=dtype)
    record = swap(model, processor, source)
    config = model.config.vision_config
    config.name_or_path = ""  # where it lay is nobody else's business
    patches = _patches(record.vision_config)
    if positions_and_bias:
        if patches is None or isqrt(patches) ** 2 != patches:
            found = "a SparseFormer already" if patches is None else f"{patches} patches, which are no square grid"
            raise ValueError(
                f"{llava} reads {found}: positions need the LLaVA with the tower that its LLM was trained with"
            )
        setattr(model.config, FIELD, patches)
    origin = _origin(encoder, license, llava=str(llava), num_patches=patches, is_placed=positions_and_bias)

    def fill(directory: Path) -> None:
        model.save_pretrained(directory, save_original_format=False)
        processor.save_pretrained(directory)
        classes = {
            "AutoConfig": (LLAVA, "SparseFormerLlavaConfig"),
            "AutoModel": (LLAVA, "SparseFormerLlavaModel"),
            "AutoModelForImageTextToText": (LLAVA, "SparseFormerLlavaForConditionalGeneration"),
        }
        if positions_and_bias:  # a model without its head would not read so
            classes = {
                "AutoConfig": classes["AutoConfig"],
                "AutoModelForImageTextToText": (PLACED, "PlacedSparseFormerLlava"),
            }
        _add_code(directory, {"config.json": classes})
        _finish(directory, write_card(title or Path(output).name, config, origin))

    files.write_directory(output, fill)


def publish_encoder(
    encoder: str | Path, output: str | Path, *, license: str | None = None, title: str | None = None
) -> None:
    """Write an encoder as a directory that loads with and without this package, for AutoModel, AutoImageProcessor.

    Its weights stay as they were saved. Arguments and errors as of :func:`publish_llava`.
    """
    _check_output(output)
    student = load_encoder(encoder, dtype="auto")
    origin = _origin(encoder, license)

    def fill(directory: Path) -> None:
        student.save_pretrained(directory)
        configuration = {"AutoConfig": (CONFIGURATION, "SparseFormerConfig")}
        model = configuration | {"AutoModel": (ENCODER, "SparseFormerModel")}
        images = configuration | {"AutoImageProcessor": (IMAGES, "SparseFormerImageProcessor")}
        _add_code(directory, {"config.json": model, "preprocessor_config.json": images})
        _finish(directory, write_card(title or Path(output).name, student.config, origin))

    files.write_directory(output, fill)


def check_repo(repo: str) -> None:
    """Refuse what cannot be a repository's name before anything is written.

    Raises:
        ValueError: expected ``owner/name``.
    """
    if not HUB_NAME.fullmatch(repo):
        raise ValueError(f"{repo!r} is no name of a repository: expected owner/name")


def push(directory: str | Path, repo: str) -> str:
    """Upload a published directory to the hub as a model, made where it is not there; give its address.

    Raises:
        RuntimeError: it could not be uploaded; the directory is whole, and the message says how to go on.
    """
    api = HfApi()
    try:
        address = api.create_repo(repo, repo_type="model", exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=str(directory), commit_message=f"Written by sf_llava {__version__}")
    except Exception as error:  # of the network, the hub, the account
        reason = " ".join(str(error).split())[:300]
        raise RuntimeError(
            f"{directory} is written, but was not uploaded to {repo} ({reason}): once that is mended, hf upload {repo} "
            f"{directory}"
        ) from error
    return str(address)


def _check_output(output: str | Path) -> None:
    path = Path(output)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ValueError(f"{output} is {'a link' if path.is_symlink() else 'a file'}: name a new directory")
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"{output} is not empty: name a new directory, or remove it yourself")
    files.require_writable(output)


def _origin(encoder: str | Path, license: str | None, **llava: Any) -> Origin:
    """Gather what a card says of the encoder, from the run around it if there is one."""
    source = find_encoder(encoder)
    run = RunDirectory(source.parent)
    is_run = source == run.encoder and run.config_path.is_file()
    return Origin(
        encoder=str(encoder),
        digest=digest_weights(load_encoder(source, dtype="auto")),
        versions={
            "sf_llava": __version__,
            "torch": torch.__version__.partition("+")[0],
            "transformers": transformers.__version__,
        },
        run=files.read_json_object(run.config_path) if is_run else None,
        results=run.read_results() if is_run and run.results_path.is_file() else None,
        license=license,
        **llava,
    )


def _patches(vision_config: Any) -> int | None:
    """Count the patches of the tower that was taken out; None of a SparseFormer, which has none."""
    return count_patches(vision_config) if hasattr(vision_config, "patch_size") else None


def _add_code(directory: Path, classes: Mapping[str, Mapping[str, tuple[str, str]]]) -> None:
    """Copy the code of classes, and name them in JSON files: by file, by Auto class, (module, class)."""
    modules = {module for found in classes.values() for module, _ in found.values()}
    for name, text in copy_code(*sorted(modules)).items():
        (directory / name).write_text(text, encoding="utf-8")
    for name, found in classes.items():
        content = files.read_json_object(directory / name)
        content["auto_map"] = {auto: f"{flat_name(module)}.{cls}" for auto, (module, cls) in found.items()}
        files.write_json(directory / name, content)


def _finish(directory: Path, card: str) -> None:
    (directory / CARD).write_text(card, encoding="utf-8")
    write_digests(directory)
