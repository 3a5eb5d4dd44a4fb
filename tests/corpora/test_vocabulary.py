import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_hub import LocalHub, pointing_at
from tokenizers import Tokenizer, models, pre_tokenizers

from tying_utils.corpora import vocabulary

TOKENS = {"Ġthe": 3, "Ġcat": 0, "s": 1, "<pad>": 4}


@pytest.fixture
def folder(tmp_path):
    own = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    own.add_special_tokens(["<end>"])
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    own.save(str(tmp_path / "model" / "tokenizer.json"))
    return tmp_path / "model"


def test_a_vocabulary_holds_added_tokens_and_comes_from_folder_and_hub_alike(folder, tmp_path):
    expected = {"a": 0, "b": 1, "c": 2, "<end>": 3}
    assert vocabulary.read(folder) == expected
    with LocalHub() as hub, pointing_at(hub, tmp_path / "cache"):
        hub.add("org/model", folder)
        assert vocabulary.read("org/model") == expected


def test_a_vocabulary_without_a_tokenizer_json(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="neither tokenizer.json nor vocab.json"):
        vocabulary.read(folder)
    with pytest.raises(ValueError, match="holds no tokenizer.json"):
        vocabulary.tokenizer(folder)
    (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    assert vocabulary.read(folder) == {"a": 0, "b": 1}
    (folder / "added_tokens.json").write_text(json.dumps({"<x>": 2}))
    assert vocabulary.read(folder) == {"a": 0, "b": 1, "<x>": 2}
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer.json is no tokenizer"):
        vocabulary.read(folder)


def test_padded_rows_are_no_tokens():
    assert vocabulary.real_rows(TOKENS, 8).tolist() == [0, 1, 3, 4]
    assert vocabulary.real_rows({}, 8).tolist() == []
    with pytest.raises(ValueError, match="token 4 has no row in a table of 4"):
        vocabulary.real_rows(TOKENS, 4)


def test_join_by_hand():
    other = {"<pad>": 0, "Ġdog": 1, "Ġthe": 2, "Ġcat": 5}
    rows, others = vocabulary.join(TOKENS, other)
    assert rows.tolist() == [0, 3, 4] and others.tolist() == [5, 2, 0]


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 999), min_size=1), st.randoms(use_true_random=False))
def test_join_matches_tokens_whatever_the_order(tokens, draw):
    a = {token: row for row, token in enumerate(tokens)}
    renamed = list(tokens)
    draw.shuffle(renamed)
    b = {token: row for row, token in enumerate(renamed)}
    rows, others = vocabulary.join(a, b)
    assert rows.tolist() == list(range(len(a)))
    strings = {row: token for token, row in b.items()}
    assert [strings[row] for row in others.tolist()] == list(a)
    back, forth = vocabulary.join(b, a)
    assert dict(zip(forth.tolist(), back.tolist(), strict=True)) == dict(zip(rows.tolist(), others.tolist(), strict=True))


def test_tokenizers_of_unlike_kinds_are_not_joined():
    with pytest.raises(ValueError, match="byte-level BPE and SentencePiece, whose strings do not compare"):
        vocabulary.join(TOKENS, {"▁the": 0, "s": 1})
    with pytest.raises(ValueError, match="WordPiece"):
        vocabulary.join({"##ing": 0, "s": 1}, TOKENS)
    with pytest.raises(ValueError, match="of 4 and 1 tokens none is in both"):
        vocabulary.join(TOKENS, {"x": 0})


def test_encode_joins_texts(folder):
    own = vocabulary.tokenizer(folder)
    assert vocabulary.encode(own, ["a b", "c", ""]).tolist() == [0, 1, 2]
    assert vocabulary.encode(own, []).dtype == np.int64
