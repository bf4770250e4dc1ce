"""One training of a segmenter, start to end: build, train, save, measure.

The directory of a run:

config.json    every number, and what the run began with
log.jsonl      one line every few steps (no clock: equal runs have equal logs)
checkpoints/   as a bootstrap's
segmenter/     the result, see segmenter.py
results.json   scores on the validation set, costs, the machine
predictions.png
"""

import hashlib
import io
import time
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image

from sf_llava import files
from sf_llava.bootstrap.inherit import resize
from sf_llava.bootstrap.run_directory import RunDirectory
from sf_llava.data.images import CorruptImageError
from sf_llava.data.mask_transforms import MaskedTransform, MaskedViews
from sf_llava.data.masked import open_masked, parse_labels
from sf_llava.data.masks import MaskedSource
from sf_llava.data.transforms import Preprocessing
from sf_llava.measure.setup import teacher_of
from sf_llava.measure.store import digest_weights
from sf_llava.model import SparseFormerModel
from sf_llava.model.costs import count_multiply_adds, count_parameters
from sf_llava.model.loading import load_encoder
from sf_llava.report import environment
from sf_llava.segmentation.backbones import LatentBackbone, PatchBackbone
from sf_llava.segmentation.config import MAY_CHANGE, SegmentConfig
from sf_llava.segmentation.evaluation import evaluate
from sf_llava.segmentation.segmenter import Segmenter, TokenNet, load_segmenter
from sf_llava.segmentation.training import SegmentTrainer
from sf_llava.segmentation.unet import unet_of_cost
from sf_llava.teachers import load_teacher

DIGESTED = 16


def train(config: SegmentConfig, resume: bool = False) -> dict[str, Any]:
    """Train a segmenter, or go on with a run; return its results, as written to ``results.json``.

    Args:
        config: all of it.
        resume: whether a run in ``output`` may be continued.

    Raises:
        ValueError: encoder, data or numbers do not make a run, or ``output`` holds another.
        RuntimeError: the directory is another process's, or training diverged.
    """
    run = RunDirectory(config.output)
    accelerator = _make_accelerator(config)
    with files.locked(run.path) if accelerator.is_main_process else nullcontext():
        changes = run.check(config.to_dict(), resume, MAY_CHANGE, ("num_processes",))
        accelerator.wait_for_everyone()
        if run.results_path.exists():
            return files.read_json_object(run.results_path)
        return _train(config, accelerator, run, changes)


def _train(config: SegmentConfig, accelerator: Accelerator, run: RunDirectory, changes: dict) -> dict[str, Any]:
    labels = parse_labels(config.classes, list(config.ignored))
    data, held_out = (
        open_masked(name, split, labels) for name, split in ((config.data, "train"), (config.val_data, "validation"))
    )
    for name, source in ((config.data, data), (config.val_data, held_out)):
        accelerator.print(describe(name, source))
    if tuple(data.class_names) != tuple(held_out.class_names):
        raise ValueError(f"{config.data} and {config.val_data} have other classes: give both the same names")
    torch.manual_seed(config.seed)
    segmenter = build_segmenter(config, data.class_names, accelerator.device.type == "cpu")
    costs = measure_costs(segmenter)
    inputs = {"weights before training": digest_weights(segmenter.net), "training pictures": digest_pairs(data)}
    if accelerator.is_main_process:
        run.check_inputs(inputs)
    transform = MaskedTransform(segmenter.preprocessing, config.scale, config.flip, config.max_share, config.recolour)
    views = MaskedViews(data, transform, config.seed)
    trainer = SegmentTrainer(config, accelerator, segmenter, views, run)
    remarks = trainer.resume()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        remarks += run.start(config.to_dict() | {"inputs": inputs}, trainer.step, changes)
    for remark in remarks:
        accelerator.print(remark)
    started, first = time.monotonic(), trainer.step
    trainer.train()
    seconds = time.monotonic() - started
    state = accelerator.get_state_dict(trainer.net)
    if not accelerator.is_main_process:
        return {}
    segmenter.save(run.path / "segmenter", state)
    skipped = sorted(trainer.checkpoints.skipped)
    del trainer
    saved = load_segmenter(run.path, accelerator.device)
    found = evaluate([saved], held_out, limit=config.val_images, batch_size=16)
    results = {
        **found.scores[0].to_dict(),
        "costs": costs,
        "skipped_pairs": skipped,
        "left_out": list(data.left_out),
        "left_out_of_validation": found.left_out,
        "steps": config.steps,
        "seconds": round(seconds, 1),
        "steps_of_these_seconds": config.steps - first,
        "environment": environment(accelerator.device.type) | {"transformers": transformers.__version__},
    }
    files.write_bytes(run.path / "predictions.png", png(found.sheets[0]))
    files.write_json(run.results_path, results)
    return results


