import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import gaussian, held_out, rotation

from tying_utils.measures import alignment as module
from tying_utils.measures import permuted
from tying_utils.measures.alignment import (
    Kind,
    align,
    alignment,
    chance,
    corrected,
    fit,
    gaussian_chance,
    row_cosines,
    token_cosines,
)

KINDS: list[Kind] = ["identity", "orthogonal", "linear"]
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
shapes = st.tuples(st.integers(1, 6), st.integers(8, 40), st.integers(0, 2**31))  # d, V, seed


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
    qr = torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda *x, **options: calls.append(1) or qr(*x, **options))
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
    whole, score = token_cosines(source, target, kind), alignment(source, target, kind, permutations=5, bootstrap=20)
    monkeypatch.setattr(module, "_BLOCK", 20)
    torch.testing.assert_close(token_cosines(source, target, kind), whole)
    torch.testing.assert_close(row_cosines(source, target), token_cosines(source, target, "identity"))
    parts = alignment(source, target, kind, permutations=5, bootstrap=20)
    for a, b in zip(dataclasses.astuple(score), dataclasses.astuple(parts), strict=True):
        assert a == pytest.approx(b, abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_fit_and_token_cosines_agree_with_align(kind):
    source, target = gaussian(40, 4), gaussian(40, 4, 1)
    mapped, centred = fit(source, target, kind)
    assert mapped.shape == centred.shape == (40, 4)
    torch.testing.assert_close(row_cosines(mapped, centred), token_cosines(source, target, kind))
    assert align(source, target, kind) == pytest.approx(float(row_cosines(mapped, centred).mean()))
    if kind == "orthogonal":
        torch.testing.assert_close(mapped.norm(dim=1), (source - source.mean(0)).norm(dim=1))


@pytest.mark.parametrize("dtype", DTYPES)
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
        ((torch.randn(9, 2), torch.randn(9, 2), "affine"), "kind: one of"),
        ((torch.randn(9, 8), torch.randn(9, 2), "linear"), "perfect by construction"),
        ((torch.full((9, 2), torch.nan), torch.randn(9, 2), "linear"), "source"),
        ((torch.randn(9, 2), torch.ones(9, 2, dtype=torch.int64), "identity"), "target"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    for function in (align, token_cosines, fit, chance, alignment):
        with pytest.raises(ValueError, match=message):
            function(*arguments)


def test_linear_needs_two_more_tokens_than_dimensions():
    # V = d + 1 centred rows lie in d dimensions: perfect on pure noise. With one more the fit is no longer free.
    assert align(gaussian(10, 8), gaussian(10, 8, 1), "linear") < 1 - 1e-3
    assert by_lstsq(gaussian(9, 8), gaussian(9, 8, 1)) == pytest.approx(1)


@pytest.mark.parametrize("bad", [{"permutations": 0}, {"seed": -1}, {"seed": 1.0}, {"seed": 2**63}], ids=str)
def test_bad_arguments_of_chance_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        chance(gaussian(9, 2), gaussian(9, 2), "identity", **bad)


def test_bad_sizes_of_gaussian_chance_are_named():
    with pytest.raises(ValueError, match="V: at least d = 20"):
        gaussian_chance(10, 20, "linear")
    with pytest.raises(ValueError, match="kind"):
        gaussian_chance(20, 10, "affine")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", ["orthogonal", "linear"])
def test_a_rotated_copy_aligns_wholly_and_so_do_its_held_out_tokens(kind):
    source = gaussian(200, 6)
    result = alignment(source, 3 * source @ rotation(6) + 1, kind, permutations=20, bootstrap=50)
    scores = (result.value, result.held_out, result.corrected, *result.interval, *result.held_out_interval)
    assert scores == pytest.approx((1,) * 7)
    assert result.chance == pytest.approx(gaussian_chance(200, 6, kind), abs=0.03)
    assert (result.tokens, result.permutations) == (200, 20)


@pytest.mark.parametrize("kind", KINDS)
def test_independent_tables_score_nothing_once_corrected_or_held_out(kind):
    inside = 0
    for seed in range(12):
        tables = gaussian(900, 18, seed), gaussian(900, 18, seed + 100)
        result = alignment(*tables, kind, permutations=60, bootstrap=100, seed=seed)
        assert result.gaussian == gaussian_chance(900, 18, kind)
        assert result.chance == pytest.approx(result.gaussian, abs=0.008)
        assert abs(result.corrected) < 0.035  # four standard deviations of a mean of 900 cosines in 18 dimensions
        assert abs(result.held_out) < 0.035
        inside += result.chance_range.low <= result.value <= result.chance_range.high
    assert inside >= 9


def test_identity_fits_nothing_and_so_holds_nothing_out():
    result = alignment(gaussian(60, 5), gaussian(60, 5, 1), "identity", permutations=5, bootstrap=50)
    assert result.held_out == result.value == align(gaussian(60, 5), gaussian(60, 5, 1), "identity")
    assert result.held_out_interval == result.interval
    assert result.gaussian == 0


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("kind", ["orthogonal", "linear"])
def test_held_out_recovers_a_known_noise_level(kind, noise):
    source = gaussian(6000, 40)
    target = source @ rotation(40) + noise * gaussian(6000, 40, 2)
    result = alignment(source, target, kind, permutations=3, bootstrap=200)
    assert result.held_out == pytest.approx(1 / math.sqrt(1 + noise**2), abs=0.015)  # the cosine in many dimensions
    assert result.held_out_interval.low < result.held_out < result.held_out_interval.high
    assert result.held_out < result.value


@pytest.mark.parametrize("folds", [2, 3, 7, 50])
@pytest.mark.parametrize("kind", ["orthogonal", "linear"])
def test_held_out_equals_a_refit_of_every_fold(kind, folds):
    source, target = gaussian(50, 5) * torch.logspace(-2, 2, 5) + 10, gaussian(50, 5, 1) - 3
    target += source @ gaussian(5, 5, 2) / 100
    result = alignment(source, target, kind, folds=folds, permutations=1, bootstrap=1, seed=4)
    assert result.held_out == pytest.approx(held_out(source, target, kind, folds, seed=4), abs=1e-8)


def test_held_out_of_columns_that_are_constant_or_repeated_where_it_is_fitted():
    source, target = gaussian(40, 4), gaussian(40, 3, 1)
    once = torch.zeros(40, 1, dtype=torch.float64)
    once[7] = 5.0  # varies in no training part but those that hold token 7
    wide = torch.cat((source, once, source[:, :2], torch.full_like(once, 0.1)), 1)
    result = alignment(wide, target, "linear", folds=4, permutations=1, bootstrap=1)
    assert result.held_out == pytest.approx(held_out(wide, target, "linear", 4), abs=1e-6)


def test_alignment_agrees_with_align_and_chance_and_is_fixed_by_its_seed():
    source, target = gaussian(80, 4), gaussian(80, 4, 1)
    result = alignment(source, target, "orthogonal", permutations=20, bootstrap=30, seed=3)
    null = chance(source, target, "orthogonal", permutations=20, seed=3)
    assert result.value == align(source, target, "orthogonal")
    assert (result.chance, *result.chance_range) == (null.mean, null.low, null.high)
    assert result.corrected == corrected(result.value, null.mean)
    assert result == alignment(source, target, "orthogonal", permutations=20, bootstrap=30, seed=3)
    other = alignment(source, target, "orthogonal", permutations=20, bootstrap=30, seed=4)
    assert other.value == result.value
    assert other.held_out != result.held_out
    assert other.chance != result.chance
    assert other.interval != result.interval


def test_polar_factors_by_products_are_those_of_the_svd():
    for d in (1, 2, 7, 40):
        u, _, vh = torch.linalg.svd(gaussian(d, d))
        torch.testing.assert_close(permuted._polar_by_products(gaussian(d, d)), u @ vh, atol=1e-5, rtol=0)
    decaying = rotation(40) * torch.logspace(0, -8, 40) @ rotation(40, 2)
    carried = (permuted._polar_by_products(decaying) * decaying).sum() / torch.linalg.svdvals(decaying).sum()
    assert 1 - 1e-3 < carried <= 1
    assert permuted._polar_by_products(torch.zeros(3, 3)).tolist() == torch.zeros(3, 3).tolist()
    singular = gaussian(6, 5) @ gaussian(5, 6, 1)  # the one direction that it lacks stays out
    u, _, vh = torch.linalg.svd(singular)
    torch.testing.assert_close(permuted._polar_by_products(singular), u[:, :5] @ vh[:5], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["orthogonal", "linear"])
def test_the_null_of_rank_deficient_tables_is_the_score_of_permuted_rows(kind):
    full, flat = gaussian(50, 5), torch.cat((gaussian(50, 3, 1), torch.ones(50, 2, dtype=torch.float64)), 1)
    for source, target in ((full, flat), (flat, full), (flat, flat)):
        generator = torch.Generator().manual_seed(2)
        scores = [align(source[torch.randperm(50, generator=generator)], target, kind) for _ in range(6)]
        null = module._Pair(source, target, kind).null(6, seed=2)
        assert null.tolist() == pytest.approx(scores, abs=1e-5)


def test_dealt_permutations_are_permutations_with_their_own_cross_products():
    source, target = gaussian(75, 5), gaussian(75, 3, 1)  # 16 blocks of 4 and 11 left over
    drawn = list(permuted._dealt(source, target, 30, torch.Generator().manual_seed(0)))
    assert len({tuple(t_rows.tolist()) for _, t_rows, _ in drawn}) == 30
    for s_rows, t_rows, cross in drawn:
        assert s_rows.sort().values.tolist() == t_rows.sort().values.tolist() == list(range(75))
        torch.testing.assert_close(cross, source[s_rows].T @ target[t_rows])


@pytest.mark.parametrize("kind", ["orthogonal", "linear"])
def test_the_null_of_dealt_blocks_is_that_of_whole_permutations(kind, monkeypatch):
    # Uneven norms and spectra. 300 scores give a spread to 4 %; the draw of 500 of 600 tokens to score adds about 10 %.
    spectrum = torch.logspace(0, -1, 12)
    size = torch.logspace(0, 1, 600, dtype=torch.float64)[torch.randperm(600, generator=torch.Generator().manual_seed(5))]
    source, target = gaussian(600, 12) * spectrum * size[:, None] + 1, gaussian(600, 12, 1) * spectrum
    whole = module._Pair(source, target, kind).null(300, seed=0)
    monkeypatch.setattr(permuted, "_WHOLE", 500)
    for seed, memory in ((1, permuted._MEMORY), (2, 4 * 12 * 12 * 100)):  # in one deal; in three of 100 each
        monkeypatch.setattr(permuted, "_MEMORY", memory)
        dealt = module._Pair(source, target, kind).null(300, seed=seed)
        assert float(dealt.mean()) == pytest.approx(float(whole.mean()), abs=5 * float(whole.std()) / math.sqrt(300))
        assert 0.85 < float(dealt.std() / whole.std()) < 1.3


def test_uneven_norms_lower_the_null_and_leave_corrected_and_held_out_at_zero():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.empty(2, 800, 1, dtype=torch.float64).log_normal_(0, 0.75, generator=generator)
    for kind in ("orthogonal", "linear"):
        result = alignment(gaussian(800, 16) * sizes[0], gaussian(800, 16, 1) * sizes[1], kind, permutations=60, bootstrap=50)
        assert result.chance_range.high < 0.95 * result.gaussian
        assert abs(result.corrected) < 0.04
        assert abs(result.held_out) < 0.04


@settings(deadline=None, max_examples=15)
@given(shapes, st.sampled_from(KINDS), st.sampled_from(DTYPES), st.booleans())
def test_every_shape_dtype_and_layout_gives_scores_in_range(shape, kind, dtype, transposed):
    d, V, seed = shape
    V += 2 * d  # enough for a linear fit to four fifths of the tokens
    source, target = gaussian(V, d, seed).to(dtype), gaussian(V, d, seed + 1).to(dtype)
    source[::5, 0], source[3], target[5] = 1, 0, target[4]  # repeated entries, a zero row, a repeated row
    if transposed:
        laid = source.T.contiguous().T, torch.stack((target, target), 2)[:, :, 0]
        assert d == 1 or not (laid[0].is_contiguous() or laid[1].is_contiguous())
    else:
        laid = source, target
    result = alignment(*laid, kind, permutations=4, bootstrap=10, seed=1)
    assert result.value == pytest.approx(align(source, target, kind), abs=1e-9)
    ranges = (*result.chance_range, *result.interval, *result.held_out_interval)
    for score in (result.value, result.held_out, result.chance, *ranges):
        assert -1 <= score <= 1 + 1e-12
    assert result.chance_range.low <= result.chance <= result.chance_range.high
    assert result.interval.low <= result.interval.high


@settings(deadline=None, max_examples=15)
@given(shapes, st.sampled_from(["orthogonal", "linear"]))
def test_value_and_held_out_are_blind_to_rotation_scale_shift_and_a_common_order(shape, kind):
    d, V, seed = shape
    V += 2 * d
    source, target = gaussian(V, d, seed), gaussian(V, d, seed + 1)
    order = torch.randperm(V, generator=torch.Generator().manual_seed(seed))
    expected = alignment(source, target, kind, permutations=2, bootstrap=2)
    turned = 1e3 * source @ rotation(d, seed) - 2, 1e-3 * target @ rotation(d, seed + 2) + 1
    moved = alignment(*turned, kind, permutations=2, bootstrap=2)
    assert (moved.value, moved.held_out) == pytest.approx((expected.value, expected.held_out), abs=1e-7)
    assert moved.chance == pytest.approx(expected.chance, abs=1e-4)
    assert alignment(source[order], target[order], kind, permutations=1, bootstrap=1).value == pytest.approx(expected.value)


def test_singular_sources_constant_tables_and_few_tokens():
    base, target = gaussian(60, 4), gaussian(60, 6, 1)
    wide = torch.cat((base, base[:, :1], torch.full_like(base[:, :1], 0.1)), 1)
    expected = alignment(base, target, "linear", permutations=8, bootstrap=20)
    result = alignment(wide, target, "linear", permutations=8, bootstrap=20)
    for name in ("value", "held_out", "chance", "corrected"):
        assert getattr(result, name) == pytest.approx(getattr(expected, name), abs=1e-5)
    flat = alignment(torch.ones(60, 6), target, "linear", permutations=3, bootstrap=3)
    assert (flat.value, flat.held_out, flat.chance, flat.corrected) == (0, 0, 0, 0)
    few = alignment(gaussian(4, 6), gaussian(4, 6, 1), "orthogonal", folds=2, permutations=3, bootstrap=3)  # V < d
    assert math.isnan(few.gaussian)
    assert 0 < few.value <= 1
    two = alignment(gaussian(2, 6), gaussian(2, 6, 1), "orthogonal", folds=2, permutations=3, bootstrap=3)
    assert two.value == pytest.approx(1)  # two centred rows always turn onto two others
    assert math.isnan(two.corrected)
    assert alignment(gaussian(4, 6), gaussian(4, 6, 1), "identity", folds=2, permutations=1, bootstrap=1).gaussian == 0


def test_extreme_scales_do_not_overflow_the_null():
    source, target = gaussian(60, 4), gaussian(60, 4, 1)
    for kind in KINDS:
        expected = chance(source, target, kind, permutations=3)
        result = chance(1e30 * source, 1e-30 * target, kind, permutations=3)
        assert dataclasses.astuple(result) == pytest.approx(dataclasses.astuple(expected), abs=1e-6)


def coverage(truth, intervals):
    return sum(low <= truth <= high for low, high in intervals) / len(intervals)


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_intervals_of_the_identity_cover_the_population_cosine(noise):
    def draw(V, seed):
        source = gaussian(V, 4, 2 * seed)
        return source, source + noise * gaussian(V, 4, 2 * seed + 1)

    truth = float(row_cosines(*draw(200_000, 9999)).mean())
    results = [alignment(*draw(150, s), "identity", permutations=1, bootstrap=500, seed=s) for s in range(600)]
    assert 0.92 <= coverage(truth, [result.interval for result in results]) <= 0.98
    assert 0.92 <= coverage(truth, [result.held_out_interval for result in results]) <= 0.98


@pytest.mark.parametrize("kind", ["orthogonal", "linear"])
def test_held_out_intervals_cover_the_population_cosine(kind):
    turn = rotation(3)

    def draw(V, seed):
        source = gaussian(V, 3, 2 * seed)
        return source, source @ turn + 0.5 * gaussian(V, 3, 2 * seed + 1)

    source, target = draw(200_000, 9999)
    truth = float(row_cosines(source @ turn, target).mean())  # by the best map, which 200 tokens all but find
    results = [alignment(*draw(200, s), kind, permutations=1, bootstrap=300, seed=s) for s in range(500)]
    assert 0.92 <= coverage(truth, [result.held_out_interval for result in results]) <= 0.98


@pytest.mark.parametrize("kind", ["orthogonal", "linear"])
def test_the_held_out_interval_of_unrelated_tables_is_too_narrow_as_documented(kind):
    pairs = ((gaussian(300, 12, 2 * seed), gaussian(300, 12, 2 * seed + 1)) for seed in range(150))
    results = [alignment(*pair, kind, permutations=1, bootstrap=200) for pair in pairs]
    assert abs(np.mean([result.held_out for result in results])) < 0.005
    assert 0.7 <= coverage(0, [result.held_out_interval for result in results]) <= 0.92


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 1}, "folds: from 2 to V = 30"),
        ({"folds": 31}, "no more folds than tokens"),
        ({"folds": 2.0}, "folds: an integer"),
        ({"permutations": 0}, "permutations: an integer of at least 1"),
        ({"bootstrap": 0}, "bootstrap: an integer of at least 1"),
        ({"seed": -1}, "seed: an integer of at least 0"),
        ({"seed": 0.5}, "seed: an integer of at least 0"),
        ({"seed": True}, "seed: an integer of at least 0"),
        ({"source": torch.randn(30, 28)}, "folds: 5 folds of V = 30 tokens leave 24 to fit.*d = 28.*more folds"),
    ],
)
def test_bad_arguments_of_alignment_are_named(changes, message):
    arguments = {"source": gaussian(30, 4), "target": gaussian(30, 4, 1), "kind": "linear", "permutations": 1, **changes}
    with pytest.raises(ValueError, match=message):
        alignment(**arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_a_cuda_device_gives_the_same(kind, monkeypatch):
    monkeypatch.setattr(permuted, "_WHOLE", 500)
    source, target = gaussian(600, 8), gaussian(600, 8, 1)
    expected = dataclasses.astuple(alignment(source, target, kind, permutations=20, bootstrap=20))
    result = dataclasses.astuple(alignment(source.cuda(), target.cuda(), kind, permutations=20, bootstrap=20))
    assert all(a == pytest.approx(b, abs=1e-5) for a, b in zip(expected, result, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "value"), [("orthogonal", 0.171), ("linear", 0.202)])
def test_independent_tables_at_the_paper_s_size(kind, value):
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, 50_280, 2_048, generator=generator)
    result = alignment(source, target, kind, permutations=3)
    assert result.value == pytest.approx(value, abs=0.002)
    assert result.gaussian == pytest.approx(value, abs=0.001)
    assert abs(result.corrected) < 0.01
    assert abs(result.held_out) < 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("units", [(1e160, 1e160), (1e300, 1.0), (1e-170, 1e-170), (1e-300, 1e300), (1.0, 1e-308)])
