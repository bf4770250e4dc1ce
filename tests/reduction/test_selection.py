"""Reductions of patch tokens beside loops that say the same slowly, on random tokens in float64."""

import math

import pytest
import torch

from sf_llava.reduction.grids import average_cells, pick_at_random, pick_evenly
from sf_llava.reduction.selection import pick_diverse, prune_and_merge, zip_tokens
from sf_llava.reduction.tome import merge_behind

M, D = 64, 24
COUNTS = (1, 3, 8, 16, 32, 64)
BY_LOOPS = {}


def by_loops(reduce):
    """Register the slow form: of one picture's patches, and keys and attention as lists, to tokens by place."""

    def register(function):
        BY_LOOPS[function.__name__] = reduce, function
        return function

    return register


def cosine(a: list[float], b: list[float]) -> float:
    inner, first, second = (sum(x * y for x, y in zip(*pair, strict=True)) for pair in ((a, b), (a, a), (b, b)))
    return inner / math.sqrt(first * second)


def most(values: dict[int, float], count: int) -> list[int]:
    return sorted(values, key=lambda place: -values[place])[:count]


@by_loops(lambda patches, keys, attention, count: zip_tokens(patches, keys, attention, count))
def visionzip(patches, keys, attention, count):
    num_targets = min(round(count * 10 / 64), M - count)
    dominant = most(dict(enumerate(attention)), count - num_targets)
    left = [place for place in range(M) if place not in dominant]
    targets = left[:: len(left) // num_targets][:num_targets] if num_targets else []
    goes = {target: [] for target in targets}
    for place in left if targets else []:
        if place not in targets:
            goes[max(targets, key=lambda target: cosine(keys[place], keys[target]))].append(patches[place])
    merged = {t: patches[t] + (sum(goes[t]) / len(goes[t]) if goes[t] else 0) for t in targets}
    return merged | {place: patches[place] for place in dominant}


@by_loops(lambda patches, keys, attention, count: prune_and_merge(patches, keys, attention, count))
def prumerge(patches, keys, attention, count):
    kept = most(dict(enumerate(attention)), count - 1)
    found = []
    for place in kept:
        alike = {other: cosine(keys[place], keys[other]) for other in range(M) if other != place}
        near = most(alike, round(M * 32 / 576))
        found.append((place, patches[place] + sum(attention[other] * patches[other] for other in near)))
    dropped = [place for place in range(M) if place not in kept]
    rest = sum(attention[place] * patches[place] for place in dropped)
    return [*found, (max(dropped, key=lambda place: attention[place]), rest)]


@by_loops(lambda patches, keys, attention, count: pick_diverse(patches, keys, count))
def divprune(patches, keys, attention, count):
    far = [[1 - cosine(one, other) for other in keys] for one in keys]

    def apart(place, others):
        return min(far[place][other] for other in others if other != place)

    picked = [max(range(M), key=lambda place: apart(place, range(M)))]
    while len(picked) < count:
        left = [place for place in range(M) if place not in picked]
        picked.append(max(left, key=lambda place: apart(place, picked)))
    return {place: patches[place] for place in picked}


@by_loops(lambda patches, keys, attention, count: merge_behind(patches, keys, count))
def tome(patches, keys, attention, count):
    tokens = [(place, patches[place], torch.tensor(keys[place], dtype=torch.float64), 1) for place in range(M)]
    while len(tokens) > count:
        source, target = tokens[::2], tokens[1::2]
        partner = [
            max(range(len(target)), key=lambda other: cosine(one[2].tolist(), target[other][2].tolist()))
            for one in source
        ]
        best = {i: cosine(one[2].tolist(), target[partner[i]][2].tolist()) for i, one in enumerate(source)}
        merged = most(best, min(len(tokens) - count, max(len(tokens) // 8, 1)))
        sums = [(place, token * size, key * size, size) for place, token, key, size in target]
        for index in merged:
            _, token, key, size = source[index]
            at, token_sum, key_sum, size_sum = sums[partner[index]]
            sums[partner[index]] = at, token_sum + size * token, key_sum + size * key, size_sum + size
        left = [source[index] for index in range(len(source)) if index not in merged]
        tokens = left + [(place, token / size, key / size, size) for place, token, key, size in sums]
    return {place: token for place, token, _, _ in tokens}


@by_loops(lambda patches, keys, attention, count: average_cells(patches, count))
def pooled(patches, keys, attention, count):
    rows = max(rows for rows in range(1, count + 1) if count % rows == 0 and rows * rows <= count)
    shape, found = (rows, count // rows), []
    for cell in range(count):
        spans, centre = [], []
        for at, cells in zip(divmod(cell, shape[1]), shape, strict=True):
            spans.append(range(math.floor(at * 8 / cells), math.ceil((at + 1) * 8 / cells)))
            centre.append(math.floor((at + 0.5) * 8 / cells))
        inside = [patches[8 * y + x] for y in spans[0] for x in spans[1]]
        found.append((8 * centre[0] + centre[1], sum(inside) / len(inside)))
    return found


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", BY_LOOPS)
def test_tokens_are_those_of_the_loops(name, count):
    torch.manual_seed(count)
    patches, keys = torch.randn(2, M, D, dtype=torch.float64), torch.randn(2, M, 6, dtype=torch.float64)
    attention = torch.rand(2, M, dtype=torch.float64)
    reduce, slow = BY_LOOPS[name]
    tokens, places = reduce(patches, keys, attention, count)
    assert tokens.shape == (2, count, D) and tokens.dtype == torch.float64
    for picture in range(2):
        wanted = slow(patches[picture], keys[picture].tolist(), attention[picture].tolist(), count)
        wanted = sorted(wanted.items() if isinstance(wanted, dict) else wanted, key=lambda pair: pair[0])
        assert places[picture].tolist() == [place for place, _ in wanted]
        torch.testing.assert_close(tokens[picture], torch.stack([token for _, token in wanted]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("pick", [pick_evenly, pick_at_random])
def test_what_is_picked_without_looking_is_as_it_was_and_the_same_for_all(pick, count):
    patches = torch.randn(3, M, D)
    tokens, places = pick(patches, count)
    assert torch.equal(tokens, torch.stack([patch[places[0]] for patch in patches]))
    assert places[0].tolist() == sorted(set(places[0].tolist())) and len(places[0]) == count
    if pick is pick_evenly and count == 16:
        assert places[0, :6].tolist() == [0, 2, 4, 6, 16, 18]


@pytest.mark.parametrize("name", BY_LOOPS)
def test_equal_tokens_are_no_trouble(name):
    same = torch.ones(1, M, D)
    tokens, places = BY_LOOPS[name][0](same, torch.ones(1, M, 6), torch.full((1, M), 1 / M), 16)
    assert tokens.isfinite().all() and len(set(places[0].tolist())) >= 15


@pytest.mark.parametrize("count", [0, 65])
def test_more_tokens_than_patches_are_refused(count):
    for reduce in (*(reduce for reduce, _ in BY_LOOPS.values()), lambda patches, k, a, n: pick_evenly(patches, n)):
        with pytest.raises(ValueError, match=f"64 patches cannot become {count} tokens: expected 1 to 64"):
            reduce(torch.randn(1, M, D), torch.randn(1, M, 6), torch.rand(1, M), count)


def test_more_columns_than_patches_are_refused():
    with pytest.raises(ValueError, match="63 tokens lie on a grid of 7 x 9, which 8 x 8 patches do not have"):
        pick_evenly(torch.randn(1, M, D), 63)
