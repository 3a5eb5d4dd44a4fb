"""Measures on tables that lose digits, against the same formulas with fifty digits (mpmath) or in float64.

A condition number of 1e8 in directions that no column shows; one direction that holds 83 % of the energy, as in GPT-Neo's
table; zero rows; duplicate rows; a large common offset.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mpmath import mp, mpf
from naive import gaussian, held_out
from torch import Tensor

from tying_utils.measures.alignment import Kind, align, alignment, chance, token_cosines
from tying_utils.measures.frequency import norm_by_frequency
from tying_utils.measures.neighbors import nearest, overlap
from tying_utils.measures.spectral import spectral_distance
from tying_utils.measures.statistics import mean_interval, slope

V, D = 36, 4
KINDS: list[Kind] = ["identity", "orthogonal", "linear"]


def basis(rows: int, columns: int, seed: int) -> Tensor:
    return torch.linalg.qr(gaussian(rows, columns, seed)).Q


def stretched(condition: float) -> tuple[Tensor, Tensor]:
    """A source of that condition number in turned axes, and a target that depends on all of them alike."""
    u = basis(V, D, 0)
    sizes = torch.logspace(0, -math.log10(condition), D, dtype=torch.float64)
    return u * sizes @ basis(D, D, 1).T, u @ basis(D, D, 2) + 0.05 * gaussian(V, D, 3)


def lopsided() -> tuple[Tensor, Tensor]:
    """Tables whose first singular direction holds 83 % of the sum of squares, before and after centring."""
    tables = []
    for seed in (0, 1):
        u, _, v = torch.linalg.svd(gaussian(V, D, seed) - gaussian(V, D, seed).mean(0), full_matrices=False)
        sizes = torch.tensor([0.83, 0.08, 0.05, 0.04], dtype=torch.float64).sqrt()
        tables.append(u * sizes @ v)
    return tables[0], tables[1] + 0.4 * tables[0]


def with_zero_rows() -> tuple[Tensor, Tensor]:
    source, target = gaussian(V, D, 4), gaussian(V, D, 5)
    source[::7], target[3] = 0, 0
    return source, target


def with_duplicates() -> tuple[Tensor, Tensor]:
    source, target = gaussian(V, D, 6), gaussian(V, D, 7)
    source[V // 2 :], target[V // 2 :] = source[: V // 2], target[: V // 2]
    return source, target


def far_off() -> tuple[Tensor, Tensor]:
    """What varies is a hundred-millionth of what does not."""
    return gaussian(V, D, 8) + 1e8, gaussian(V, D, 9) - 1e8


TABLES: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "condition 1e8": lambda: stretched(1e8),
    "83 % in one direction": lopsided,
    "zero rows": with_zero_rows,
    "duplicate rows": with_duplicates,
    "far from the origin": far_off,
}
ill = pytest.mark.parametrize("name", TABLES)


def exact(table: Tensor) -> Any:
    return mp.matrix(table.double().tolist())


def exactly(source: Tensor, target: Tensor, kind: Kind) -> list[Any]:
    """Row cosines of `align` by their definition, with fifty digits."""
    with mp.workdps(50):
        s, t = exact(source), exact(target)
        if kind != "identity":
            for table in (s, t):
                for column in range(table.cols):
                    mean = mp.fsum(table[:, column]) / table.rows
                    for row in range(table.rows):
                        table[row, column] -= mean
        if kind == "orthogonal":
            u, _, v = mp.svd_r(s.T * t)
            s = s * (u * v)
        elif kind == "linear":
            s = s * ((s.T * s) ** -1 * (s.T * t))
        cosines = []
        for row in range(s.rows):
            one, other = list(s[row, :]), list(t[row, :])
            sizes = mp.norm(one) * mp.norm(other)
            cosines.append(mp.fdot(one, other) / sizes if sizes else mpf(0))
        return cosines


def test_the_tables_are_as_ill_as_they_say():
    values = torch.linalg.svdvals(stretched(1e8)[0])
    assert float(values[0] / values[-1]) == pytest.approx(1e8, rel=1e-3)
    squares = torch.linalg.svdvals(lopsided()[0] - lopsided()[0].mean(0)).square()
    assert float(squares[0] / squares.sum()) == pytest.approx(0.83, abs=0.005)


@pytest.mark.parametrize("kind", KINDS)
@ill
def test_alignment_has_ten_digits(name, kind):
    source, target = TABLES[name]()
    expected = [float(value) for value in exactly(source, target, kind)]
    # Centring a table that is 1e8 away costs eight digits before there is a measure: what is left of sixteen is eight.
    tolerance = 1e-6 if name == "far from the origin" else 1e-8
    np.testing.assert_allclose(token_cosines(source, target, kind), expected, atol=tolerance, rtol=0)
    assert align(source, target, kind) == pytest.approx(np.mean(expected), abs=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["83 % in one direction", "zero rows", "duplicate rows"])
def test_what_is_stored_in_few_digits_is_computed_in_many(name, kind, dtype):
    source, target = (table.to(dtype) for table in TABLES[name]())
    assert align(source, target, kind) == pytest.approx(float(mp.fsum(exactly(source, target, kind)) / V), abs=1e-9)


@pytest.mark.parametrize("kind", ["orthogonal", "linear"])
@ill
def test_held_out_scores_are_those_of_fits_made_anew_in_float64(name, kind):
    source, target = TABLES[name]()
    score = alignment(source, target, kind, permutations=2, bootstrap=2)
    assert score.held_out == pytest.approx(held_out(source, target, kind, rcond=1e-13), abs=1e-6)


def test_a_column_that_varies_in_held_out_rows_alone_is_none():
    """What rounding leaves of a large constant is no direction to fit to."""
    column = torch.full((V, 1), 1e8, dtype=torch.float64)
    column[5] += 1
    source, target = torch.cat((gaussian(V, D, 10), column), 1), gaussian(V, D, 11)
    score = alignment(source, target, "linear", permutations=2, bootstrap=2)
    assert score.held_out == pytest.approx(held_out(source, target, "linear", rcond=1e-13, odd=5), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@ill
def test_the_null_in_float32_is_good_to_its_1e_4(name, kind):
    source, target = TABLES[name]()
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(V, generator=generator) for _ in range(3)]
    expected = np.mean([float(mp.fsum(exactly(source[order], target, kind)) / V) for order in orders])
    assert chance(source, target, kind, permutations=3).mean == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("condition", [1e9, 1e12])
def test_what_lies_below_the_stated_limit_counts_as_no_direction(condition):
    source, target = stretched(10 * condition)
    u, sizes, v = torch.linalg.svd(source - source.mean(0), full_matrices=False)
    kept = sizes > 1e-9 * sizes[0]
    assert 0 < int(kept.sum()) < D
    without = u[:, kept] * sizes[kept] @ v[kept]
    assert align(source, target, "linear") == pytest.approx(align(without, target, "linear"), abs=1e-5)


@ill
def test_neighbours_in_float64_are_the_nearest_with_fifty_digits(name):
    table = TABLES[name]()[0]
    with mp.workdps(50):
        rows = [list(exact(table)[row, :]) for row in range(V)]
        sizes = [mp.norm(row) or mpf(1) for row in rows]
        cosines = [[mp.fdot(a, b) / sizes[i] / sizes[j] for j, b in enumerate(rows)] for i, a in enumerate(rows)]
    for row, found in enumerate(nearest(table, 5).tolist()):
        assert row not in found and len(set(found)) == 5
        best = sorted((cosines[row][other] for other in range(V) if other != row), reverse=True)[:5]
        # Of equal neighbours, as of duplicates, either will do: their cosines are what is compared.
        assert [float(cosines[row][other]) for other in found] == pytest.approx([float(value) for value in best], abs=1e-12)


@pytest.mark.parametrize("name", ["83 % in one direction", "condition 1e8"])
def test_neighbours_in_float32_are_nearly_those_in_float64(name):
    """One large direction leaves cosines apart by more than float32's last digit."""
    tables = TABLES[name]()
    single = tuple(table.float() for table in tables)
    assert overlap(tables[0], tables[0].float(), 5, permutations=1, bootstrap=2).value > 0.97
    assert spectral_distance(*single, k=5, components=8) == pytest.approx(
        spectral_distance(*tables, k=5, components=8), abs=0.05
    )


