"""One export, from an encoder's directory to one that a runtime opens, checked on pictures before it is there."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sf_llava import __version__, files
from sf_llava.data import ImageSource
from sf_llava.export import formats
from sf_llava.export.check import BATCHES, Difference, compare
from sf_llava.export.features import ImageFeatures
from sf_llava.llava.loading import load_llava
from sf_llava.measure.store import digest_weights
from sf_llava.model import SparseFormerModel
from sf_llava.model.image_processor import SparseFormerImageProcessor, make_image_processor
from sf_llava.model.loading import load_encoder

RECORD = "export.json"


def export(
    kind: str,
    encoder: str | Path,
    output: str | Path,
    images: ImageSource,
    layer: int | None = None,
    llava: str | None = None,
    int8: bool = False,
) -> tuple[dict[str, Any], Difference]:
    """Write an encoder as ``kind``, its image processor and ``export.json`` beside it, into the directory ``output``.

    Args:
        kind: ``onnx`` or ``openvino``.
        encoder: directory of an encoder or its run.
        output: directory to write; only an older export is replaced.
        images: pictures that the check shows to the model and to the file.
        layer: give the latents of this hidden state, (B, N, D), in place of the embedding (B, E).
        llava: name of a LLaVA; give what its LLM reads, (B, T, W).
        int8: keep weights in 8 bits.

    Returns:
        What ``export.json`` holds, and the difference of the check.

    Raises:
        ValueError: ``output`` holds something else, or the file is too far from the model; nothing is written then.
        ModuleNotFoundError: a package of the format is missing.
    """
    formats.require_runtime(kind, int8)
    output = Path(output)
    if output.exists() and not (output / RECORD).is_file() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is no export, and is not replaced: name another directory")
    files.require_writable(output)
    model = load_encoder(encoder)
    features = make_features(model, layer, llava)
    processor = make_image_processor(model.config)
    pixels = read_pixels(processor, images)
    with torch.no_grad():
        shape = list(features(pixels[:1]).shape[1:])
    record: dict[str, Any] = {
        "format": kind,
        "file": formats.FILES[kind],
        "weights": "int8" if int8 else "fp32",
        "input": {"name": formats.INPUT, "shape": ["batch", *pixels.shape[1:]], "dtype": "float32"},
        "output": {
            "name": features.output_name,
            "shape": ["batch", *shape],
            "dtype": "float32",
            "layers": features.layers,
            "cls": features.keep_cls,
        },
        "encoder": {"name": str(encoder), "weights": digest_weights(model), "config": model.config.to_dict()},
        "projector": features.projector and {"llava": llava, "weights": digest_weights(features.projector)},
        "versions": {"sf_llava": __version__, "torch": torch.__version__},
    }
    found: list[Difference] = []

    def fill(folder: Path) -> None:
        formats.write(features, kind, folder, model.config.image_size, features.output_name, int8)
        found.append(compare(features, formats.open_file(kind, folder), pixels))
        found[0].require(int8)
        files.write_json(folder / RECORD, record | {"check": found[0].to_dict()})
        processor.save_pretrained(folder)

    with torch.no_grad():
        files.write_directory(output, fill)
    return files.read_json_object(output / RECORD), found[0]


def make_features(model: SparseFormerModel, layer: int | None, llava: str | None) -> ImageFeatures:
    """Say what is exported; a LLaVA decides the layer itself.

    Raises:
        ValueError: both are named, or do not fit.
    """
    if llava is None:
        return ImageFeatures(model, [] if layer is None else [layer]).eval()
    host = load_llava(llava, dtype="auto")[0]  # of which the projector alone is kept, and in float32
    features = ImageFeatures.of_llava(host, model).float().eval()
    if layer is not None and features.layers != [layer]:
        raise ValueError(f"`layer` {layer}: the projector of {llava} was trained on {features.layers}: leave it out")
    return features


def read_pixels(processor: SparseFormerImageProcessor, images: ImageSource) -> Tensor:
    """Read as many pictures as a check shows, (B, 3, S, S), over the whole of ``images``.

    Raises:
        ValueError: there is none.
    """
    count = min(sum(BATCHES), len(images))
    if not count:
        raise ValueError("`images` holds no picture: the file is checked on some")
    pictures = [images.load(place * len(images) // count) for place in range(count)]
    return processor(pictures, return_tensors="pt")["pixel_values"]
