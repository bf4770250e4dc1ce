"""Positions by RoI centre and the attention bias: the plain model at N = M, a brute-force LLM, batches, the script."""

import math

import pytest
import torch
from PIL import Image
from tiny_llava import WIDTH, make_encoder, make_llava
from torch import Tensor
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration

from sf_llava.llava import count_patches, encode_prompts, generate_in_place, restore, swap
from sf_llava.llava.hooks import read_prompts, weigh_latents
from sf_llava.llava.host import new_cache
from sf_llava.llava.positions import embed_in_place
from sf_llava.llava.reading import find_patches
from sf_llava.model import SparseFormerModel
from sf_llava.model.sparseformer import SparseFormerOutput
from sf_llava.scienceqa.run import Answerer, Generation

PROMPTS = ["USER: <image> what is on the mat ? ASSISTANT:", "USER: <image> red ? ASSISTANT:"]


def draw(count: int) -> list[Image.Image]:
    return [Image.effect_noise((64, 64), 30 + 40 * number).convert("RGB") for number in range(count)]


class Copycat(SparseFormerModel):
    """Gives the tokens of a CLIP tower, one latent a patch, in an order of its own."""

    def forward(self, pixel_values: Tensor, output_hidden_states: int, **kwargs) -> SparseFormerOutput:
        states = self.tower[0](pixel_values, output_hidden_states=True).hidden_states[output_hidden_states]
        order = torch.randperm(16, generator=torch.Generator().manual_seed(5))
        y, x = order // 4 / 4, order % 4 / 4
        rois = torch.stack([x - 0.1, y - 0.1, x + 0.35, y + 0.35], dim=-1).expand(len(states), 1, 16, 4)
        states = torch.cat([states[:, :1], states[:, 1:][:, order]], dim=1)
        hidden = [None] * 4
        hidden[output_hidden_states] = states
        return SparseFormerOutput(hidden_states=tuple(hidden), rois=rois)


def put_copycat(llava: LlavaForConditionalGeneration) -> None:
    copycat = Copycat(make_encoder(16).config)
    copycat.tower = [llava.model.vision_tower]
    llava.model.vision_tower = copycat


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_one_latent_on_each_patch_gives_the_plain_models_logits(processor, strategy, attention):
    llava = make_llava(vision_feature_select_strategy=strategy)
    llava.model.language_model.set_attn_implementation(attention)
    processor.vision_feature_select_strategy = strategy
    inputs = encode_prompts(processor, PROMPTS, [[image] for image in draw(2)])
    with torch.no_grad():
        positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        plain = llava(**inputs, position_ids=positions).logits
        tokens = llava.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        put_copycat(llava)
        prompt = embed_in_place(llava, inputs, 16)
        with weigh_latents(llava, prompt.latents, math.log(16 / 16)):
            ours = llava(
                inputs_embeds=prompt.inputs_embeds,
                attention_mask=inputs["attention_mask"],
                position_ids=prompt.position_ids,
            ).logits
        again = generate_in_place(llava, inputs, 16, max_new_tokens=6, do_sample=False)
    real = inputs["attention_mask"].bool()
    assert torch.equal(prompt.position_ids, positions)
    torch.testing.assert_close(ours[real], plain[real], atol=1e-5, rtol=1e-5)
    assert torch.equal(again, tokens)


def test_centres_fall_on_patches_in_raster_order_and_stay_inside():
    centres = torch.tensor([[0.1, 0.1], [0.9, 0.1], [0.3, 0.6], [-0.5, 1.7], [1.0, 1.0]])
    rois = torch.cat([centres - 0.25, centres + 0.25], dim=-1)
    assert find_patches(rois, 16).tolist() == [0, 3, 9, 12, 15]
    with pytest.raises(ValueError, match="63 patches are no square grid"):
        find_patches(rois, 63)


def one_layer_llava() -> LlavaForConditionalGeneration:
    """A tiny LLaVA in float64 whose LLM keeps its first layer alone."""
    llava = make_llava().double()
    llava.model.language_model.layers = llava.model.language_model.layers[:1]
    llava.config.text_config.num_hidden_layers = llava.model.language_model.config.num_hidden_layers = 1
    return llava


