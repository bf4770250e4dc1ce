"""Tuning with transformers' Trainer and PEFT: the projector as it is, the LLM by LoRA or whole, all else frozen.

What is tuned lies in Trainer's checkpoints (megabytes with LoRA, a whole LLaVA without), from which a killed run goes
on to the same numbers.
"""

import json
import shutil
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import LlavaForConditionalGeneration, Trainer, TrainerCallback, TrainingArguments, set_seed

from sf_llava.data.loading import START
from sf_llava.extras import require
from sf_llava.llava.adaptation import linear_modules
from sf_llava.tuning.conversations import Conversation
from sf_llava.tuning.encoding import Encoded, Encoder
from sf_llava.tuning.loss import answers_alone, loss_of_answers
from sf_llava.tuning.recipe import Recipe

PROJECTOR = "multi_modal_projector"


def adapt(model: LlavaForConditionalGeneration, recipe: Recipe) -> Any:
    """Train what ``recipe.train`` names, and freeze all else.

    Returns:
        The LLaVA in PEFT's wrapper, whose ``merge_and_unload()`` gives it back, tuned; itself where the LLM is trained
        whole.

    Raises:
        ModuleNotFoundError: peft is not installed.
    """
    if recipe.train == "projector+llm":
        model.requires_grad_(False)
        for part in (model.model.multi_modal_projector, model.model.language_model):
            part.float().requires_grad_(True)
        model.get_input_embeddings().requires_grad_(False)
        return model
    require("recovery", "peft")
    from peft import LoraConfig, get_peft_model
    from peft.utils.constants import DUMMY_TARGET_MODULES

    projector, lora = "projector" in recipe.train, "lora" in recipe.train
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        target_modules=linear_modules(model, ["llm"]) if lora else DUMMY_TARGET_MODULES,
        modules_to_save=[PROJECTOR] if projector else None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about names that PEFT uses
        return get_peft_model(model, config)


def tune(
    model: LlavaForConditionalGeneration,
    encoder: Encoder,
    conversations: Sequence[Conversation],
    recipe: Recipe,
    checkpoints: Path,
    on_cpu: bool,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[LlavaForConditionalGeneration, dict[str, Any]]:
    """Tune a LLaVA on conversations, from the newest checkpoint if there is one.

    Args:
        model: with the tower in place; its weights change.
        encoder: of its processor.
        conversations: what is tuned on.
        recipe: the numbers.
        checkpoints: directory of Trainer's checkpoints.
        on_cpu: leave a GPU alone.
        callbacks: Trainer's, beside its own.

    Returns:
        The LLaVA, adapters merged, in eval mode; and ``steps``, ``seconds`` of this process, ``trained`` (weights), and
        ``log``, what Trainer noted.

    Raises:
        ModuleNotFoundError: peft is not installed.
        ValueError: a batch that cannot be shared among the processes.
    """
    set_seed(recipe.seed)  # adapters are drawn before Trainer exists
    dtype = model.dtype
    model = adapt(model, recipe)
    if recipe.gradient_checkpointing:
        model.enable_input_require_grads()
    arguments = make_arguments(recipe, len(conversations), checkpoints, on_cpu)
    trainer = Trainer(
        model,
        arguments,
        data_collator=answers_alone(encoder.collate),
        train_dataset=Encoded(conversations, encoder),
        callbacks=list(callbacks),
        compute_loss_func=loss_of_answers,
    )
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    start = time.monotonic()
    trainer.train(resume_from_checkpoint=find_checkpoint(checkpoints))
    seconds = time.monotonic() - start
    log = trainer.state.log_history
    told = {"steps": trainer.state.global_step, "seconds": seconds, "trained": trained, "log": log}
    tuned = model.to(dtype) if recipe.train == "projector+llm" else model.merge_and_unload()
    return tuned.eval(), told


def make_arguments(recipe: Recipe, total: int, checkpoints: Path, on_cpu: bool) -> TrainingArguments:
    """Word a recipe for Trainer.

    Raises:
        ValueError: a batch that cannot be shared among the processes.
    """
    options: dict[str, Any] = dict(
        output_dir=str(checkpoints),
        learning_rate=recipe.lr,
        lr_scheduler_type="cosine",
        seed=recipe.seed,
        bf16=recipe.bf16,
        use_cpu=on_cpu,
        ddp_find_unused_parameters=False,
        save_steps=recipe.save_steps,
        save_total_limit=2,
        logging_steps=10,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=recipe.workers,
        report_to="none",
    )
    known = TrainingArguments.__dataclass_fields__
    if recipe.workers and "dataloader_multiprocessing_context" in known:  # of newer transformers
        options["dataloader_multiprocessing_context"] = START
    if recipe.gradient_checkpointing:  # by its name from transformers 5.24 on, or the one before
        name = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in known)
        options |= {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    at_once, times = recipe.accumulate(TrainingArguments(**options).world_size)
    steps = recipe.steps or -(-total // recipe.batch_size)
    return TrainingArguments(
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=times,
        max_steps=steps,
        warmup_steps=-(-3 * steps // 100),
        **options,
    )


def find_checkpoint(checkpoints: Path) -> str | None:
    """Find the newest whole checkpoint; those that a kill cut off, which lack the state written last, are removed."""
    whole: dict[int, Path] = {}
    for path in checkpoints.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            whole[state["global_step"]] = path
        except (OSError, ValueError, KeyError, TypeError):
            shutil.rmtree(path, ignore_errors=True)
    return str(whole[max(whole)]) if whole else None