def build_segmenter(config: SegmentConfig, class_names: tuple[str, ...], on_cpu: bool = False) -> Segmenter:
    """Build what is trained, in float32, with ``requires_grad`` set.

    Raises:
        ValueError: no SparseFormer, or no teacher of this encoder.
    """
    encoder = resize(load_encoder(config.encoder), config.num_latents, config.image_size)
    if config.backbone == "teacher":
        return _build_on_teacher(config, class_names)
    if config.backbone == "random":
        encoder = SparseFormerModel(encoder.config)
    encoder.set_attn_implementation("eager" if on_cpu else "sdpa")  # whose backward is slower on a CPU
    shape, side = encoder.config, config.image_size
    preprocessing = Preprocessing(side, shape.image_mean, shape.image_std, shape.interpolation)
    backbone = LatentBackbone(encoder, config.drop_path)
    encoder.requires_grad_(not config.freeze)
    backbone.freeze_unread()
    net = TokenNet(backbone, len(class_names), config.head)
    if config.backbone == "unet":
        unet = unet_of_cost(len(class_names), side, count_multiply_adds(net, side))
        return Segmenter(unet, "unet", class_names, preprocessing, {"width": unet.stem.out_channels})
    return Segmenter(net, config.backbone, class_names, preprocessing, {}, config.head)


def _build_on_teacher(config: SegmentConfig, class_names: tuple[str, ...]) -> Segmenter:
    name = config.teacher or teacher_of(config.encoder)
    if name is None:
        raise ValueError(f"{config.encoder} does not say which teacher it was made from: name it with `teacher`")
    teacher, side = load_teacher(name), config.image_size
    if teacher.image_size != side:
        raise ValueError(f"teacher {name} reads {teacher.image_size} pixels a side: expected that as `image_size`")
    backbone = PatchBackbone(teacher)
    teacher.requires_grad_(not config.freeze)
    if not config.freeze:
        backbone.freeze_unread()
    given = teacher.preprocessing
    preprocessing = Preprocessing(side, given.mean, given.std, given.interpolation)
    net = TokenNet(backbone, len(class_names), config.head)
    return Segmenter(net, "teacher", class_names, preprocessing, {"teacher": name}, config.head)


def measure_costs(segmenter: Segmenter) -> dict[str, int]:
    """Count parameters (of a teacher, its image tower's) and multiply-adds of one window."""
    net, side = segmenter.net, segmenter.preprocessing.image_size
    parameters = count_parameters(net)
    if isinstance(net, TokenNet) and isinstance(net.backbone, PatchBackbone):
        teacher = net.backbone.teacher
        parameters += teacher.num_parameters() - count_parameters(teacher)
    return {"parameters": parameters, "multiply_adds": count_multiply_adds(net, side), "image_size": side}


def describe(name: str, source: MaskedSource) -> str:
    """Say how many pairs a set has, and what has no partner."""
    text = f"{name}: {len(source):,} pictures with masks, {len(source.class_names)} classes"
    if source.left_out:
        text += f"; left out without a partner: {len(source.left_out):,}, first {source.left_out[0]}"
    return text


def digest_pairs(source: MaskedSource) -> str:
    """Digest classes, the number of pairs, and the contents of some, evenly spaced; where they lie does not count."""
    digest = hashlib.blake2b(f"{source.class_names} {len(source)}".encode(), digest_size=20)
    for index in dict.fromkeys(place * len(source) // DIGESTED for place in range(DIGESTED)):
        try:
            image, labels = source.load(index)
        except CorruptImageError:
            digest.update(b"unusable")
            continue
        for array in (np.asarray(image), labels):
            digest.update(f"{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def png(image: Image.Image) -> bytes:
    """Encode a picture."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _make_accelerator(config: SegmentConfig) -> Accelerator:
    AcceleratorState._reset_state()  # a process may train several times, each time with a precision of its own
    on_cpu = config.device == "cpu" or not torch.accelerator.is_available()
    if config.dtype == "fp16" and on_cpu:
        raise ValueError("`dtype` fp16 does not train on a CPU; use bf16 or fp32")
    return Accelerator(cpu=on_cpu, mixed_precision="no" if config.dtype == "fp32" else config.dtype)
