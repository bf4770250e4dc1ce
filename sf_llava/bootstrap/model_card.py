"""The model card beside a bootstrapped encoder: what it was made from, how, and what was measured."""

from typing import Any

from sf_llava.bootstrap.config import BootstrapConfig

SPARSEFORMER = """---
library_name: transformers
tags: [sparseformer, vision-encoder]
---
# SparseFormer with {latents} latents, bootstrapped from {teacher}

Reads a {size} px image with {latents} latent tokens (the teacher: {teacher_tokens} patches). Made by `sf_llava`
without labels: the teacher's last {blocks} blocks are inherited, the final embedding is aligned with the teacher's.

```python
from sf_llava import SparseFormerModel
encoder = SparseFormerModel.from_pretrained(".")
embeds = encoder(pixel_values).image_embeds   # pixel_values: (B, 3, {size}, {size}), mean {mean}, std {std}
```
"""

TUNED = """# {teacher} with fewer tokens, {reduction}, tuned for it

Reads a {size} px image, of whose {teacher_tokens} patches {latents} are left in the end. Made by `sf_llava` without
labels: the teacher's blocks are tuned so that the final embedding is the whole teacher's. They need it beside them.

```python
from sf_llava.measure.tuned import load_tuned
from sf_llava.teachers import load_teacher
encoder = load_tuned(".", load_teacher("{teacher}"))
embeds = encoder(pixel_values).image_embeds   # pixel_values: (B, 3, {size}, {size}), mean {mean}, std {std}
```
"""

TABLE = """
| | |
|---|---|
| stage | {stage}{init} |
| images | `{data}` |
| steps, batch | {steps}, {batch} |
| loss | {loss}, learning rate {lr} |
| alignment of tokens | {alignment} |
| cosine to the teacher, held-out images | {cosine:.4f} |
{zero_shot}| parameters, multiply-adds | {parameters:.2f} M, {multiply_adds:.3g} G |
| seed, dtype | {seed}, {dtype} |
"""


def model_card(config: BootstrapConfig, results: dict[str, Any], mean: tuple, std: tuple) -> str:
    """Write the card from the run's configuration and results."""
    teacher, student = results["encoders"]
    lines = ""
    if results["zero_shot"]:
        first, second = results["zero_shot"]["encoders"]
        lines = (
            f"| zero-shot top-1 on `{config.data.val_data}` ({results['zero_shot']['num_images']:,} images) | "
            f"{second['top1']:.2%} (teacher {first['top1']:.2%}) |\n"
        )
    inheritance = results["inheritance"]
    card = (SPARSEFORMER if config.student.reduce is None else TUNED) + TABLE
    return card.format(
        reduction=config.student.reduce,
        latents=student["tokens"],
        teacher=config.run.teacher,
        teacher_tokens=teacher["tokens"],
        size=student["image_size"],
        blocks=inheritance["num_tunable"] + inheritance["num_frozen"] if inheritance["reused"] else 0,
        mean=tuple(round(value, 4) for value in mean),
        std=tuple(round(value, 4) for value in std),
        stage=config.run.stage,
        init=f", continued from `{config.student.init_from}`" if config.student.init_from else "",
        data=config.data.data,
        steps=results["step"],
        batch=config.optimiser.batch_size,
        loss=config.objective.loss,
        lr=config.optimiser.lr,
        alignment=_alignment(config),
        cosine=results["val_cosine"],
        zero_shot=lines,
        parameters=student["parameters"] / 1e6,
        multiply_adds=student["multiply_adds"] / 1e9,
        seed=config.run.seed,
        dtype=results["dtype"],
    )


def _alignment(config: BootstrapConfig) -> str:
    if not config.objective.align:
        return "none (the paper)"
    llm = f", questions `{config.objective.questions}` to `{config.objective.llava}`" if config.objective.llava else ""
    return f"`{config.objective.align_text}` on hidden states {config.objective.align_layer}{llm}"
