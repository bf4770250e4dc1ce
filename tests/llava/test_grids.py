"""Positions of latents among tiles, beside the stock model's layout and a brute force; whole pictures in one view."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_hosts import IMAGE, PATCH, SIDE, make_host, make_host_processor, make_student_of
from transformers import AutoModelForImageTextToText
from transformers.image_processing_utils import select_best_resolution

from sf_llava.llava import encode_prompts, generate_in_place, load_llava, swap, swapped
from sf_llava.llava.costs import count_picture_costs
from sf_llava.llava.grids import lay_grid
from sf_llava.llava.positions import embed_in_place
from sf_llava.llava.tiles import count_views
from sf_llava.model.costs import count_multiply_adds

HOSTS = ("next", "next_video", "onevision")
N, M, ROW = 5, (SIDE // PATCH) ** 2, SIDE // PATCH
PROMPT = "USER: <image> what is in the image ? ASSISTANT:"
PICTURES = [Image.effect_noise(size, 90).convert("RGB") for size in ((40, 30), (30, 90), (64, 64), (100, 23))]
GREEDY = dict(do_sample=False, max_new_tokens=5, min_new_tokens=5)


def stock_layout(model, size: tuple[int, int], **options) -> list[int]:
    """What stands at each position of a picture in a stock model: view * M + patch, -1 for newlines."""
    views = count_views(*size, model.config.image_grid_pinpoints, SIDE)
    numbered = torch.arange(views * M, dtype=torch.float32).reshape(views, M, 1)
    strategy = {} if "onevision" in model.config.model_type else {"vision_feature_select_strategy": "default"}
    sizes, newline = torch.tensor([size]), torch.tensor([-1.0])
    packed, _ = model.model.pack_image_features([numbered], sizes, image_newline=newline, **strategy, **options)
    return packed[0].flatten().tolist()


def tiles_of(model, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of tiles, as the host library chooses them."""
    height, width = select_best_resolution(size, model.config.image_grid_pinpoints)
    return height // SIDE, width // SIDE


