import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tying_utils.measures import alignment as module
from tying_utils.measures.alignment import (
    align,
    chance,
    corrected,
    fit,
    gaussian_chance,
    row_cosines,
    token_cosines,
)

KINDS = ["identity", "orthogonal", "linear"]
shapes = st.tuples(st.integers(1, 6), st.integers(8, 40), st.integers(0, 2**31))  # d, V, seed


def gaussian(V, d, seed=0):
    return torch.randn(V, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(d, seed=1):
    return torch.linalg.qr(gaussian(d, d, seed)).Q


def by_lstsq(source, target):
    """The published linear alignment, on the whole matrix."""
    s, t = (np.asarray(x.double()) - np.asarray(x.double()).mean(0) for x in (source, target))
    mapped = s @ np.linalg.lstsq(s, t, rcond=None)[0]
    return float(((mapped * t).sum(1) / np.linalg.norm(mapped, axis=1) / np.linalg.norm(t, axis=1)).mean())


def test_identity_is_the_raw_mean_row_cosine():
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    b = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    assert align(a, b, "identity") == pytest.approx((1 + math.sqrt(0.5)) / 2)


def test_orthogonal_by_hand():
    # Centred already; the best rotation by a quarter turn takes the source's axes to the target's.
    source = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    target = torch.tensor([[0.0, 1.0], [0.0, -1.0], [3.0, 0.0], [-3.0, 0.0]])
    assert align(source, target, "identity") == 0
    assert align(source, target, "orthogonal") == pytest.approx(1)


def test_linear_by_hand():
    # One source column, s = (-1, 0, 1); targets (-1, -2, 3) -> slope 2, fit (-2, 0, 2): cosines 1, 0 (zero row), 1.
    source, target = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[-1.0], [-2.0], [3.0]])
    assert token_cosines(source, target, "linear").tolist() == [1, 0, 1]
    assert align(source, target, "linear") == pytest.approx(2 / 3)


@settings(deadline=None, max_examples=15)
@given(shapes)
def test_orthogonal_is_one_for_a_rotated_shifted_scaled_copy_and_blind_to_rotation(shape):
    d, V, seed = shape
    source, target, turn = gaussian(V, d, seed), gaussian(V, d, seed + 1), rotation(d, seed)
    assert align(source, 3 * source @ turn + 1, "orthogonal") == pytest.approx(1)
    expected = align(source, target, "orthogonal")
    assert align(source @ turn - 2, target, "orthogonal") == pytest.approx(expected, abs=1e-9)
    assert align(target, source, "orthogonal") == pytest.approx(expected, abs=1e-9)
    assert -1 <= expected <= 1


@settings(deadline=None, max_examples=15)
@given(shapes, st.integers(1, 6))
def test_linear_is_one_for_an_affine_image_and_equals_lstsq(shape, d_target):
    d, V, seed = shape
    V += d  # more tokens than dimensions
    source = gaussian(V, d, seed)
    assert align(source, source @ gaussian(d, d_target, seed + 1) + 5, "linear") == pytest.approx(1)
    target = gaussian(V, d_target, seed + 2)
    value = align(source, target, "linear")
    assert value == pytest.approx(by_lstsq(source, target), abs=1e-9)
    stretched = source * torch.logspace(-6, 6, d, dtype=torch.float64) + 1
    assert align(stretched, target, "linear") == pytest.approx(value, abs=1e-6)


def test_linear_takes_the_fallback_for_singular_and_nearly_singular_sources(monkeypatch):
    calls = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda x: calls.append(1) or eigh(x))
    base, target = gaussian(60, 4), gaussian(60, 3, 1)
    expected = by_lstsq(base, target)
    assert align(base, target, "linear") == pytest.approx(expected)
    assert not calls
    constant = torch.full((60, 1), 0.1, dtype=torch.float64)
    for extra in (base[:, :1], base @ gaussian(4, 2, 2), constant, base[:, :1] + 1e-9 * gaussian(60, 1, 3)):
        assert align(torch.cat((base, extra), 1), target, "linear") == pytest.approx(expected, abs=1e-6)
    assert len(calls) >= 3  # the constant column is exactly zero once centred, and singular too


def test_a_constant_table_has_cosine_zero():
    constant = torch.full((49, 3), 0.1, dtype=torch.float64) * torch.tensor([1, 3, 7])
    assert (constant - constant.mean(0)).abs().max() > 0  # rounding alone would leave rows with a direction
    for kind in ("orthogonal", "linear"):
        assert align(constant, gaussian(49, 3), kind) == 0
        assert align(gaussian(49, 3), constant, kind) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_do_not_change_the_result(kind, monkeypatch):
    source, target = gaussian(37, 5), gaussian(37, 5, 1)
    whole = token_cosines(source, target, kind)
    monkeypatch.setattr(module, "_BLOCK", 20)
    torch.testing.assert_close(token_cosines(source, target, kind), whole)
    torch.testing.assert_close(row_cosines(source, target), token_cosines(source, target, "identity"))


