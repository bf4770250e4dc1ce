"""ToMe and DiffRate inside a ViT beside slow loops over tokens, with the host's own layers, in float64."""

import math

import pytest
import timm
import tiny_models  # noqa: F401 (registers)
import torch

from sf_llava.measure.baselines import DiffRateTeacher, ToMeTeacher
from sf_llava.reduction.diffrate import Schedule
from sf_llava.teachers.timm_teacher import TimmTeacher


class TimmBlocks:
    """The parts of timm's blocks."""

    def __init__(self, teacher):
        self.blocks = list(teacher.vit.blocks)

    def project(self, block, tokens):
        return block.attn.qkv(block.norm1(tokens)).chunk(3, dim=-1)

    def close(self, block, attended):
        return block.attn.proj(attended)

    def feed(self, block, tokens):
        return block.mlp(block.norm2(tokens))


class ClipBlocks:
    """The parts of transformers' blocks."""

    def __init__(self, teacher):
        self.blocks = list(teacher.model.vision_model.encoder.layers)

    def project(self, block, tokens):
        normed, attention = block.layer_norm1(tokens), block.self_attn
        return attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)

    def close(self, block, attended):
        return block.self_attn.out_proj(attended)

    def feed(self, block, tokens):
        return block.mlp(block.layer_norm2(tokens))


def attend(query, key, value, sizes, heads):
    """Proportional attention, row by row: the attended tokens, and what CLS gives to each, averaged over heads."""
    count, width = query.shape
    found, looked = torch.zeros_like(query), torch.zeros(count, dtype=query.dtype)
    for head in range(heads):
        span = slice(head * width // heads, (head + 1) * width // heads)
        for row in range(count):
            logits = (key[:, span] @ query[row, span] / math.sqrt(width // heads)).tolist()
            shares = [size * math.exp(logit) for size, logit in zip(sizes, logits, strict=True)]
            shares = torch.tensor(shares, dtype=query.dtype) / sum(shares)
            found[row, span] = shares @ value[:, span]
            looked += shares / heads if row == 0 else 0
    return found, looked.tolist()


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def tome(count):
    """The published steps for one picture: every second token looks for its like among the others."""

    def reduce(index, tokens, sizes, keys, looked):
        amount = min(count, (len(tokens) - 1) // 2)
        a, b = range(0, len(tokens), 2), range(1, len(tokens), 2)
        best = {one: max(b, key=lambda other: cosine(keys[one], keys[other])) for one in a if one}
        merged = sorted(best, key=lambda one: -cosine(keys[one], keys[best[one]]))[:amount]
        sums = {place: [tokens[place] * sizes[place], sizes[place]] for place in range(len(tokens))}
        for one in merged:
            sums[best[one]][0] = sums[best[one]][0] + sums[one][0]
            sums[best[one]][1] += sizes[one]
        left = [sums[place] for place in [*(place for place in a if place not in merged), *b]]
        return torch.stack([total / size for total, size in left]), [size for _, size in left]

    return reduce


def diffrate(schedule):
    """The published steps for one picture: sort by what CLS gives, drop the last, merge the next."""

    def reduce(index, tokens, sizes, keys, looked):
        order = [0, *sorted(range(1, len(tokens)), key=lambda place: -looked[place])][: schedule.pruned[index]]
        kept, sources = order[: schedule.merged[index]], order[schedule.merged[index] :]
        groups, left = {place: [tokens[place]] for place in kept}, {place: sizes[place] for place in kept}
        for source in sources:
            partner = max(kept[1:], key=lambda place: cosine(tokens[source], tokens[place]))
            groups[partner].append(tokens[source])
            left[partner] += sizes[source] * max(cosine(tokens[source], tokens[partner]), 0)
        return torch.stack([sum(groups[place]) / len(groups[place]) for place in kept]), list(left.values())

    return reduce


def run_slowly(host, teacher, tokens, reduce):
    """All blocks for one picture (T, D)."""
    sizes, heads = [1.0] * len(tokens), teacher.num_attention_heads
    for index, block in enumerate(host.blocks):
        query, key, value = (part.squeeze(0) for part in host.project(block, tokens[None]))
        found, looked = attend(query, key, value, sizes, heads)
        tokens = tokens + host.close(block, found[None])[0]
        keys = key.unflatten(-1, (heads, -1)).mean(dim=1)
        tokens, sizes = reduce(index, tokens, sizes, keys, looked)
        tokens = tokens + host.feed(block, tokens[None])[0]
    return tokens


@pytest.fixture(params=["augreg", "clip"])
def teacher_and_host(request, clip_teacher):
    if request.param == "clip":
        teacher = clip_teacher
        yield teacher.double(), ClipBlocks(teacher)
        teacher.float()
    else:
        teacher = TimmTeacher("augreg", timm.create_model("vit_sf_tiny")).double()
        yield teacher, TimmBlocks(teacher)


def pixels_for(teacher):
    torch.manual_seed(0)
    return torch.randn(2, 3, teacher.image_size, teacher.image_size, dtype=torch.float64)


@pytest.mark.parametrize("count", [2, 23])
@torch.no_grad()
def test_tome_is_the_published_algorithm_token_by_token(teacher_and_host, count):
    teacher, host = teacher_and_host
    pixels = pixels_for(teacher)
    merging = ToMeTeacher(teacher, count)
    tokens = teacher.embed(pixels)
    wanted = torch.stack([run_slowly(host, teacher, picture, tome(count)) for picture in tokens])
    found = merging.run_blocks(tokens)
    assert found.shape[1] == 1 + merging.num_tokens == wanted.shape[1]
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(merging(pixels), teacher.embed_cls(wanted[:, 0]))


@torch.no_grad()
def test_diffrate_prunes_and_merges_token_by_token(teacher_and_host):
    teacher, host = teacher_and_host
    depth, count = teacher.num_hidden_layers, teacher.num_tokens
    pruned = tuple(max(count - 2 * block - 1, 4) for block in range(depth))
    schedule = Schedule(pruned, tuple(max(kept - 2 * (block > 0), 3) for block, kept in enumerate(pruned)))
    tokens = teacher.embed(pixels_for(teacher))
    compressing = DiffRateTeacher(teacher, schedule)
    wanted = torch.stack([run_slowly(host, teacher, picture, diffrate(schedule)) for picture in tokens])
    torch.testing.assert_close(compressing.run_blocks(tokens), wanted)
    assert wanted.shape[1] == 1 + compressing.num_tokens == schedule.merged[-1]


def test_rates_that_do_not_fit_are_refused(clip_teacher):
    with pytest.raises(ValueError, match="ToMe merges at least one token in a block, not 0"):
        ToMeTeacher(clip_teacher, 0)
    for schedule in (Schedule((9,), (9,)), Schedule((9, 9, 9), (9, 9, 1))):
        with pytest.raises(
            ValueError, match=r"expected for each of .* 3 blocks how many tokens are kept, CLS and at le"
        ):
            DiffRateTeacher(clip_teacher, schedule)
