import functools
import math

import naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tying_utils.measures import neighbors
from tying_utils.measures.neighbors import (
    knn_chance,
    knn_overlap,
    nearest,
    neighbor_graphs,
    overlap,
    overlaps,
    purity,
    purity_chance,
)

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
gaussian = functools.partial(naive.gaussian, dtype=torch.float32)


def at(*degrees):
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack((angles.cos(), angles.sin()), 1)


def test_nearest_by_hand_ignores_norms_and_self():
    table = at(0, 10, 30, 90) * torch.tensor([[1.0], [50.0], [0.01], [1.0]])
    assert nearest(table, 2).tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 60), st.integers(1, 8), st.integers(1, 70), st.data())
def test_nearest_is_brute_force_for_every_k_and_block(V, d, block, data):
    k = data.draw(st.integers(1, V - 1))
    table = gaussian(V, d, V).double()
    table[:: data.draw(st.integers(2, V))] = table[-1]  # duplicates
    table[1 :: data.draw(st.integers(2, V))] = 0
    cosines = torch.cosine_similarity(table[:, None], table[None], dim=-1).fill_diagonal_(-2)
    near = nearest(table, k, block=block)
    assert near.shape == (V, k) and near.dtype == torch.int64
    assert all(len({row, *found}) == k + 1 for row, found in enumerate(near.tolist()))  # no token twice, never itself
    # Ties may fall either way, so it is the cosines that are compared: the largest, in descending order.
    torch.testing.assert_close(cosines.gather(1, near), cosines.topk(k, dim=1).values, rtol=0, atol=1e-12)


def test_nearest_multiplies_each_pair_of_rows_once():
    V, d, block = 105, 16, 10
    with FlopCounterMode(display=False) as counter:
        nearest(gaussian(V, d), 5, block=block)
    pairs = sum(min(block, V - start) * (V - start) for start in range(0, V, block))
    assert counter.get_total_flops() == 2 * d * pairs < 0.56 * 2 * d * V * V