@pytest.mark.parametrize("name", ["next", "onevision"])
def test_patches_have_the_positions_that_the_stock_model_gives_them_for_100_sizes(name):
    model = make_host(name)
    cut = 0
    for height, width in np.random.default_rng(0).integers(8, 160, (100, 2)).tolist():
        rows, columns = tiles_of(model, (height, width))
        grid = lay_grid((rows, columns), ROW, (height, width))
        layout = stock_layout(model, (height, width))
        assert grid.span == len(layout)
        if max(layout[M:], default=-1) < 0:  # all edge: the stock model keeps no patch of the tiles
            assert ((grid.patches >= M - 1) & (grid.patches < grid.span)).all()
            continue
        for row in range(rows * ROW):
            for column in range(columns * ROW):
                tile = row // ROW * columns + column // ROW
                number = (1 + tile) * M + row % ROW * ROW + column % ROW
                position = int(grid.patches[row, column])
                if number in layout:
                    assert layout.index(number) == position, (height, width, row, column)
                    assert layout.index(-1, position) == grid.newlines[row]
                else:  # cut off as padding: the nearest that was kept
                    cut += 1
                    near = int(layout[position]) - M
                    tile, patch = divmod(near, M)
                    y, x = tile // columns * ROW + patch // ROW, tile % columns * ROW + patch % ROW
                    kept = np.array([value - M for value in layout[M:] if value >= 0], dtype=int)
                    ys, xs = np.divmod(kept, M)[0] // columns * ROW, np.divmod(kept, M)[0] % columns * ROW
                    ways = abs(ys + np.mod(kept, M) // ROW - row) + abs(xs + np.mod(kept, ROW) - column)
                    assert abs(y - row) + abs(x - column) == ways.min()
    assert cut > 100


def test_where_onevision_shrinks_the_grid_positions_shrink_with_it():
    model = make_host("onevision")
    for size in ((64, 64), (40, 64), (64, 41)):
        grid = lay_grid((2, 2), ROW, size, most=1)
        assert grid.span == len(stock_layout(model, size, vision_aspect_ratio="anyres_max_1"))
        assert grid.patches.diff(dim=0).ge(0).all() and grid.patches.diff(dim=1).ge(0).all()
        assert grid.patches.min() == M and grid.newlines.max() == grid.span - 1


def by_hand(model, encoder, inputs):
    """Every token of a batch: its embedding, its position, whether it is a latent; one loop for each."""
    embed, newline = model.get_input_embeddings().weight, model.model.image_newline
    layer, rows = model.config.vision_feature_layer, []
    pictures = iter(range(len(inputs["pixel_values"])))
    for ids, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True):
        row, position, place = [], 0, 0
        while place < len(ids):
            if ids[place] != IMAGE:
                row.append((embed[ids[place]], position, False))
                position, place = position + mask[place], place + 1
                continue
            picture = next(pictures)
            size = tuple(inputs["image_sizes"][picture].tolist())
            views, (_, columns) = count_views(*size, model.config.image_grid_pinpoints, SIDE), tiles_of(model, size)
            grid, layout = lay_grid(tiles_of(model, size), ROW, size), stock_layout(make_host("next"), size)
            tokens = []
            for view in range(views):
                seen = encoder(inputs["pixel_values"][picture, view][None], output_hidden_states=True)
                for state, roi in zip(seen.hidden_states[layer][0, -N:], seen.rois[0, -1].tolist(), strict=True):
                    x = min(ROW - 1, max(0, math.floor((roi[0] + roi[2]) / 2 * ROW)))
                    y = min(ROW - 1, max(0, math.floor((roi[1] + roi[3]) / 2 * ROW)))
                    at = place_in_view = y * ROW + x
                    if view:
                        at = int(grid.patches[(view - 1) // columns * ROW + y, (view - 1) % columns * ROW + x])
                    tokens.append((model.model.multi_modal_projector(state[None])[0], at, True, (view, place_in_view)))
                if view:
                    last = (view - 1) // columns * ROW + ROW - 1
                    tokens.append((newline, int(grid.newlines[last]), False, (view, M)))
            tokens.sort(key=lambda token: token[1::2])
            row += [(feature, position + at, latent) for feature, at, latent, _ in tokens]
            position, place = position + len(layout), place + len(tokens)
        rows.append(row)
    embeds = torch.stack([torch.stack([token[0] for token in row]) for row in rows])
    positions, latents = (torch.tensor([[token[index] for token in row] for row in rows]) for index in (1, 2))
    return embeds, positions, latents


@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_a_batch_of_pictures_of_different_tiles_is_placed_as_by_hand(name):
    model, processor, encoder = make_host(name), make_host_processor(name), make_student_of(name, N)
    encoder.focusing.initial_rois.copy_(torch.rand(N, 2, generator=torch.Generator().manual_seed(1)).repeat(1, 2))
    encoder.focusing.initial_rois[:, 2:] += 0.3
    with swapped(model, processor, encoder) as record:
        images = [PICTURES[:1], [], *([one] for one in PICTURES[1:])]
        inputs = encode_prompts(processor, [PROMPT, "red ?", PROMPT, PROMPT, PROMPT], images)
        prompt = embed_in_place(model, inputs, record.num_patches)
        embeds, positions, latents = by_hand(model, encoder, inputs)
        torch.testing.assert_close(prompt.inputs_embeds, embeds, atol=1e-5, rtol=1e-5)
        assert torch.equal(prompt.position_ids, positions) and torch.equal(prompt.latents, latents)
        assert prompt.bias == math.log(M / N)


@torch.no_grad()
def expected_answer(model, prompt) -> torch.Tensor:
    """Generate without a cache and without hooks, mask and positions written out; one prompt."""
    embeds, latents = prompt.inputs_embeds, prompt.latents[0].tolist()
    new: list[int] = []
    for _ in range(5):
        length = embeds.shape[1]
        additive = torch.zeros(length, length)
        for i in range(length):
            for j in range(length):
                latent = [where < len(latents) and latents[where] for where in (i, j)]
                additive[i, j] = -torch.inf if j > i else prompt.bias if latent[1] and not latent[0] else 0.0
        behind = prompt.position_ids[:, -1:] + 1 + torch.arange(len(new))
        states = model.model.language_model(
            inputs_embeds=embeds,
            attention_mask=additive[None, None].clamp(min=torch.finfo(torch.float32).min),
            position_ids=torch.cat([prompt.position_ids, behind], dim=1),
            use_cache=False,
        ).last_hidden_state
        logits = model.lm_head(states[:, -1])
        logits[:, model.generation_config.eos_token_id or 2] = -torch.inf
        new.append(int(logits.argmax()))
        embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([new[-1:]]))], dim=1)
    return torch.tensor([new])


@pytest.mark.parametrize("whole", [False, True])
def test_generation_with_a_cache_is_that_of_single_passes(whole):
    model, processor = make_host("next"), make_host_processor("next")
    for layer in model.model.language_model.layers:  # so that positions and bias show
        layer.self_attn.v_proj.weight.data.mul_(20)
    encoder = make_student_of("next", N, **(dict(image_size=2 * SIDE, teacher_tiles=2) if whole else {}))
    with swapped(model, processor, encoder) as record:
        prompts = [PROMPT, "what <image> cat ?"]
        batch = encode_prompts(processor, prompts, [[one] for one in PICTURES[1:3]])
        together = generate_in_place(model, batch, record.num_patches, **GREEDY)
        for prompt, picture, row in zip(prompts, PICTURES[1:3], together, strict=True):
            inputs = encode_prompts(processor, [prompt], [[picture]])
            expected = expected_answer(model, embed_in_place(model, inputs, record.num_patches))
            assert torch.equal(generate_in_place(model, inputs, record.num_patches, **GREEDY), expected)
            assert torch.equal(row, expected[0])


@pytest.fixture(params=HOSTS)
def whole(request):
    """A host, its processor and an encoder that reads pictures in place of 2 x 2 tiles."""
    encoder = make_student_of(request.param, 8, image_size=2 * SIDE, teacher_tiles=2)
    return make_host(request.param), make_host_processor(request.param), encoder


