"""Every family of LLaVAs beside the plain one: what fits, what is refused and why, what of the package works there."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_hosts import HOSTS, IMAGE, SIDE, TILED, make_host, make_host_processor, make_student_of, make_vip
from tiny_scienceqa import write_scienceqa
from transformers import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from sf_llava.commands import scienceqa
from sf_llava.demo.conversation import CLIP, SPARSEFORMER, Answer, Turn
from sf_llava.demo.engine import Engine, Sampling
from sf_llava.demo.uploads import Picture
from sf_llava.export.features import ImageFeatures
from sf_llava.llava import (
    encode_prompts,
    freeze_unused,
    generate_in_place,
    linear_modules,
    load_llava,
    swap,
    swapped,
)
from sf_llava.llava.reading import layer_field, read_views
from sf_llava.llava.reduction import reduced
from sf_llava.llava.tokens import complete_processor
from sf_llava.llava.towers import tower_in_place
from sf_llava.mini import MINI_STUDENT_DIR
from sf_llava.mini.questions.mosaics import open_mosaics
from sf_llava.mini.training.tiled_training import build_tiled
from sf_llava.publish.writing import publish_llava
from sf_llava.scienceqa.run import Answerer, Generation
from sf_llava.tuning.encoding import Encoder

PICTURE = Image.effect_noise((70, 50), 90).convert("RGB")
PROMPT = "USER: <image> what is in the image ? ASSISTANT:"


def inputs_of(processor):
    return encode_prompts(processor, [PROMPT], [[PICTURE]])


def test_a_vip_llava_reads_several_layers_of_the_encoder_and_never_cls():
    model, processor, encoder = make_vip([-2, -3]), make_host_processor("vip"), make_student_of("vip", 5)
    config, before = model.config.to_dict(), model(**inputs_of(processor)).logits
    with swapped(model, processor, encoder), torch.no_grad():
        inputs = inputs_of(processor)
        assert int((inputs["input_ids"] == IMAGE).sum()) == 5
        states = encoder(inputs["pixel_values"], output_hidden_states=True).hidden_states
        expected = model.model.multi_modal_projector(torch.cat([states[-2], states[-3]], dim=-1)[:, 1:])
        given = model.get_image_features(inputs["pixel_values"]).pooler_output
        torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(read_views(model, inputs["pixel_values"]), expected, atol=1e-5, rtol=1e-5)
        assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[0] == 1
        with pytest.raises(ValueError, match=r"reads its tower at one vision_feature_layer, not \[-2, -3\]"):
            generate_in_place(model, inputs, 16)
    assert model.config.to_dict() == config and torch.equal(model(**inputs_of(processor)).logits, before)


def test_a_layer_counted_from_the_front_is_the_same_one_or_refused():
    processor, encoder = make_host_processor("vip"), make_student_of("vip", 5, num_hidden_layers=2)
    model = make_vip([-2, 2])  # the same state of three blocks, by both ways of counting
    swap(model, processor, encoder)
    assert getattr(model.config, layer_field(model.config)) == [-2, -2]
    with pytest.raises(ValueError, match=r"reads hidden state -4 .* the encoder has 3 \(its input and 2 layers\)"):
        swap(make_vip([-2, 0]), processor, encoder)  # the focusing transformer stands for the blocks in front


def test_a_vip_llava_of_one_layer_generates_with_positions_and_bias():
    model, processor = make_vip(-2), make_host_processor("vip")
    with swapped(model, processor, make_student_of("vip", 5)) as record:
        answer = generate_in_place(model, inputs_of(processor), record.num_patches, max_new_tokens=2, do_sample=False)
        assert answer.shape[0] == 1
    with reduced(model, processor, "pooled"):
        inputs = inputs_of(processor)
        assert int((inputs["input_ids"] == IMAGE).sum()) == 4
        model(**inputs)


@pytest.mark.parametrize("name", TILED)
def test_what_is_written_for_one_square_a_picture_is_refused_for_tiles(name, tmp_path):
    model, processor, encoder = make_host(name), make_host_processor(name), make_student_of(name)
    sentence = f"not for a {type(model).__name__}, which reads a picture as several tiles"
    with pytest.raises(ValueError, match=f"an exported file.*{sentence}"):
        ImageFeatures.of_llava(model, encoder)
    with (
        pytest.raises(ValueError, match=f"a tower of the kind pooled: {sentence}"),
        reduced(model, processor, "pooled"),
    ):
        pass
    with swapped(model, processor, encoder):
        with pytest.raises(ValueError, match="one number of tokens for every picture"):
            Encoder(processor)
        model.save_pretrained(tmp_path / "saved"), processor.save_pretrained(tmp_path / "saved")
    encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"only a LlavaForConditionalGeneration can be published, .* a SparseFormerLl"):
        publish_llava(tmp_path / "saved", tmp_path / "encoder", tmp_path / "published")


@pytest.mark.parametrize("name", HOSTS)
def test_what_is_worth_training_is_what_is_read(name):
    model, processor = make_vip() if name == "vip" else make_host(name), make_host_processor(name)
    with swapped(model, processor, make_student_of(name)):
        modules, frozen = linear_modules(model, ["tower"]), freeze_unused(model)
        last = model.model.vision_tower.config.num_hidden_layers - 1
        assert modules and not any(module.startswith(f"model.vision_tower.cortex.{last}.") for module in modules)
        assert any(weight.startswith(f"model.vision_tower.cortex.{last}.") for weight in frozen)
        model.train()(**inputs_of(processor), labels=inputs_of(processor)["input_ids"]).loss.backward()
        unread = [weight for weight, value in model.named_parameters() if value.requires_grad and value.grad is None]
        assert not [weight for weight in unread if "vision_tower" in weight or "projector" in weight]


@pytest.mark.parametrize("name", HOSTS)
def test_an_old_processor_is_completed(name):
    model, processor = make_vip() if name == "vip" else make_host(name), make_host_processor(name)
    right = processor.to_dict()
    for field in ("num_image_tokens", "num_additional_image_tokens", "patch_size"):
        if hasattr(processor, field):
            setattr(processor, field, 0 if "additional" in field else None)
    complete_processor(model, processor)
    assert processor.to_dict() == right
    model(**inputs_of(processor))
    swap(model, processor, make_student_of(name))
    fitted = processor.to_dict()
    complete_processor(model, processor)
    assert processor.to_dict() == fitted


def test_qwen_like_and_other_models_are_refused_with_the_reason(tmp_path):
    with torch.device("meta"):
        qwen = Qwen2VLForConditionalGeneration(
            Qwen2VLConfig(
                vision_config=dict(depth=1, embed_dim=16, hidden_size=16, num_heads=2, patch_size=4),
                text_config=dict(
                    hidden_size=16,
                    intermediate_size=16,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    num_key_value_heads=2,
                    vocab_size=32,
                    rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2]),
                ),
            )
        )
        small = make_host("llava").config
        video = VideoLlavaForConditionalGeneration(
            VideoLlavaConfig(vision_config=small.vision_config, text_config=small.text_config)
        )
    for model, sentence in (
        (qwen, "a Qwen2VLForConditionalGeneration: it merges patches that are neighbours on a grid .*M-RoPE"),
        (video, "a VideoLlavaForConditionalGeneration: it has a tower for pictures and another for videos"),
        (qwen.model.language_model, "expected one of LlavaForConditionalGeneration, .*, not Qwen2VLTextModel"),
    ):
        with pytest.raises(ValueError, match=sentence):
            swap(model, make_host_processor("llava"), make_student_of("llava"))
    for kind, sentence in (
        ("qwen3_vl", "cannot be its tower: it merges patches"),
        ("fuyu", "model_type 'fuyu' in its"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(dict(model_type=kind)))
        save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=sentence):
            load_llava(tmp_path)


@pytest.mark.parametrize("name", ["next", "onevision"])
def test_questions_are_asked_and_a_chat_goes_on_through_both_towers(name, tmp_path):
    model, processor, encoder = make_host(name), make_host_processor(name), make_student_of(name, 5)
    for what, folder in ((model, "host"), (processor, "host"), (encoder, "encoder")):
        what.save_pretrained(tmp_path / folder)
    data = write_scienceqa(tmp_path / "data", 4)
    options = ["--data", str(data), "--device", "cpu", "--max-new-tokens", "2", "--batch-size", "2", "--dtype", "fp32"]
    host, found = ["--model", str(tmp_path / "host")], ["--encoder", str(tmp_path / "encoder")]
    scienceqa.main(["run", *host, *found, *options, "--output", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run" / "results.json").read_text())

    loaded, with_pil = load_llava(tmp_path / "host")
    counts = {CLIP: int((inputs_of(with_pil)["input_ids"] == IMAGE).sum()), SPARSEFORMER: 5 * 5 + 4}
    engine = Engine(loaded, with_pil, [encoder])
    shown = Picture(PICTURE, "noise", "")
    for tower, counted in counts.items():
        answer = Answer(tower)
        for _ in engine.answer(answer, [Turn("what ?", [shown])], Sampling(max_new_tokens=3)):
            pass
        assert answer.visual_tokens == counted and answer.num_tokens > 0
    assert shown.views[5].rois.shape == (encoder.config.num_focusing_iterations + 1, 5, 4)
    assert shown.views[5].square.size == (SIDE, SIDE)


def test_a_tiled_host_of_the_mini_clip_is_asked_through_the_student_that_ships():
    (host, processor), (mini, plain) = build_tiled(), load_llava("mini")
    host.eval()
    data = open_mosaics("test", 1)
    scene = data.load_image(data.problems[0])
    prompt = Answerer(host, processor, Generation()).prompt(data.problems[0], has_image=True)
    counts = []
    for tower in ("original", MINI_STUDENT_DIR):
        with tower_in_place(host, processor, tower) as num_patches:
            inputs = encode_prompts(processor, [prompt], [[scene]])
            counts.append(int((inputs["input_ids"] == processor.image_token_id).sum()))
            assert num_patches == 64 and inputs["pixel_values"].shape == (1, 5, 3, 64, 64)
            assert host.generate(**inputs, max_new_tokens=4, do_sample=False).shape[0] == 1
    assert counts == [64 + 16 * (16 + 1), 5 * 16 + 4]
    # A tile is read as the picture would be that it is.
    with swapped(host, processor, MINI_STUDENT_DIR), torch.no_grad():
        read = read_views(host, processor.image_processor(scene, return_tensors="pt")["pixel_values"][0])
    with swapped(mini, plain, MINI_STUDENT_DIR), torch.no_grad():
        corner = plain.image_processor(scene.crop((0, 0, 64, 64)), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(read[1], read_views(mini, corner)[0], atol=1e-5, rtol=1e-5)
