"""A tokenised corpus: its tokens, counts and windows, in one array or in many."""

import numpy as np
import pytest
from corpora_helpers import shard_tokens
from hypothesis import given
from hypothesis import strategies as st

from tying_utils.corpora import corpus, store
from tying_utils.corpora.corpus import Shards


def test_tokens_are_mapped_not_read(python):
    assert isinstance(python.train, np.memmap) and isinstance(python.validation, np.memmap)
    assert python.train.dtype == python.validation.dtype == np.uint16
    assert not python.train.flags.writeable


def test_counts_are_of_the_training_part(python):
    assert python.counts.shape == (300,)
    assert python.counts.dtype == np.int64
    assert python.counts.sum() == len(python.train)
    for token in (0, 50, 299):
        assert python.counts[token] == (python.train == token).sum()


def test_counts_are_taken_piece_by_piece(whole, monkeypatch):
    monkeypatch.setattr(corpus, "_COUNTED", 777)
    counts = store.load("shards", vocab_size=300, path=whole).counts
    expected = np.bincount(np.concatenate(shard_tokens(whole)[1:]), minlength=300)
    assert counts.dtype == np.int64 and counts.tolist() == expected.tolist()


def test_windows_are_spread_and_do_not_overlap(home, text):
    corpus = store.load("text", vocab_size=300, path=text)
    for part, tokens in (("train", corpus.train), ("validation", corpus.validation)):
        windows = corpus.windows(part, 5, 17)
        assert windows.shape == (5, 17) and windows.dtype == np.int64
        whole = len(tokens) // 17
        starts = [round(i * (whole - 1) / 4) * 17 for i in range(5)]
        assert [row.tolist() for row in windows] == [tokens[s : s + 17].tolist() for s in starts]
        every = corpus.windows(part, 10**6, 17)
        assert every.flatten().tolist() == tokens[: whole * 17].tolist()


def test_windows_name_what_is_wrong(home, text):
    corpus = store.load("text", vocab_size=300, path=text)
    with pytest.raises(ValueError, match=r"^part:"):
        corpus.windows("test", 1, 1)
    with pytest.raises(ValueError, match=rf"^length:.*{len(corpus.validation)} tokens"):
        corpus.windows("validation", 1, len(corpus.validation) + 1)
    assert corpus.windows("validation", 9, len(corpus.validation)).shape == (1, len(corpus.validation))


@given(parts=st.lists(st.lists(st.integers(0, 99), max_size=5), min_size=1, max_size=6), data=st.data())
def test_shards_read_as_one_array(parts, data):
    arrays = [np.array(part, np.uint16) for part in parts]
    one, shards = np.concatenate(arrays), Shards(arrays)
    assert len(shards) == len(one) and shards.dtype == one.dtype
    bound = st.none() | st.integers(-len(one) - 3, len(one) + 3)
    at = slice(data.draw(bound), data.draw(bound))
    assert shards[at].dtype == one.dtype and shards[at].tolist() == one[at].tolist()
    assert np.asarray(shards).tolist() == one.tolist()
    for index in range(-len(one), len(one)):
        assert shards[index] == one[index]
    for beyond in (len(one), -len(one) - 1):
        with pytest.raises(IndexError):
            shards[beyond]
    with pytest.raises(ValueError, match=r"^step: .* got 2"):
        shards[::2]