@pytest.mark.parametrize("kind", KINDS)
def test_fit_and_token_cosines_agree_with_align(kind):
    source, target = gaussian(40, 4), gaussian(40, 4, 1)
    mapped, centred = fit(source, target, kind)
    assert mapped.shape == centred.shape == (40, 4)
    torch.testing.assert_close(row_cosines(mapped, centred), token_cosines(source, target, kind))
    assert align(source, target, kind) == pytest.approx(float(row_cosines(mapped, centred).mean()))
    if kind == "orthogonal":
        torch.testing.assert_close(mapped.norm(dim=1), (source - source.mean(0)).norm(dim=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype_is_computed_in_float64(dtype, kind):
    source, target = gaussian(50, 6).to(dtype), gaussian(50, 6, 1).to(dtype)
    assert token_cosines(source, target, kind).dtype == torch.float64
    assert align(source, target, kind) == align(source.double(), target.double(), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_chance_is_the_score_of_permuted_rows(kind):
    source, target = gaussian(30, 4) + 1, gaussian(30, 4, 1) + 1
    generator = torch.Generator().manual_seed(7)
    scores = [align(source[torch.randperm(30, generator=generator)], target, kind) for _ in range(5)]
    result = chance(source, target, kind, permutations=5, seed=7)
    low, high = np.quantile(scores, [0.025, 0.975])
    assert dataclasses.astuple(result) == pytest.approx((np.mean(scores), low, high, 5))
    assert chance(source, target, kind, permutations=5, seed=8) != result


@pytest.mark.parametrize("kind", KINDS)
def test_gaussian_tables_score_at_chance_by_formula(kind):
    source, target = gaussian(1500, 30), gaussian(1500, 30, 1)
    expected = gaussian_chance(1500, 30, kind)
    assert align(source, target, kind) == pytest.approx(expected, abs=0.01)
    assert chance(source, target, kind, permutations=3).mean == pytest.approx(expected, abs=0.01)


def test_chance_is_lower_for_uneven_row_norms():
    size = torch.logspace(0, 2, 600, dtype=torch.float64)[:, None]
    pair = gaussian(600, 15) * size, gaussian(600, 15, 1) * size
    assert chance(*pair, "orthogonal", permutations=3).high < 0.95 * gaussian_chance(600, 15, "orthogonal")


def test_gaussian_chance_at_the_paper_s_size():
    assert gaussian_chance(50280, 2048, "orthogonal") == pytest.approx(0.1713, abs=1e-4)
    assert gaussian_chance(50280, 2048, "linear") == pytest.approx(0.2018, abs=1e-4)
    assert gaussian_chance(50280, 2048, "identity") == 0


def test_corrected():
    assert corrected(0.2, 0.2) == 0
    assert corrected(1, 0.2) == 1
    assert corrected(0.6, 0.2) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="chance"):
        corrected(1, 1)


def test_row_cosines_of_zero_and_parallel_rows():
    a = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]], dtype=torch.bfloat16)
    b = torch.tensor([[1.0, 0.0], [2.0, 2.0], [-3.0, 0.0]])
    assert row_cosines(a, b).tolist() == pytest.approx([0, 1, -1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.randn(9, 2), torch.randn(8, 2), "linear"), "V = 9 and V = 8"),
        ((torch.randn(9, 2), torch.randn(9, 3), "identity"), "d = 2 and d = 3"),
        ((torch.randn(9, 2), torch.randn(9, 3), "orthogonal"), "d = 2 and d = 3"),
        ((torch.randn(9, 2), torch.randn(9, 2), "affine"), "kind"),
        ((torch.randn(9, 8), torch.randn(9, 2), "linear"), "perfect by construction"),
        ((torch.full((9, 2), torch.nan), torch.randn(9, 2), "linear"), "source"),
        ((torch.randn(9, 2), torch.ones(9, 2, dtype=torch.int64), "identity"), "target"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    for function in (align, token_cosines, fit, chance):
        with pytest.raises(ValueError, match=message):
            function(*arguments)


def test_linear_needs_two_more_tokens_than_dimensions():
    # V = d + 1 centred rows lie in d dimensions: perfect on pure noise. With one more the fit is no longer free.
    assert align(gaussian(10, 8), gaussian(10, 8, 1), "linear") < 1 - 1e-3
    assert by_lstsq(gaussian(9, 8), gaussian(9, 8, 1)) == pytest.approx(1)


def test_bad_permutations_and_sizes():
    with pytest.raises(ValueError, match="permutations"):
        chance(gaussian(9, 2), gaussian(9, 2), "identity", permutations=0)
    with pytest.raises(ValueError, match="V: at least d = 20"):
        gaussian_chance(10, 20, "linear")
    with pytest.raises(ValueError, match="kind"):
        gaussian_chance(20, 10, "affine")  # pyright: ignore[reportArgumentType]
