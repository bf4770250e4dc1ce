"""The model card of a published directory: what it is, how it is loaded, what was measured, what it was made from."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sf_llava.configuration import SparseFormerConfig


@dataclass(frozen=True)
class Origin:
    """What a published directory was made from.

    Attributes:
        encoder: name of the encoder, or of its run.
        digest: of the encoder's weights.
        versions: releases of the packages that wrote it, by name.
        run: the configuration of the encoder's run, its ``config.json``; None where no run lies around it.
        results: what the run measured, its ``results.json``; None where it did not end.
        llava: name of the LLaVA; None for an encoder alone.
        num_patches: M, the patches of the tower that the LLaVA's LLM was trained with; None where not known.
        is_placed: whether it reads by RoI centre with the attention bias in every call.
        license: of the weights; None where it was not named.
    """

    encoder: str
    digest: str
    versions: Mapping[str, str]
    run: Mapping[str, Any] | None
    results: Mapping[str, Any] | None
    llava: str | None = None
    num_patches: int | None = None
    is_placed: bool = False
    license: str | None = None


LLAVA_CARD = """\
# {title}: a SparseFormer reads its images

`{llava}` with a SparseFormer of **{latents} latent tokens** as its vision tower{instead_of}. Projector and LLM are
unchanged.

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{title}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{title}", backend="pil")  # pixels as it was measured with
inputs = processor(images=image, text="USER: <image>\\nWhat is this?\\nASSISTANT:", return_tensors="pt")
print(processor.decode(model.generate(**inputs, max_new_tokens=64)[0]))
```

With the package `sf_llava` it is `load_llava("{title}")`, without code from this directory and with fast kernels on
GPUs.{in_place}
"""
ENCODER_CARD = """\
# {title}: a SparseFormer with {latents} latent tokens

Reads an image of {size} px with {latents} latent tokens, each of which moves its region of interest to what matters.

```python
from transformers import AutoImageProcessor, AutoModel

encoder = AutoModel.from_pretrained("{title}", trust_remote_code=True)
images = AutoImageProcessor.from_pretrained("{title}", trust_remote_code=True)
embeds = encoder(**images(image, return_tensors="pt")).image_embeds
```

With the package `sf_llava` it is `load_encoder("{title}")`, without code from this directory and with fast kernels on
GPUs.
"""
IN_PLACE = """ There \
`generate_in_place(model, inputs, {patches})` also tells the LLM where each latent looks."""
PLACED = """ In every call \
the LLM is told where each latent looks (positions and bias); a server with a forward of its own, such as vLLM, reads \
the tokens as they come."""


def write_card(title: str, config: SparseFormerConfig, origin: Origin) -> str:
    """Write the card of a LLaVA, or of an encoder where ``origin`` names no LLaVA.

    Args:
        title: what the directory is called.
        config: of the encoder.
        origin: what it was made from.
    """
    patches = origin.num_patches
    text = (LLAVA_CARD if origin.llava else ENCODER_CARD).format(
        title=title,
        llava=origin.llava and public_name(origin.llava),
        latents=config.num_latents,
        size=config.image_size,
        instead_of=f", in place of {patches} patches" if patches else "",
        in_place=PLACED if origin.is_placed else IN_PLACE.format(patches=patches) if patches else "",
    )
    return "\n".join(filter(None, (_front_matter(origin), text, _measured(origin), _made_from(origin))))


def public_name(name: str) -> str:
    """Give a name without the folders of a machine: ``folder:/data/imagenet/train`` is ``folder:train``."""
    kind, colon, where = name.rpartition(":")
    return kind + colon + (where if re.fullmatch(r"[\w.-]+/[\w.-]+", where) else where.rstrip("/").rpartition("/")[2])


def _front_matter(origin: Origin) -> str:
    task = "image-text-to-text" if origin.llava else "image-feature-extraction"
    lines = ["library_name: transformers", f"pipeline_tag: {task}", "tags: [sparseformer, vision-encoder, sf_llava]"]
    if origin.license:
        lines.append(f"license: {origin.license}")
    return "\n".join(["---", *lines, "---"])


def _measured(origin: Origin) -> str:
    """Write the table of what the run measured; empty without."""
    if origin.results is None:
        return "## Measured\n\nNo run with results lay beside the encoder: nothing is claimed.\n"
    results = origin.results
    teacher, student = results["encoders"]
    rows = [
        ("tokens an image", f"{teacher['tokens']}", f"{student['tokens']}"),
        *(
            (title, f"{teacher[key] / scale:.3g} {unit}", f"{student[key] / scale:.3g} {unit}")
            for title, key, scale, unit in (
                ("parameters", "parameters", 1e6, "M"),
                ("multiply-adds", "multiply_adds", 1e9, "G"),
            )
        ),
        ("cosine to the teacher, held-out images", "", f"{results['val_cosine']:.4f}"),
    ]
    if zero_shot := results["zero_shot"]:
        first, second = zero_shot["encoders"]
        rows.append(
            (
                f"zero-shot top-1, {zero_shot['num_images']:,} images, {zero_shot['num_classes']:,} classes",
                f"{first['top1']:.2%}",
                f"{second['top1']:.2%}",
            )
        )
    table = "".join(f"| {what} | {of_teacher} | {of_student} |\n" for what, of_teacher, of_student in rows)
    where = (
        f"By the encoder's run, {results['dtype']}, seed {results['seed']}. Of the encoder, not of the LLaVA's answers."
    )
    return f"## Measured\n\n| | teacher | SparseFormer |\n|---|---|---|\n{table}\n{where}\n"


def _made_from(origin: Origin) -> str:
    run = origin.run or {}
    facts = {
        "LLaVA": origin.llava and public_name(origin.llava),
        "encoder": public_name(origin.encoder),
        "digest of its weights": origin.digest,
        **{name: public_name(str(run[name])) for name in ("teacher", "data", "init_from", "align") if run.get(name)},
        "steps, seed": f"{run['steps']}, {run['seed']}" if run.get("steps") else None,
        "written by": ", ".join(f"{name} {version}" for name, version in origin.versions.items()),
        "licence of the code": "Apache-2.0",
        "licence of the weights": origin.license
        or f"not named; those of {'the LLaVA and of ' if origin.llava else ''}the teacher bind",
    }
    return "## Made from\n\n| | |\n|---|---|\n" + "".join(f"| {name} | {it} |\n" for name, it in facts.items() if it)