def test_float64_stays_float64():
    angles = at(0, 1e-3, 3e-3)  # their cosines are all 1 in float32
    assert nearest(angles, 2).tolist() == [[1, 2], [0, 2], [1, 0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_table_is_left_as_it_is(dtype):
    table = gaussian(20, 4).to(dtype)
    before = table.clone()
    nearest(table, 3)
    assert torch.equal(table, before)


@given(st.lists(st.integers(-100, 100), min_size=30, max_size=30))
def test_lengths_whose_squares_no_float_holds_change_nothing(powers):
    table = gaussian(30, 4)
    assert torch.equal(nearest(table * 2.0 ** torch.tensor(powers)[:, None], 5), nearest(table, 5))


def test_overlap_by_hand():
    a, b = at(0, 10, 90, 100), at(0, 90, 10, 100)
    assert knn_overlap(a, b, 1) == 0  # pairs {0, 1}, {2, 3} against {0, 2}, {1, 3}
    assert knn_overlap(a, b, 2) == 0.75  # the outer two tokens share both neighbours, the inner two one
    assert knn_overlap(a, b, 3) == 1  # everyone is a neighbour
    assert knn_chance(401, 10) == 0.025


@settings(deadline=None, max_examples=20)
@given(st.integers(3, 40), st.integers(2, 8), st.integers(2, 8), st.integers(1, 50), st.data())
def test_overlap_equals_sets_whatever_the_block(V, d_a, d_b, block, data):
    k = data.draw(st.integers(1, V - 1))
    a, b = gaussian(V, d_a, V), gaussian(V, d_b, k + 1000)

    def sets(table):
        similarity = torch.cosine_similarity(table[:, None].double(), table[None].double(), dim=-1)
        similarity.fill_diagonal_(-2)
        return [set(row.tolist()) for row in similarity.topk(k).indices]

    expected = sum(len(x & y) for x, y in zip(sets(a), sets(b), strict=True)) / (V * k)
    assert knn_overlap(a, b, k, block=block) == pytest.approx(expected)
    assert knn_overlap(b, a, k, block=block) == pytest.approx(expected)
    assert knn_overlap(a, a, k, block=block) == 1


def test_half_precision_and_zero_rows():
    a = gaussian(30, 4).bfloat16()
    a[3] = 0
    assert knn_overlap(a, a.float(), 5) == 1


def test_overlap_of_a_rotated_copy_of_other_lengths_and_of_independent_tables():
    a = gaussian(300, 8)
    turned = 7 * a @ torch.linalg.qr(gaussian(8, 8, 1)).Q * torch.rand(300, 1).add(0.1)
    same = overlap(a, turned, 5, permutations=20, bootstrap=50)
    assert (same.value, same.corrected, *same.interval) == (1, 1, 1, 1)
    assert (same.chance, same.tokens, same.permutations, same.k) == (5 / 299, 300, 20, 5)
    inside = 0
    for seed in range(10):
        b = gaussian(300, 8, seed + 1)
        result = overlap(a, b, 5, permutations=60, bootstrap=50, seed=seed)
        assert result.value == knn_overlap(a, b, 5)
        assert result.corrected == pytest.approx((result.value - 5 / 299) / (1 - 5 / 299))
        assert abs(result.corrected) < 0.015
        assert result.chance_range.low < result.chance < result.chance_range.high
        inside += result.chance_range.low <= result.value <= result.chance_range.high
    assert inside >= 8


def test_the_overlap_null_is_that_of_permuted_rows():
    a, b = gaussian(40, 3), gaussian(40, 4, 1)
    b = torch.cat((b[:20], b[:20] + 0.01 * gaussian(20, 4, 2)))  # pairs of near copies, which many tokens do not choose
    generator = torch.Generator().manual_seed(6)
    scores = []
    for _ in range(30):
        order = torch.randperm(40, generator=generator)
        permuted = torch.empty_like(b)
        permuted[order] = b
        scores.append(knn_overlap(a, permuted, 3))
    result = overlap(a, b, 3, permutations=30, bootstrap=5, seed=6)
    assert result.chance_range == pytest.approx(tuple(np.quantile(scores, (0.025, 0.975))))
    assert result.chance == pytest.approx(np.mean(scores), abs=5 * float(np.std(scores)) / math.sqrt(30))


def test_the_overlap_interval_is_that_of_shares_over_tokens():
    # Tokens come in pairs of equal rows; in b half of the pairs swap partners, so that half of the tokens share theirs.
    pairs = torch.eye(100).repeat_interleave(2, 0)
    swapped = pairs.clone()
    swapped[0:100:2] = pairs[0:100:2].roll(1, 0)
    result = overlap(pairs, swapped, 1, permutations=1, bootstrap=4000)
    half = 1.96 * math.sqrt(0.25 / 200)
    assert result.value == 0.5
    assert result.interval == pytest.approx((0.5 - half, 0.5 + half), abs=0.006)


@settings(deadline=None, max_examples=20)
@given(st.integers(3, 40), st.integers(1, 6), st.sampled_from(DTYPES), st.data())
def test_overlap_of_every_shape_dtype_and_layout(V, d, dtype, data):
    k = data.draw(st.integers(1, V - 1))
    a, b = gaussian(V, d, V).to(dtype), gaussian(V, d + 1, k).to(dtype)
    a[0] = 0
    result = overlap(a, b, k, permutations=5, bootstrap=5)
    assert result == overlap(a.T.contiguous().T, torch.stack((b, b), 2)[:, :, 0], k, permutations=5, bootstrap=5)
    assert result.value == knn_overlap(a, b, k)
    for score in (result.value, *result.chance_range, *result.interval):
        assert 0 <= score <= 1 + 1e-12
    assert math.isnan(result.corrected) == (k == V - 1)


def test_overlap_is_fixed_by_its_seed():
    a, b = gaussian(60, 4), gaussian(60, 4, 1)
    result = overlap(a, b, 3, bootstrap=50, seed=1)
    assert result == overlap(a, b, 3, bootstrap=50, seed=1)
    assert result.interval != overlap(a, b, 3, bootstrap=50, seed=2).interval


def test_overlaps_score_each_pair_as_alone_from_one_graph_a_table(monkeypatch):
    tables = {"z": gaussian(60, 4), "a": gaussian(60, 5, 1).double(), "m": gaussian(60, 6, 2)}
    options = {"permutations": 8, "bootstrap": 20, "seed": 3, "block": 32}
    pairs = [("z", "a"), ("z", "m"), ("a", "m")]
    alone = {(a, b): overlap(tables[a], tables[b], 4, **options) for a, b in pairs}
    built, build = [], neighbors._nearest
    monkeypatch.setattr(neighbors, "_nearest", lambda value, *rest: built.append(value.shape[1]) or build(value, *rest))
    together = overlaps(tables, 4, **options)
    assert built == [4, 5, 6]
    assert together == alone and list(together) == pairs
    assert len({result.value for result in together.values()}) > 1
    for again in (knn_overlap, overlap):
        built.clear()
        again(tables["z"], tables["m"], 4)
        assert built == [4, 6]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_gives_the_same():
    a, b = gaussian(300, 8).double(), gaussian(300, 9, 1).double()
    assert torch.equal(nearest(a.cuda(), 5, block=64).cpu(), nearest(a, 5, block=64))
    assert overlap(a.cuda(), b, 5, block=64) == overlap(a, b, 5)


def test_neighbor_graphs_are_nearest_by_name():
    tables = {"z": gaussian(30, 4), "a": gaussian(30, 5, 1).bfloat16()}
    graphs = neighbor_graphs(tables, 3, block=8)
    assert list(graphs) == ["z", "a"]
    assert all(torch.equal(graphs[name], nearest(table, 3, block=8)) for name, table in tables.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tables": {}}, r"tables: a mapping .*, at least 2 of them, is needed, got \[\]"),
        ({"tables": {"tied": gaussian(9, 3)}}, r"tables: a mapping .* got \['tied'\]"),
        ({"tables": [gaussian(9, 3)] * 2}, "tables: a mapping .* got list"),
        ({"tables": {"in": gaussian(9, 3), "out": gaussian(9, 3), "tied": gaussian(8, 3)}}, "in and tied: .* V = 9 and V = 8"),
        ({"tables": {"in": gaussian(9, 3), "out": gaussian(9, 3).long()}}, "out: a floating tensor"),
        ({"k": 9}, "k: at most V - 1 = 8"),
        ({"block": 0}, "block: an integer of at least 1"),
    ],
)
def test_bad_arguments_of_overlaps_are_named_before_a_graph_is_built(monkeypatch, changes, message):
    monkeypatch.delattr(neighbors, "_nearest")
    arguments = {"tables": {"in": gaussian(9, 3), "out": gaussian(9, 3, 1)}, "k": 2, **changes}
    for measure in (overlaps, neighbor_graphs):
        with pytest.raises(ValueError, match=message):
            measure(**arguments)


def test_purity_of_classes_and_of_chance():
    labels = torch.arange(120) % 4
    onehot = torch.eye(4)[labels]
    assert purity(onehot, labels, 10) == 1
    assert purity(onehot, labels.numpy(), 10) == purity(onehot, labels.tolist(), 10) == 1
    assert purity(onehot, 7 - 3 * labels, 10, block=13) == 1  # any integers name the classes
    assert purity_chance(labels) == pytest.approx(29 / 119)
    assert purity(onehot, labels, 119) == pytest.approx(29 / 119)  # everyone is a neighbour
    uneven = torch.randint(5, (600,), generator=torch.Generator().manual_seed(0)).square()
    assert purity(gaussian(600, 8), uneven, 10) == pytest.approx(purity_chance(uneven), abs=0.025)


def test_purity_by_hand():
    # Nearest: 0 -> 10, 10 -> 0, 30 -> 10, 90 -> 30.
    assert purity(at(0, 10, 30, 90), [0, 0, 0, 1], 1) == 0.75
    assert purity(at(0, 10, 30, 90), [0, 1, 1, 1], 1) == 0.5
    assert purity_chance([0, 0, 0, 1]) == 0.5
    assert purity_chance([0, 1, 2]) == 0
    assert purity_chance([5, 5]) == 1


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=30), st.integers(0, 2**31))
def test_purity_chance_is_the_mean_over_all_pairs(labels, seed):
    pairs = [x == y for i, x in enumerate(labels) for j, y in enumerate(labels) if i != j]
    assert purity_chance(labels) == pytest.approx(sum(pairs) / len(pairs))
    table = gaussian(len(labels), 3, seed)
    assert purity(table, labels, len(labels) - 1) == pytest.approx(purity_chance(labels))
    assert 0 <= purity(table, labels, 1) <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 9}, "k: at most V - 1 = 8"),
        *(({"k": k}, "k: an integer of at least 1") for k in (-1, 0, 2.0, True)),
        *(({name: 0}, f"{name}: an integer of at least 1") for name in ("permutations", "bootstrap", "block")),
        ({"seed": -1}, "seed: an integer of at least 0"),
        ({"b": torch.randn(8, 3)}, "V = 9 and V = 8"),
    ],
)
def test_bad_arguments_of_overlap_are_named_before_a_graph_is_built(monkeypatch, changes, message):
    monkeypatch.delattr(neighbors, "_nearest")
    arguments = {"a": gaussian(9, 3), "b": gaussian(9, 3, 1), "k": 2, **changes}
    with pytest.raises(ValueError, match=message):
        overlap(**arguments)
    if changes.keys() & {"k", "block", "b"}:
        with pytest.raises(ValueError, match=message):
            knn_overlap(**arguments)
    if "k" in changes:
        with pytest.raises(ValueError, match=message):
            knn_chance(9, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0] * 8}, "labels: one label a row is needed, 9, got 8"),
        ({"labels": [0.5] * 9}, "labels: integers are needed, got float64"),
        ({"labels": torch.zeros(9)}, "labels: integers are needed, got float32"),
        ({"labels": ["a"] * 9}, "labels: integers are needed"),
        ({"labels": [True] * 9}, "labels: integers are needed, got bool"),
        ({"labels": torch.zeros(9, 1, dtype=torch.int64)}, r"labels: a sequence .* got shape \(9, 1\)"),
        ({"labels": []}, r"labels: a sequence .* got shape \(0,\)"),
        ({"k": -1}, "k: an integer of at least 1"),
        ({"k": 9}, "k: at most V - 1 = 8"),
        ({"block": 0}, "block: an integer of at least 1"),
        ({"table": torch.full((9, 3), math.nan)}, "table: 27 entries"),
    ],
)
def test_bad_arguments_of_purity_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        purity(**{"table": gaussian(9, 3), "labels": [0] * 9, "k": 2, **changes})
    if "labels" in changes and len(changes["labels"]) != 8:
        with pytest.raises(ValueError, match=message):
            purity_chance(changes["labels"])
