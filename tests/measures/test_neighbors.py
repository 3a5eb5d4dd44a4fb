import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tying_utils.measures.neighbors import knn_chance, knn_overlap, nearest


def gaussian(V, d, seed=0):
    return torch.randn(V, d, generator=torch.Generator().manual_seed(seed))


def at(*degrees):
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack((angles.cos(), angles.sin()), 1)


def test_nearest_by_hand_ignores_norms_and_self():
    table = at(0, 10, 30, 90) * torch.tensor([[1.0], [50.0], [0.01], [1.0]])
    assert nearest(table, 2).tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]


def test_overlap_by_hand():
    a, b = at(0, 10, 90, 100), at(0, 90, 10, 100)
    assert knn_overlap(a, b, 1) == 0  # pairs {0, 1}, {2, 3} against {0, 2}, {1, 3}
    assert knn_overlap(a, b, 2) == 0.75  # the outer two tokens share both neighbours, the inner two one
    assert knn_overlap(a, b, 3) == 1  # everyone is a neighbour


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


def test_overlap_is_blind_to_rotation_and_scale():
    a = gaussian(80, 6)
    turned = 7 * a @ torch.linalg.qr(gaussian(6, 6, 1)).Q * torch.rand(80, 1).add(0.1)
    assert knn_overlap(a, turned, 5) == 1


def test_independent_tables_score_at_chance():
    assert knn_chance(401, 10) == 0.025
    assert knn_overlap(gaussian(401, 16), gaussian(401, 16, 1), 10) == pytest.approx(0.025, abs=0.012)


def test_half_precision_and_zero_rows():
    a = gaussian(30, 4).bfloat16()
    a[3] = 0
    assert knn_overlap(a, a.float(), 5) == 1


def test_bad_arguments_are_named():
    a = gaussian(9, 3)
    for k in (0, 9, 2.0, True):
        with pytest.raises(ValueError, match="k: "):
            knn_overlap(a, a, k)  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="k: "):
            knn_chance(9, k)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="block"):
        knn_overlap(a, a, 2, block=0)
    with pytest.raises(ValueError, match="V = 9 and V = 8"):
        knn_overlap(a, a[:8], 2)
