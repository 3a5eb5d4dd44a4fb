import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tying_utils.measures.cooccurrence import lean, neighbours


def test_neighbours_by_hand():
    """0 1 0 1 2 0 1: six pairs; 0 stands first in three of them, always before 1, which stands second in three."""
    found = neighbours([0, 1, 0, 1, 2, 0, 1], 4)
    expected = torch.zeros(4, 4)
    expected[0, 1] = math.log(3 * 6 / (3 * 3))
    expected[1, 0] = math.log(1 * 6 / (2 * 2))
    expected[1, 2] = math.log(1 * 6 / (2 * 1))
    expected[2, 0] = math.log(1 * 6 / (1 * 2))
    torch.testing.assert_close(found.after, expected)
    torch.testing.assert_close(found.before, expected.T)


@given(st.integers(2, 9), st.integers(2, 200), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_a_text_read_backwards_swaps_before_and_after(vocab, length, seed):
    tokens = np.random.default_rng(seed).integers(0, vocab, length).astype(np.uint16)
    found, reverse = neighbours(tokens, vocab), neighbours(tokens[::-1], vocab)
    torch.testing.assert_close(found.before, reverse.after)
    assert bool((found.after >= 0).all()) and found.after.shape == (vocab, vocab)


def test_long_texts_are_counted_whole(monkeypatch):
    tokens = np.random.default_rng(0).integers(0, 5, 1000)
    whole = neighbours(tokens, 5)
    monkeypatch.setattr("tying_utils.measures.cooccurrence.AT_ONCE", 7)
    torch.testing.assert_close(neighbours(tokens, 5).after, whole.after)


@pytest.mark.parametrize(
    ("tokens", "size", "words"),
    [
        ([1], 4, "at least 2 integers"),
        ([[1, 2]], 4, "at least 2 integers"),
        ([0.5, 1.0], 4, "at least 2 integers"),
        ([0, 4], 4, "ids from 0 to 3 are needed, got 0 to 4"),
        ([-1, 2], 4, "ids from 0 to 3"),
        ([0, 1], 20_000, "at most 16,384"),
        ([0, 1], 0, "vocab_size"),
    ],
)
def test_bad_texts(tokens, size, words):
    with pytest.raises(ValueError, match=words):
        neighbours(tokens, size)


def test_a_table_leans_to_what_it_is_made_of():
    before, after = torch.randn(2, 200, 30, generator=torch.Generator().manual_seed(0))
    of_before, of_after = lean(before[:, :8], before, after), lean(after[:, :8], before, after)
    assert of_before.difference > 0.3 > -0.3 > of_after.difference
    assert of_before.before == pytest.approx(of_after.after, abs=0.1)
    both = lean(torch.cat((before, after), 1), before, after)
    assert both.before == pytest.approx(1) and both.after == pytest.approx(1)


def test_noise_tells_nothing_of_held_out_tokens():
    before, after, table = torch.randn(3, 500, 20, generator=torch.Generator().manual_seed(1))
    found = lean(table, before, after)
    assert abs(found.before) < 0.1 and abs(found.after) < 0.1


def test_lean_names_what_does_not_match():
    with pytest.raises(ValueError, match="V = 5 and V = 6"):
        lean(torch.randn(5, 1), torch.randn(6, 3), torch.randn(6, 3))
