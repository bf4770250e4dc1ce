"""Trainer and PEFT on a swapped LLaVA whose LLM is no random one: SmolLM2-135M-Instruct (make test-llm)."""

import copy

import pytest
import torch
from smollm2_llava import make_smollm2_llava, require_smollm2
from transformers import Trainer, TrainingArguments
from tuning_fixtures import LR, make_conversations, make_rows, mean_loss

from sf_llava import SparseFormerModel, freeze_unused, linear_modules, load_llava, preset, swap
from sf_llava.export import formats
from sf_llava.export.features import ImageFeatures
from sf_llava.tuning.encoding import Encoder

peft = pytest.importorskip("peft", reason="peft is not installed (extra 'train')")
QUESTION = [{"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]}]


@pytest.fixture(scope="module")
def smollm2():
    """The LLaVA with a random SparseFormer of 16 latents in its tower's place, and its processor."""
    require_smollm2()
    model, processor = make_smollm2_llava()
    torch.manual_seed(0)
    swap(model, processor, SparseFormerModel(preset("sf-mini")).eval())
    freeze_unused(model)
    return model, processor


def answer(model, processor) -> str:
    prompt = processor.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=prompt, return_tensors="pt")
    new = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(new, skip_special_tokens=True)


@pytest.mark.slow
def test_it_knows_what_it_knew_swapped_saved_and_loaded(smollm2, tmp_path):
    model, processor = smollm2
    assert answer(model, processor) == "The capital of France is Paris."
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert answer(*load_llava(tmp_path)) == "The capital of France is Paris."


@pytest.mark.slow
def test_labels_are_the_answers_in_its_own_marks(smollm2):
    _, processor = smollm2
    encoder, (one,) = Encoder(processor), make_conversations(1)
    row = encoder.encode(one)
    assert (row["input_ids"] == processor.image_token_id).sum() == 16
    assert processor.tokenizer.decode(row["labels"][row["labels"] >= 0]) == "a cat<|im_end|>"


@pytest.mark.slow
def test_trainer_and_peft_give_the_losses_of_a_loop_by_hand(smollm2, tmp_path):
    model, processor = smollm2
    torch.manual_seed(3)
    config = peft.LoraConfig(
        r=4, target_modules=linear_modules(model, ["llm"]), modules_to_save=["multi_modal_projector"]
    )
    model = peft.get_peft_model(copy.deepcopy(model), config)
    rows, encoder = make_rows(processor, 2), Encoder(processor)
    rate = LR / 10
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"), per_device_train_batch_size=2, max_steps=2, learning_rate=rate,
        lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to="none", use_cpu=True,
        remove_unused_columns=False, disable_tqdm=True, label_names=["labels"], max_grad_norm=0.0,
    )  # fmt: skip
    by_hand = copy.deepcopy(model).train()
    trainer = Trainer(model, arguments, data_collator=encoder.collate, train_dataset=rows)
    (batch,) = trainer.get_train_dataloader()
    trainer.train()
    optimizer = torch.optim.AdamW([one for one in by_hand.parameters() if one.requires_grad], lr=rate, weight_decay=0)
    expected = []
    for _ in range(2):
        loss = mean_loss(by_hand, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] == pytest.approx(
        expected, rel=1e-4
    )
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
        model.save_pretrained(tmp_path / "adapters")
        again = peft.PeftModel.from_pretrained(copy.deepcopy(smollm2[0]), tmp_path / "adapters").eval()
        assert (again(**inputs).logits - logits).abs().max() == 0.0
        merged = model.merge_and_unload()(**inputs).logits
    assert (merged - logits).abs().max() < 1e-4 * logits.abs().max()


@pytest.mark.slow
def test_an_exported_encoder_with_the_projector_gives_what_the_llm_reads(smollm2, tmp_path):
    pytest.importorskip("onnxruntime", reason="runs ONNX files")
    model, _ = smollm2
    features = ImageFeatures.of_llava(model, model.model.vision_tower).eval()
    with torch.no_grad():
        formats.write(features, "onnx", tmp_path, 64, features.output_name)
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    read = torch.stack(list(model.get_image_features(pixels).pooler_output)).detach()
    assert read.shape == (3, 16, model.config.text_config.hidden_size)
    assert (formats.open_file("onnx", tmp_path)(pixels) - read).abs().max() < 1e-4 * max(1, read.abs().max())
