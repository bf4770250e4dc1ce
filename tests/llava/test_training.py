"""A swapped LLaVA under transformers' Trainer, TRL and PEFT: the losses of a loop written by hand."""

import copy

import pytest
import torch
from transformers import Trainer, TrainingArguments
from tuning_fixtures import LR, make_conversations, make_rows, make_swapped, picture, train_by_hand

from sf_llava import freeze_unused, linear_modules
from sf_llava.tuning.encoding import Encoder

peft = pytest.importorskip("peft", reason="peft is not installed (extra 'train')")
WAYS = ("projector", "lora llm", "lora tower", "everything")
NEW = "activation_checkpointing" in TrainingArguments.__dataclass_fields__
CHECKPOINTING = "activation_checkpointing" if NEW else "gradient_checkpointing"


def prepare(way: str):
    """A swapped LLaVA of which ``way`` is trained, and its processor."""
    model, processor = make_swapped()
    freeze_unused(model)
    if way == "projector":
        model.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(True)
    elif way.startswith("lora"):
        torch.manual_seed(3)
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=linear_modules(model, [way[5:]])))
    return model, processor


def arguments(path, **changes) -> TrainingArguments:
    options = dict(per_device_train_batch_size=2, max_steps=3, learning_rate=LR, lr_scheduler_type="constant",
                   weight_decay=0.0, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True,
                   remove_unused_columns=False, disable_tqdm=True, label_names=["labels"])  # fmt: skip
    return TrainingArguments(output_dir=str(path), **(options | changes))


def losses_of(trainer: Trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("way", "checkpointing"),
    [(way, None) for way in WAYS]
    + [(way, {"use_reentrant": old}) for way in ("lora tower", "everything") for old in (True, False)],
)
def test_trainer_gives_the_losses_of_a_loop_by_hand(way, checkpointing, tmp_path):
    model, processor = prepare(way)
    rows, collate = make_rows(processor), Encoder(processor).collate
    changes = {}
    if checkpointing:
        model.enable_input_require_grads()
        changes = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": checkpointing}
    by_hand = copy.deepcopy(model)
    trainer = Trainer(model, arguments(tmp_path, **changes), data_collator=collate, train_dataset=rows)
    batches = list(trainer.get_train_dataloader())
    losses = losses_of(trainer)
    expected = train_by_hand(by_hand, batches, clip=1.0)
    assert len(losses) == 3 and losses == pytest.approx(expected, rel=1e-5)
    assert expected[2] != pytest.approx(expected[0], rel=1e-3)  # it learns something
    ours, theirs = dict(model.named_parameters()), dict(by_hand.named_parameters())
    moved = [name for name, weight in theirs.items() if weight.requires_grad]
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in moved)


@pytest.mark.parametrize("way", ["lora llm", "everything"])
def test_sft_trainer_gives_the_losses_of_a_loop_by_hand(way, tmp_path):
    trl = pytest.importorskip("trl", reason="trl is not installed (development)")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra 'data')")
    model, processor = prepare(way)
    entries = [
        {
            "images": [picture(number)],
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": one.turns[0]}]}],
            "completion": [{"role": "assistant", "content": [{"type": "text", "text": one.turns[1]}]}],
        }
        for number, one in enumerate(make_conversations())
    ]
    options = dict(per_device_train_batch_size=2, max_steps=2, learning_rate=LR, lr_scheduler_type="constant",
                   weight_decay=0.0, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, bf16=False,
                   disable_tqdm=True, max_length=None)  # fmt: skip
    options |= {CHECKPOINTING: False}
    by_hand = copy.deepcopy(model)
    trainer = trl.SFTTrainer(
        model,
        trl.SFTConfig(output_dir=str(tmp_path), **options),
        train_dataset=datasets.Dataset.from_list(entries),
        processing_class=processor,
    )
    batches = list(trainer.get_train_dataloader())
    losses = losses_of(trainer)
    kept = ("input_ids", "attention_mask", "pixel_values", "labels")
    expected = train_by_hand(by_hand, [{name: batch[name] for name in kept} for batch in batches[:2]], clip=1.0)
    assert len(losses) == 2 and losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("part", ["tower", "projector", "llm"])
def test_adapters_come_back_to_the_bit_and_merge(part, tmp_path):
    model, processor = make_swapped()
    names = linear_modules(model, [part])
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=names))
    batch = Encoder(processor).collate(make_rows(processor))
    train_by_hand(model, [batch] * 2)
    adapted = {name for name, weight in model.named_parameters() if "lora_B" in name and weight.abs().sum() > 0}
    assert len(adapted) == len(names)  # every layer that is named is run, and learns
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
        model.save_pretrained(tmp_path)
        again = peft.PeftModel.from_pretrained(make_swapped()[0], tmp_path).eval()
        assert (again(**inputs).logits - logits).abs().max() == 0.0
        assert (model.merge_and_unload()(**inputs).logits - logits).abs().max() < 1e-4