def test_units_whose_squares_fit_no_float64_change_nothing(kind, units):
    source, target = gaussian(80, 4).double(), gaussian(80, 4, 1).double() + gaussian(80, 4).double()
    one, other = (
        alignment(source, target, kind, permutations=3),
        alignment(source * units[0], target * units[1], kind, permutations=3),
    )
    for name in ("value", "held_out", "chance", "corrected"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), abs=1e-6)
    for plain, large, unit in zip(
        fit(source, target, kind), fit(source * units[0], target * units[1], kind), units, strict=True
    ):
        unit = units[1] if kind == "linear" else unit
        assert torch.allclose(large / unit, plain, rtol=1e-6)
    source[3] *= 1e-200  # a row may be far smaller than its table
    assert row_cosines(source, target)[3] == pytest.approx(float(row_cosines(gaussian(80, 4), target.float())[3]), abs=1e-6)


@pytest.mark.parametrize("scores", [("x", 0.1), (0.1, "x"), (None, 0.1), (0.1, True), (0.1, math.nan), (math.inf, 0.1)])
def test_scores_that_are_no_numbers_are_named(scores):
    with pytest.raises(ValueError, match="^(value|chance): a finite number is needed"):
        corrected(*scores)
    assert math.isnan(corrected(math.nan, 0.1))
