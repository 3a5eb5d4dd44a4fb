"""The small pair: one text and order of batches, rows by their word, and scales that change the tied model alone."""

from pathlib import Path

import numpy as np
import pytest

from tying_utils.measures.neighbors import nearest
from tying_utils.study.small import Small, small

TINY = {"vocab_size": 384, "d_model": 16, "n_layers": 1, "context": 16, "batch_size": 2, "steps": 4, "warmup_steps": 1}


@pytest.fixture(scope="module")
def pair(smoke_home: Path) -> Small:
    return small(progress=False, **TINY)


def test_the_models_differ_in_the_tie_and_the_start_alone(pair: Small) -> None:
    untied, tied = pair.untied.config, pair.tied.config
    assert not untied.tied and tied.tied and untied.init_seed != tied.init_seed
    assert untied.replace(tied=True, init_seed=tied.init_seed) == tied
    assert {name: len(table) for name, table in pair.tables.items()} == dict.fromkeys("EUW", len(pair.used))


def test_a_row_is_that_of_its_word(pair: Small) -> None:
    token = int(pair.used[-1])
    word = pair.words([token])[0]
    assert pair.token(word) == token and pair.row(word) == len(pair.used) - 1
    assert np.array_equal(pair.tables["U"][pair.row(word)], pair.untied.tables().output[token])
    near = pair.nearest(word, 3)
    assert [*near] == ["E", "U", "W"] and [*near.index] == [1, 2, 3]
    assert near["W"].tolist() == [repr(own) for own in pair.words(pair.used[nearest(pair.tables["W"], 3)[-1]])]


def test_a_text_of_several_tokens_is_refused(pair: Small) -> None:
    with pytest.raises(ValueError, match=r"word: one token.*'zqzq'"):
        pair.row("zqzq")


def test_a_token_that_never_occurs_is_refused(pair: Small) -> None:
    unused = sorted(set(range(384)) - set(pair.used.tolist()))
    known = [word for word in pair.words(unused) if len(pair.corpus.tokenizer.encode(word).ids) == 1]
    assert known
    with pytest.raises(ValueError, match="word: a token that occurs"):
        pair.row(known[0])


def test_a_scale_changes_the_tied_model_alone(pair: Small) -> None:
    scaled = small(progress=False, **TINY, input_scale=5)
    assert scaled.untied.key == pair.untied.key and scaled.tied.config.input_scale == 5
    assert not np.array_equal(scaled.tables["W"], pair.tables["W"])
