"""Pooling and merging end with the asked number of tokens, and lose nothing where there is nothing to lose."""

import pytest
import torch

from sf_llava.measure.baselines import MergedTeacher, PooledTeacher, pool_tokens, reduced_candidate
from sf_llava.model.costs import count_multiply_adds
from sf_llava.reduction.tome import match, merge


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [PooledTeacher, MergedTeacher])
def test_all_tokens_give_the_teacher(clip_teacher, pixels, kind):
    reduced = kind(clip_teacher, clip_teacher.num_patches)
    torch.testing.assert_close(reduced(pixels), clip_teacher(pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_tokens", [1, 8, 16, 24, 63])
def test_any_number_of_tokens_is_reached(clip_teacher, pixels, num_tokens):
    for reduced in (PooledTeacher(clip_teacher, num_tokens, 1), MergedTeacher(clip_teacher, num_tokens)):
        if num_tokens == 1 and isinstance(reduced, MergedTeacher):
            continue  # three blocks halve 64 at most three times
        tokens = reduced.run_blocks(clip_teacher.embed(pixels))
        assert tokens.shape == (2, 1 + num_tokens, clip_teacher.hidden_size)
        assert reduced(pixels).shape == (2, clip_teacher.embed_dim)


def test_fewer_tokens_cost_less(clip_teacher):
    costs = [count_multiply_adds(PooledTeacher(clip_teacher, n), 64) for n in (8, 16, 64)]
    assert costs == sorted(costs) and costs[0] < costs[2] / 2
    assert count_multiply_adds(MergedTeacher(clip_teacher, 16), 64) < count_multiply_adds(clip_teacher, 64)


def test_pooling_averages_cells_of_the_grid():
    patches = torch.arange(16.0).view(1, 16, 1)
    pooled = pool_tokens(torch.cat([torch.full((1, 1, 1), 99.0), patches], dim=1), 4)
    assert pooled.flatten().tolist() == [99, 2.5, 4.5, 10.5, 12.5]


def test_the_most_similar_pair_is_merged_by_its_weights():
    tokens = torch.tensor([[[7.0], [1.0], [2.0], [5.0], [9.0]]])
    sizes = torch.tensor([[1.0, 3.0, 1.0, 1.0, 1.0]])
    keys = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.1], [0.0, -1.0], [-1.0, 0.2]]])
    matching = match(keys, 1, keep_first=True)
    merged, merged_sizes = merge(matching, tokens, sizes)  # token 2 into token 1, weights 1 and 3
    assert merged.flatten().tolist() == [7.0, 9.0, 1.25, 5.0]
    assert merged_sizes.flatten().tolist() == [1, 1, 4, 1]


def test_merging_copies_changes_nothing(clip_teacher):
    """Attention that counts sizes cannot tell two equal tokens from one of size two."""
    torch.manual_seed(0)
    distinct = torch.randn(1, 9, clip_teacher.hidden_size)
    doubled = torch.cat([distinct[:, :1], distinct[:, 1:].repeat_interleave(2, dim=1)], dim=1)  # CLS, a a b b ...
    merging = MergedTeacher(clip_teacher, 8)
    merged, sizes = merge(match(doubled, 8, keep_first=True), doubled, torch.ones(1, 17))
    assert sizes.tolist() == [[1] + [2] * 8]
    torch.testing.assert_close(merged, distinct)
    merging.left = lambda index: 16  # of 16 tokens, or of 8: none is merged
    from_doubled, _ = merging._run_block(0, doubled, torch.ones(1, 17))
    merging.left = lambda index: 8
    from_merged, _ = merging._run_block(0, merged, sizes)
    torch.testing.assert_close(from_merged[:, 0], from_doubled[:, 0], rtol=1e-4, atol=1e-5)


def test_more_tokens_than_patches_are_refused(clip_teacher):
    with pytest.raises(ValueError, match="has 64 patches, which cannot become 65"):
        PooledTeacher(clip_teacher, 65)
    assert reduced_candidate("pooled", PooledTeacher(clip_teacher, 16)).num_tokens == 16