@torch.no_grad()
def test_a_picture_read_whole_is_n_tokens_whatever_its_size_and_restore_brings_tiles_back(whole, tmp_path):
    model, processor, encoder = whole
    before = model(**encode_prompts(processor, [PROMPT], [PICTURES[:1]])).logits
    text = processor.to_dict()
    model.save_pretrained(tmp_path / "stock")  # which names class and dtype in the config
    config = model.config.to_dict()
    with swapped(model, processor, encoder):
        for width, height in np.random.default_rng(0).integers(8, 160, (50, 2)).tolist():
            inputs = encode_prompts(processor, ["<image>"], [[Image.new("RGB", (width, height))]])
            given = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
            assert (inputs["input_ids"] == IMAGE).sum() == len(given[0]) == 8
        inputs = encode_prompts(processor, ["<image> a <image>", PROMPT], [PICTURES[:2], PICTURES[2:3]])
        assert (inputs["input_ids"] == IMAGE).sum(dim=1).tolist() == [16, 8]
        assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[0] == 2
        # What it reads is the picture, padded to a square, as the tiles of the largest grid show it.
        inputs = encode_prompts(processor, [PROMPT] * 2, [PICTURES[1:2], PICTURES[2:3]])
        states = encoder(inputs["pixel_values"][:, 1], output_hidden_states=True).hidden_states
        read = model.model.multi_modal_projector(states[model.config.vision_feature_layer][:, -8:])
        given = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
        torch.testing.assert_close(torch.stack(given), read, atol=1e-5, rtol=1e-5)
        assert count_picture_costs(model, processor, 3)[:2] == (
            8,
            count_multiply_adds(encoder, 2 * SIDE, output_hidden_states=True),
        )
        model.save_pretrained(tmp_path / "whole"), processor.save_pretrained(tmp_path / "whole")
        logits = model(**inputs).logits
    config["architectures"] = model.config.architectures
    assert model.config.to_dict() == config and processor.to_dict() == text
    assert torch.equal(model(**encode_prompts(processor, [PROMPT], [PICTURES[:1]])).logits, before)
    loaded, with_pil = load_llava(tmp_path / "whole")
    again = encode_prompts(with_pil, [PROMPT] * 2, [PICTURES[1:2], PICTURES[2:3]])
    torch.testing.assert_close(loaded(**again).logits, logits, atol=1e-5, rtol=0)
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path / "whole")) is type(loaded)


@torch.no_grad()
def test_latents_of_a_whole_picture_have_the_positions_of_the_patches_under_them(whole):
    model, processor, encoder = whole
    encoder.focusing.initial_rois.copy_(torch.rand(8, 2, generator=torch.Generator().manual_seed(1)).repeat(1, 2))
    encoder.focusing.initial_rois[:, 2:] += 0.1
    with swapped(model, processor, encoder) as record:
        for picture in PICTURES:
            inputs = encode_prompts(processor, [PROMPT], [[picture]])
            prompt = embed_in_place(model, inputs, record.num_patches)
            grid = lay_grid((2, 2), ROW, tuple(inputs["image_sizes"][0].tolist()))
            rois = encoder(inputs["pixel_values"][:, 1]).rois[0, -1]
            start = inputs["input_ids"][0].tolist().index(IMAGE)
            expected = sorted(
                start + int(grid.patches[min(2 * ROW - 1, int(y * 2 * ROW)), min(2 * ROW - 1, int(x * 2 * ROW))])
                for x, y in ((rois[:, :2] + rois[:, 2:]) / 2).clamp(0, 1).tolist()
            )
            assert prompt.position_ids[0, prompt.latents[0]].tolist() == expected
            assert prompt.position_ids[0, -1] - start == grid.span + (~prompt.latents[0, start:]).sum() - 1
            assert prompt.bias == math.log(5 * M / 8)


def test_an_encoder_of_whole_pictures_is_refused_where_no_picture_is_cut_so():
    encoder = make_student_of("next", 8, image_size=2 * SIDE, teacher_tiles=2)
    with pytest.raises(
        ValueError, match="in place of 2 x 2 tiles, but this LLaVA was trained to read a picture as one"
    ):
        swap(make_host("llava"), make_host_processor("llava"), encoder)
    encoder = make_student_of("next", 9, image_size=3 * SIDE, teacher_tiles=3)
    with pytest.raises(ValueError, match=r"3 x 3 tiles of 32 pixels, but .* hold no \[96, 96\]: bootstrap one with"):
        swap(make_host("next"), make_host_processor("next"), encoder)


@pytest.mark.parametrize("name", ["next_video", "onevision"])
def test_videos_have_no_positions_by_roi(name):
    model, processor = make_host(name), make_host_processor(name)
    with swapped(model, processor, make_student_of(name, N)) as record:
        inputs = encode_prompts(processor, [PROMPT], [PICTURES[:1]]) | {"pixel_values_videos": torch.zeros(1)}
        with pytest.raises(ValueError, match="an attention bias: for pictures, not for videos"):
            generate_in_place(model, inputs, record.num_patches)
