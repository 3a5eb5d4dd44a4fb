import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tying_utils.measures.alignment import align
from tying_utils.measures.frequency import binned, count_table, norm_by_frequency, spearman, without_frequency

TABLE = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, pd.Series])
def test_norm_by_frequency_by_hand(kind):
    frame = norm_by_frequency(TABLE.bfloat16(), kind([9, 0, 99]))
    assert list(frame.columns) == ["token", "count", "log10_count", "norm"]
    assert frame["token"].tolist() == [0, 1, 2]
    assert frame["count"].tolist() == [9, 0, 99]
    assert frame["log10_count"].tolist() == pytest.approx([1, 0, 2])
    assert frame["norm"].tolist() == [5, 0, 1]


@pytest.mark.parametrize("counts", [[1, 2], [[1, 2, 3]], [1.0, 2.0, 3.0], [True, False, True], [1, -1, 2]])
def test_bad_counts(counts):
    with pytest.raises(ValueError, match="counts"):
        norm_by_frequency(TABLE, counts)


def test_spearman_is_over_seen_tokens_only():
    table = torch.tensor([[100.0], [1.0], [2.0], [30.0]])
    assert spearman(norm_by_frequency(table, [0, 1, 2, 3])) == pytest.approx(1)
    assert spearman(norm_by_frequency(table, [0, 3, 2, 1])) == pytest.approx(-1)
    assert spearman(norm_by_frequency(table, [4, 1, 2, 3])) == pytest.approx(1)
    assert spearman(norm_by_frequency(table, [1, 2, 3, 4])) == pytest.approx(-0.2)


def test_spearman_without_an_answer():
    assert math.isnan(spearman(norm_by_frequency(TABLE, [5, 5, 5])))
    assert math.isnan(spearman(norm_by_frequency(torch.ones(3, 2), [1, 2, 3])))
    with pytest.raises(ValueError, match="at least 2 tokens"):
        spearman(norm_by_frequency(TABLE, [0, 0, 7]))


def test_binned_by_hand():
    table = torch.tensor([[1.0], [3.0], [7.0]])
    frame = binned(norm_by_frequency(table, [0, 0, 9]), bins=2)  # edges 0, 0.5, 1
    assert list(frame.columns) == ["log10_count", "norm_mean", "norm_std", "tokens"]
    assert frame["log10_count"].tolist() == [0.25, 0.75]
    assert frame["norm_mean"].tolist() == [2, 7]
    assert frame["norm_std"].tolist() == [1, 0]
    assert frame["tokens"].tolist() == [2, 1]
    assert binned(norm_by_frequency(table, [0, 0, 9]), bins=5)["tokens"].tolist() == [2, 1]  # empty bins are left out


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=40), st.integers(1, 15))
def test_bins_hold_every_token_once(counts, bins):
    norms = torch.arange(1, len(counts) + 1, dtype=torch.float64)
    frame = binned(norm_by_frequency(norms[:, None], counts), bins)
    assert sum(frame["tokens"].tolist()) == len(counts)
    assert len(frame) <= bins
    assert np.average(frame["norm_mean"], weights=frame["tokens"]) == pytest.approx(float(norms.mean()))
    assert frame["log10_count"].tolist() == sorted(frame["log10_count"])
    assert np.isfinite(frame["norm_std"].to_numpy()).all()


def test_bad_bins():
    with pytest.raises(ValueError, match="bins"):
        binned(norm_by_frequency(TABLE, [1, 2, 3]), bins=0)


def test_a_count_table_is_one_direction():
    table = count_table([0, 1, 7], 3)
    assert table.tolist() == [[0, 0, 0], [math.log(2), 0, 0], [math.log(8), 0, 0]]
    with pytest.raises(ValueError, match="d: an integer of at least 1"):
        count_table([1, 2], 0)
    for empty in ([], np.zeros(0, dtype=int)):
        with pytest.raises(ValueError, match=r"counts: one count a row is needed, shape \(V,\), got shape \(0,\)"):
            count_table(empty, 4)
    with pytest.raises(ValueError, match=r"counts: one count a row is needed, shape \(V,\)"):
        count_table([[1, 2]], 2)


def test_what_counts_explain_is_taken_away_and_the_rest_stays():
    draw = np.random.default_rng(0)
    counts = draw.integers(0, 5000, 400)
    logs = torch.from_numpy(np.log1p(counts))
    cubic = torch.stack((logs, logs**2, 1 + logs**3), 1)
    rest = torch.from_numpy(draw.normal(size=(400, 3)))
    assert without_frequency(cubic, counts).abs().max() < 1e-8 * cubic.abs().max()
    torch.testing.assert_close(without_frequency(cubic + rest, counts), without_frequency(rest, counts))
    assert align(without_frequency(cubic + rest, counts), rest, "identity") > 0.97  # four terms of 400 tokens


def test_a_row_takes_nothing_of_itself_away():
    """The prediction for a token comes from the others: one that stands out keeps all that it stands out by."""
    table = torch.zeros(50, 2)
    table[7] = 5.0
    left = without_frequency(table, np.arange(50))
    assert left[7].tolist() == [5, 5]
    alike = without_frequency(torch.randn(20, 2), np.full(20, 3))  # no count tells tokens apart: means alone are taken away
    assert torch.isfinite(alike).all()


@pytest.mark.parametrize("folds", [0, 1, 4])
def test_folds_that_cannot_be(folds):
    with pytest.raises(ValueError, match="folds"):
        without_frequency(TABLE, [1, 2, 3], folds=folds)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32"])
def test_counts_of_any_integers_are_the_same_counts(kind):
    counts = np.arange(40) % 90
    table = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    for measure in (lambda given: count_table(given, 3), lambda given: without_frequency(table, given)):
        assert torch.equal(measure(counts.astype(kind)), measure(counts))


@pytest.mark.parametrize("seed", [None, "x", -1, True])
def test_a_seed_of_folds_is_an_integer(seed):
    with pytest.raises(ValueError, match="^seed: an integer"):
        without_frequency(torch.eye(4), [1, 2, 3, 4], folds=2, seed=seed)