def brute_force_logits(llava, embeds, positions, latents, bias) -> Tensor:
    """Compute the LLM of one layer head by head, query by query, key by key, for one prompt (L, W) in float64."""
    llm = llava.model.language_model
    layer, attention = llm.layers[0], llm.layers[0].self_attn
    length, size = len(embeds), WIDTH // 2

    def norm(x, module):
        return x / (x.square().mean(dim=-1, keepdim=True) + module.variance_epsilon).sqrt() * module.weight

    def rotate(x, position):
        angles = position * 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        first, second = x[: size // 2], x[size // 2 :]
        return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()])

    x = norm(embeds, layer.input_layernorm)
    query, key, value = (x @ getattr(attention, f"{name}_proj").weight.T for name in "qkv")
    attended = torch.zeros_like(x)
    for head in (slice(0, size), slice(size, WIDTH)):
        for i in range(length):
            scores = []
            for j in range(i + 1):
                product = rotate(query[i, head], positions[i]) @ rotate(key[j, head], positions[j]) / math.sqrt(size)
                scores.append(product + (bias if latents[j] and not latents[i] else 0))
            weights = torch.stack(scores).softmax(dim=0)
            attended[i, head] = weights @ value[: i + 1, head]
    x = embeds + attended @ attention.o_proj.weight.T
    mlp, normed = layer.mlp, norm(x, layer.post_attention_layernorm)
    gated = torch.nn.functional.silu(normed @ mlp.gate_proj.weight.T) * (normed @ mlp.up_proj.weight.T)
    x = norm(x + gated @ mlp.down_proj.weight.T, llm.norm)
    return x @ llava.lm_head.weight.T


def test_logits_are_those_of_a_brute_force_llm_in_float64(processor):
    llava = one_layer_llava()
    torch.manual_seed(1)
    encoder = make_encoder(6).double()
    with torch.no_grad():
        encoder.focusing.initial_rois.copy_(torch.rand(6, 4))
    swap(llava, processor, encoder)
    inputs = encode_prompts(processor, PROMPTS[:1], [draw(1)])
    prompt = embed_in_place(llava, inputs, 16)
    bias = math.log(16 / 6)
    with torch.no_grad(), weigh_latents(llava, prompt.latents, bias):
        ours = llava(
            inputs_embeds=prompt.inputs_embeds,
            attention_mask=inputs["attention_mask"],
            position_ids=prompt.position_ids,
        ).logits[0]
    seen = encoder(inputs["pixel_values"].double(), output_hidden_states=-2)
    rois, tokens = seen.rois[0, -1], seen.hidden_states[-2][0, 1:]
    cells = [
        min(3, max(0, math.floor((y0 + y1) / 2 * 4))) * 4 + min(3, max(0, math.floor((x0 + x1) / 2 * 4)))
        for x0, y0, x1, y1 in rois.tolist()
    ]
    order = sorted(range(6), key=lambda index: (cells[index], index))
    assert order != list(range(6))
    ids, embed = inputs["input_ids"][0].tolist(), llava.get_input_embeddings().weight
    start = ids.index(3)
    with torch.no_grad():
        pictures = llava.model.multi_modal_projector(tokens[order])
        rows = [embed[ids[:start]], pictures, embed[ids[start + 6 :]]]
        positions = [*range(start), *(start + cells[index] for index in order)]
        positions += range(start + 16, start + 16 + len(rows[2]))
        latents = [False] * start + [True] * 6 + [False] * len(rows[2])
        expected = brute_force_logits(llava, torch.cat(rows), positions, latents, bias)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)  # rotary tables and norms are float32 there


def test_a_padded_batch_answers_as_each_prompt_alone(llava, processor):
    swap(llava, processor, make_encoder(6))
    prompts = [*PROMPTS, "USER: what is a cat ? ASSISTANT:", "USER: <image> a <image> b ? ASSISTANT:"]
    pictures = draw(4)
    images = [pictures[:1], pictures[1:2], [], pictures[2:]]
    batch = generate_in_place(llava, encode_prompts(processor, prompts, images), 16, max_new_tokens=8, do_sample=False)
    for prompt, shown, row in zip(prompts, images, batch, strict=True):
        inputs = encode_prompts(processor, [prompt], [shown])
        alone = generate_in_place(llava, inputs, 16, max_new_tokens=8, do_sample=False)[0]
        assert row[: len(alone)].tolist() == alone.tolist()


