"""Byte-level BPE: learned on a text, which it writes as tokens."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tying_utils.corpora import store


def test_a_vocabulary_beyond_the_text_is_named_and_the_advice_does(home, tmp_path):
    file = tmp_path / "short.txt"
    file.write_text("a short text\nof very few words\n" * 30, encoding="utf-8")
    with pytest.raises(ValueError, match=r"^vocab_size:.*fewer than 2048") as raised:
        store.load("text", vocab_size=2048, path=file)
    supported = re.search(r"supports (\d+)", str(raised.value))
    assert supported
    corpus = store.load("text", vocab_size=int(supported[1]), path=file)
    assert corpus.tokenizer.get_vocab_size() == corpus.vocab_size


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_every_token_fits_its_dtype(home, text, monkeypatch, vocab_size, dtype):
    import tokenizers

    class Encoding:
        def __init__(self, ids: list[int]) -> None:
            self.ids = ids

    class Large:
        """Stands for a tokenizer with as many tokens as asked for, which takes much text to train."""

        pre_tokenizer = decoder = None

        def __init__(self, model: Any) -> None: ...

        def train_from_iterator(self, texts: Any, trainer: Any) -> None: ...

        def get_vocab_size(self) -> int:
            return vocab_size

        def token_to_id(self, token: str) -> int:
            return 0

        def save(self, path: str) -> None:
            Path(path).write_text("{}", encoding="utf-8")

        def encode_batch_fast(self, texts: list[str]) -> list[Encoding]:
            return [Encoding([1, vocab_size - 1]) for _ in texts]

    monkeypatch.setattr(tokenizers, "Tokenizer", Large)
    for _ in range(2):  # made, then read from the cache
        corpus = store.load("text", vocab_size=vocab_size, path=text)
        assert corpus.train.dtype == dtype
        assert np.asarray(corpus.train).tolist() == [1, vocab_size - 1, 0]