@ill
def test_norms_are_those_of_fifty_digits(name):
    table = TABLES[name]()[0]
    with mp.workdps(50):
        expected = [float(mp.norm(list(exact(table)[row, :]))) for row in range(V)]
    frame = norm_by_frequency(table, range(V))
    assert frame["norm"].dtype == np.float64
    assert frame["norm"].tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("offset", [0.0, 1e6, -1e8])
def test_intervals_and_slopes_of_values_with_a_large_common_part(offset):
    values, across = (gaussian(9, 1, seed).flatten().numpy() for seed in (0, 1))
    with mp.workdps(50):
        x, y = [mpf(float(v)) + mpf(offset) for v in across], [mpf(float(v)) for v in values]
        held = [float(v) for v in x]  # what float64 holds of them
        x = [mpf(v) for v in held]
        mean = mp.fsum(x) / 9
        spread = mp.sqrt(mp.fsum((v - mean) ** 2 for v in x) / 8)
        rise = mp.fsum((a - mean) * b for a, b in zip(x, y, strict=True)) / (8 * spread**2)
    interval = mean_interval(held)
    assert interval.mean == pytest.approx(float(mean), rel=1e-15, abs=1e-15)
    assert interval.high - interval.low == pytest.approx(2 * 2.3060041350333704 * float(spread) / 3, rel=1e-7)
    assert slope(held, values) == pytest.approx(float(rise), rel=1e-7)
