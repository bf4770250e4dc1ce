"""A recovery, start to end: measure the LLaVA, swap, measure, tune, merge, save, measure again.

The directory of a recovery:

config.json    what it depends on; another recovery is refused there
held_out/      what was measured, by tower: original, swapped, recovered
checkpoints/   Trainer's
llava/         the recovered LLaVA, an ordinary directory
results.json   everything measured, with the machine

Whatever is there is not done again, so the same command goes on after a kill.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import transformers
from accelerate import PartialState
from transformers import LlavaForConditionalGeneration, LlavaProcessor, TrainerCallback

from sf_llava import files
from sf_llava.devices import choose_device
from sf_llava.extras import require
from sf_llava.llava.fitting import check_fit, find_interface
from sf_llava.llava.host import refuse_tiles
from sf_llava.llava.loading import load_llava
from sf_llava.llava.swapping import swap
from sf_llava.llava.tokens import complete_processor
from sf_llava.measure.store import digest_texts, digest_weights
from sf_llava.model.loading import load_encoder
from sf_llava.report import environment
from sf_llava.scienceqa.run import Generation
from sf_llava.tuning.conversations import TuningData, open_data
from sf_llava.tuning.encoding import Encoder
from sf_llava.tuning.measure import measure
from sf_llava.tuning.recipe import Recipe
from sf_llava.tuning.training import tune

DTYPES = ("fp32", "bf16")
MAY_CHANGE = ("device", "output", "micro_batch_size", "gradient_checkpointing", "save_steps", "workers")
"""What a recovery may go on with otherwise than it began."""


@dataclass(frozen=True)
class Recovery:
    """What is recovered, on what, and how.

    Attributes:
        llava: with its own tower; a directory in either format, a hub name or ``mini``.
        encoder: directory of a SparseFormer or of its run.
        data, images, split, held_out: see :func:`sf_llava.tuning.conversations.open_data`.
        output: directory of all that is written.
        recipe: numbers of the tuning.
        tower, conversation: for LLaVAs in the original format, see ``load_llava``.
        device: ``auto``, ``cpu`` or a device.
        dtype: of weights: fp32, or bf16 with adapters in fp32.
        max_new_tokens: of a generated answer.
    """

    llava: str
    encoder: str
    data: str
    output: str
    images: str | None = None
    split: str = "test"
    held_out: int | None = None
    recipe: Recipe = field(default_factory=Recipe)
    tower: str | None = None
    conversation: str | None = None
    device: str = "auto"
    dtype: str = "fp32"
    max_new_tokens: int = 1024

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown `dtype` {self.dtype!r}: tuned is in {' or '.join(DTYPES)}")


def recover(recovery: Recovery, callbacks: tuple[TrainerCallback, ...] = ()) -> dict[str, Any]:
    """Recover a LLaVA from a swap, or go on with a recovery.

    Args:
        recovery: all of it.
        callbacks: Trainer's, beside its own.

    Returns:
        ``towers`` (see :func:`sf_llava.tuning.measure.measure`, by name: original, swapped, recovered), ``training``
        (``steps``, ``seconds``, ``trained``, ``log``), ``settings``, ``environment``, ``left_out`` (counts by reason).

    Raises:
        ModuleNotFoundError: peft is not installed.
        ValueError: LLaVA, encoder or data do not fit, or ``output`` holds something else.
    """
    require("recovery", "peft")
    output, device = Path(recovery.output), choose_device(recovery.device)
    state = PartialState()
    recovery.recipe.accumulate(state.num_processes)  # or raise now
    data = open_data(recovery.data, recovery.images, recovery.split, recovery.held_out, recovery.recipe.seed)
    if state.is_main_process:
        print(data.describe(), flush=True)
    sparseformer = load_encoder(recovery.encoder, dtype=recovery.dtype)
    model, processor = _load(recovery.llava, recovery)
    refuse_tiles(model, "recovery")
    check_fit(sparseformer, model.config, find_interface(model).width)
    settings = _settings(recovery) | {
        "weights": [digest_weights(model), digest_weights(sparseformer)],
        "conversations": _digest(data),
    }
    model.to(device)
    if state.is_main_process:
        _claim(output, settings)
    state.wait_for_everyone()
    complete_processor(model, processor)
    results = {"original": _measure(model, processor, data, "original", recovery)}
    swap(model, processor, sparseformer)
    results["swapped"] = _measure(model, processor, data, "swapped", recovery)
    if not (output / "llava").is_dir():
        encoder = _encoder(model, processor, recovery)
        on_cpu = device.type == "cpu"
        model, told = tune(model, encoder, data.train, recovery.recipe, output / "checkpoints", on_cpu, callbacks)
        if state.is_main_process:
            _save(model, processor, output, told)
        state.wait_for_everyone()
    else:
        model, processor = _load(str(output / "llava"), replace(recovery, tower=None))
        model.to(device)
    results["recovered"] = _measure(model, processor, data, "recovered", recovery)
    everything = {
        "settings": settings,
        "environment": environment(device.type) | {"transformers": transformers.__version__},
        "left_out": {reason: len(entries) for reason, entries in data.left_out.items()},
        "training": files.read_json_object(output / "training.json"),
        "towers": results,
    }
    if state.is_main_process:
        files.write_json(output / "results.json", everything)
    return everything


def _load(name: str, recovery: Recovery) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    return load_llava(
        name, dtype=recovery.dtype, tower=recovery.tower, conversation=recovery.conversation or "vicuna_v1"
    )


def _encoder(model: LlavaForConditionalGeneration, processor: LlavaProcessor, recovery: Recovery) -> Encoder:
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return Encoder(processor, recovery.conversation, longest)


def _measure(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, data: TuningData, name: str, recovery: Recovery
) -> dict[str, Any]:
    recipe = recovery.recipe
    generation = Generation(recovery.max_new_tokens, conversation=recovery.conversation)
    at_once = recipe.micro_batch_size or recipe.batch_size
    encoder = _encoder(model, processor, recovery)
    return measure(model, encoder, data, Path(recovery.output) / "held_out", name, generation, at_once)


def _settings(recovery: Recovery) -> dict[str, Any]:
    """What the results depend on, by name."""
    fields = asdict(recovery)
    fields |= fields.pop("recipe")
    return {name: value for name, value in fields.items() if name not in MAY_CHANGE}


def _digest(data: TuningData) -> str:
    return digest_texts(*(text for one in (*data.train, *data.held_out) for text in (one.id, *one.turns)))


def _claim(output: Path, settings: dict[str, Any]) -> None:
    """Write down what a recovery depends on, or check it against what is written there."""
    file, way_out = output / "config.json", "name another `output`, or remove it"
    if not file.is_file():
        if found := sorted(path.name for path in output.glob("*") if path.name != files.LOCK_NAME):
            raise ValueError(f"{output} holds {found[0]} without the config.json of a recovery: {way_out}")
        files.write_json(file, settings)
        return
    before = files.read_json_object(file)
    if changed := [name for name in settings if before.get(name) != settings[name]]:
        name = changed[0]
        raise ValueError(
            f"{output} holds a recovery with other settings ({name} was {before.get(name)!r}, now {settings[name]!r}): "
            f"{way_out}"
        )


def _save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, output: Path, told: dict[str, Any]) -> None:
    """Write the LLaVA, whole or not at all, as an ordinary directory."""
    files.write_json(output / "training.json", told)

    def fill(directory: Path) -> None:
        model.save_pretrained(directory)
        processor.save_pretrained(directory)

    files.write_directory(output / "llava", fill)