def test_the_cache_changes_nothing(llava, processor):
    swap(llava, processor, make_encoder(6))
    inputs = encode_prompts(processor, PROMPTS, [[image] for image in draw(2)])
    new = generate_in_place(llava, inputs, 16, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    prompt = embed_in_place(llava, inputs, 16)
    steps = torch.arange(1, 6)
    whole = dict(
        inputs_embeds=torch.cat([prompt.inputs_embeds, llava.get_input_embeddings()(new)], dim=1),
        attention_mask=torch.nn.functional.pad(inputs["attention_mask"], (0, 5), value=1),
        position_ids=torch.cat([prompt.position_ids, prompt.position_ids[:, -1:] + steps], dim=1),
    )
    with torch.no_grad(), weigh_latents(llava, prompt.latents, math.log(16 / 6)):
        logits = llava(**whole).logits[:, -6:-1]
    logits[..., 2] = -torch.inf  # the end is kept off by min_new_tokens
    assert torch.equal(logits.argmax(dim=-1), new)


def listening_llava(processor) -> LlavaForConditionalGeneration:
    """A swapped LLaVA whose LLM attends strongly to its values, so that positions and bias show in every logit."""
    llava = make_llava()
    with torch.no_grad():
        for layer in llava.model.language_model.layers:
            layer.self_attn.v_proj.weight.mul_(20)
            layer.self_attn.o_proj.weight.mul_(20)
    swap(llava, processor, make_encoder(6))
    return llava


@torch.no_grad()
def logits_in_one_pass(llava, inputs, new: Tensor, num_patches: int) -> Tensor:
    """Logits (n, V) before each of the ``new`` tokens of one prompt: no cache, no hook, mask and positions by hand."""
    encoder, ids = llava.model.vision_tower, inputs["input_ids"][0]
    seen = encoder(inputs["pixel_values"], output_hidden_states=-2)
    side, cells = math.isqrt(num_patches), []
    for x0, y0, x1, y1 in seen.rois[0, -1].tolist():
        column, row = (min(side - 1, max(0, math.floor((a + b) / 2 * side))) for a, b in ((x0, x1), (y0, y1)))
        cells.append(row * side + column)
    order = sorted(range(len(cells)), key=lambda index: (cells[index], index))
    start, words = ids.tolist().index(3), llava.get_input_embeddings()
    behind = torch.cat([ids[start + len(cells) :], new])
    pictures = llava.model.multi_modal_projector(seen.hidden_states[-2][0, 1:][order])
    embeds = torch.cat([words(ids[:start]), pictures, words(behind)])
    positions = [*range(start), *(start + cells[index] for index in order)]
    positions += range(start + num_patches, start + num_patches + len(behind))
    latent = torch.tensor([False] * start + [True] * len(cells) + [False] * len(behind))
    mask = torch.where(latent[None, :] & ~latent[:, None], math.log(num_patches / len(cells)), 0.0)
    mask = mask.masked_fill(torch.ones_like(mask).triu(1).bool(), torch.finfo(torch.float32).min)
    hidden = llava.model.language_model(
        inputs_embeds=embeds[None],
        attention_mask=mask[None, None],
        position_ids=torch.tensor([positions]),
        use_cache=False,
    ).last_hidden_state
    return llava.lm_head(hidden[0, -len(new) - 1 : -1])


GREEDY = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True)


@pytest.mark.parametrize(
    "option",
    [
        {},
        dict(use_cache=False),
        dict(cache_implementation="static"),
        dict(prefill_chunk_size=5),
        dict(prefill_chunk_size=5, cache_implementation="static"),
        dict(prompt_lookup_num_tokens=3),
        dict(past_key_values="cache of the user's"),
    ],
    ids=str,
)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_one_unpadded_prompt_is_decoded_as_in_one_pass_however_it_is_generated(processor, option, attention):
    llava = listening_llava(processor)
    llava.model.language_model.set_attn_implementation(attention)
    inputs = encode_prompts(processor, PROMPTS[:1], [draw(1)])
    assert inputs["attention_mask"].all()
    if "past_key_values" in option:
        option = new_cache(llava)
    made = generate_in_place(llava, inputs, 1600, **GREEDY, **option)
    logits = torch.cat(made.logits)
    expected = logits_in_one_pass(llava, inputs, made.sequences[0], 1600)
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
    unbiased = torch.cat(generate_in_place(llava, inputs, 16, **GREEDY).logits)
    assert (unbiased - expected).abs().max(dim=-1).values.min() > 0.01  # at every word


def test_an_assistant_changes_no_word(processor):
    llava = listening_llava(processor)
    torch.manual_seed(7)
    assistant = LlamaForCausalLM(llava.config.text_config).eval()
    inputs = encode_prompts(processor, PROMPTS[:1], [draw(1)])
    made = generate_in_place(llava, inputs, 1600, assistant_model=assistant, **GREEDY)
    expected = logits_in_one_pass(llava, inputs, made.sequences[0], 1600)
    torch.testing.assert_close(torch.cat(made.logits), expected, atol=1e-3, rtol=1e-3)


def test_beams_and_several_samples_score_as_in_one_pass(processor):
    llava, images = listening_llava(processor), draw(2)
    inputs = encode_prompts(processor, PROMPTS, [[image] for image in images])
    options = dict(max_new_tokens=4, min_new_tokens=4, num_beams=3, length_penalty=0.0, num_return_sequences=2)
    options |= dict(do_sample=False, output_scores=True, return_dict_in_generate=True)
    beams = generate_in_place(llava, inputs, 1600, **options)
    torch.manual_seed(0)
    samples = generate_in_place(llava, inputs, 1600, **(GREEDY | dict(do_sample=True, num_return_sequences=3)))
    assert beams.sequences.shape == (4, 4) and samples.sequences.shape == (6, 6)
    for number, prompt in enumerate(PROMPTS):
        alone = encode_prompts(processor, [prompt], [[images[number]]])
        for row in (2 * number, 2 * number + 1):
            chosen = beams.sequences[row, :, None]
            logits = logits_in_one_pass(llava, alone, beams.sequences[row], 1600)
            score = logits.log_softmax(dim=-1).gather(1, chosen).sum().item()
            assert beams.sequences_scores[row] == pytest.approx(score, abs=1e-3)
        for row in range(3 * number, 3 * number + 3):
            expected = logits_in_one_pass(llava, alone, samples.sequences[row], 1600)
            torch.testing.assert_close(
                torch.stack([step[row] for step in samples.logits]), expected, atol=1e-3, rtol=1e-3
            )


def test_a_model_that_was_compiled_before_keeps_its_bias(processor):
    llava = listening_llava(processor)
    inputs = encode_prompts(processor, PROMPTS[:1], [draw(1)])
    llava.compile(backend="eager")
    llava.generate(**inputs, max_new_tokens=3)
    made = generate_in_place(llava, inputs, 1600, **GREEDY)
    expected = logits_in_one_pass(llava, inputs, made.sequences[0], 1600)
    torch.testing.assert_close(torch.cat(made.logits), expected, atol=1e-3, rtol=1e-3)


def test_a_bias_that_cannot_be_applied_is_refused(processor):
    llava = listening_llava(processor)
    inputs = encode_prompts(processor, PROMPTS[:1], [draw(1)])
    with pytest.raises(ValueError, match="guidance_scale"):
        generate_in_place(llava, inputs, 1600, guidance_scale=1.5, **GREEDY)
    filled = new_cache(llava)
    llava(input_ids=inputs["input_ids"][:, :3], **filled)
    with pytest.raises(ValueError, match="other tokens than the prompts'"):
        words = llava.get_input_embeddings()(inputs["input_ids"])
        with read_prompts(llava, words, words, torch.arange(words.shape[1])[None]):
            llava(input_ids=inputs["input_ids"], **filled)
    latents = inputs["input_ids"] == 3
    with pytest.raises(RuntimeError, match="was not applied"), weigh_latents(llava, latents, 1.0):
        pass
    with pytest.raises(ValueError, match="without a cache"), weigh_latents(llava, latents, 1.0):
        llava(input_ids=inputs["input_ids"][:, -1:])
    llava.model.language_model.config.sliding_window = 8
    with pytest.raises(ValueError, match="a window of 8 tokens"):
        generate_in_place(llava, inputs, 1600, **GREEDY)
    right = {name: tensor.clone() for name, tensor in inputs.items()}
    right["attention_mask"][:, -1] = 0
    with pytest.raises(ValueError, match="padded on the right"):
        generate_in_place(llava, right, 1600, **GREEDY)


def test_the_evaluation_answers_through_it_and_the_model_is_left_as_it_was(llava, processor):
    swapped = swap(llava, processor, make_encoder(6))
    plain = Answerer(llava, processor, Generation(max_new_tokens=6))
    placed = Answerer(llava, processor, Generation(max_new_tokens=6), count_patches(swapped.vision_config))
    images = [[image] for image in draw(2)]
    first = plain.answer(PROMPTS, images, 0)
    inputs = encode_prompts(processor, PROMPTS, images)
    new = generate_in_place(llava, inputs, 16, max_new_tokens=6, do_sample=False)
    assert placed.num_patches == 16
    assert placed.answer(PROMPTS, images, 0) == [
        t.strip() for t in processor.batch_decode(new, skip_special_tokens=True)
    ]
    assert plain.answer(PROMPTS, images, 0) == first
    assert not llava.model.language_model._forward_pre_hooks
    restore(swapped)
    with pytest.raises(ValueError, match="only a SparseFormer has RoIs"):
        placed.answer(PROMPTS, images, 0)


def test_what_cannot_be_done_is_said(llava, processor):
    swap(llava, processor, make_encoder(6))
    inputs = encode_prompts(processor, PROMPTS, [[image] for image in draw(2)])
    llava.model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"'flash_attention_2', which takes no additive mask"):
        generate_in_place(llava, inputs, 16, max_new_tokens=2)
    llava.model.language_model.config._attn_implementation = "eager"
    with pytest.raises(ValueError, match="12 image tokens but the pictures give 6"):
        embed_in_place(llava, dict(inputs) | {"pixel_values": inputs["pixel_values"][:1]}, 16)
    llava.config.vision_feature_layer = [-2, -1]
    with pytest.raises(ValueError, match="one vision_feature_layer"):
        generate_in_place(llava, inputs, 16, max_new_tokens=2)
