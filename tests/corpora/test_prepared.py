"""Prepared shards as a corpus: opened where they lie, verified, keyed by their tokens, trained on."""

import os

import numpy as np
import pytest
from corpora_helpers import FILES, SIZES, load_shards, shard_tokens, sizes

from tying_utils import training
from tying_utils.base import files
from tying_utils.corpora import store, texts
from tying_utils.corpora.corpus import Shards
from tying_utils.corpora.token_shards import prepare
from tying_utils.study.plan import plan
from tying_utils.training import run_store
from tying_utils.training.config import TrainConfig

pytestmark = pytest.mark.usefixtures("places_of_its_own")


def test_shards_are_mapped_not_read(whole):
    corpus = load_shards(whole)
    assert isinstance(corpus.train, Shards) and all(isinstance(part, np.memmap) for part in corpus.train._parts)
    assert isinstance(corpus.validation, np.memmap) and not corpus.validation.flags.writeable
    assert corpus.train.dtype == corpus.validation.dtype == np.uint16
    assert np.array_equal(corpus.train, np.concatenate(shard_tokens(whole)[1:]))


def test_the_fingerprint_is_of_the_tokens_not_of_their_place(tmp_path, whole, source):
    fingerprint = load_shards(whole).fingerprint
    assert set(fingerprint) == {"name", "tokens", "sha256", "vocab_size"}
    assert (fingerprint["name"], fingerprint["vocab_size"]) == ("shards", 300)
    assert fingerprint["tokens"] == len(load_shards(whole).train)
    prepare(tmp_path / "there", source, **SIZES)
    assert load_shards(tmp_path / "there").fingerprint == fingerprint
    here, there = (TrainConfig(corpus="shards", path=str(path), vocab_size=300) for path in (whole, tmp_path / "there"))
    assert run_store.run_key(here, fingerprint) == run_store.run_key(there, fingerprint)
    prepare(tmp_path / "fewer", source, tokens=8000, **SIZES)
    assert load_shards(tmp_path / "fewer").fingerprint["sha256"] != fingerprint["sha256"]


def test_checksums_are_verified_once_and_after_a_change(tmp_path, source, monkeypatch):
    out = tmp_path / "out"
    prepare(out, source, **SIZES)
    read, digest = [], files.digest
    monkeypatch.setattr(files, "digest", lambda path: read.append(path.name) or digest(path))
    for expected in (FILES, []):
        load_shards(out)
        assert [name for name in read if name != "tokenizer.json"] == expected
        read.clear()
    os.utime(out / FILES[3], ns=(0, 0))
    load_shards(out)
    assert [name for name in read if name != "tokenizer.json"] == [FILES[3]]
    content = (out / FILES[3]).read_bytes()
    (out / FILES[3]).write_bytes(content[:-1] + b"\xff")
    said = rf"^path: {FILES[3]} in .*out: missing or not as corpus.json says; `tying-utils prepare"
    with pytest.raises(ValueError, match=said):
        load_shards(out)


def test_a_folder_that_does_not_serve_is_named_with_the_command(tmp_path, whole, text):
    with pytest.raises(ValueError, match=r"^path: .*none holds no prepared text.*`tying-utils prepare --out .*none --text SO"):
        load_shards(tmp_path / "none")
    with pytest.raises(ValueError, match=r"^path: .* holds no prepared text"):
        load_shards(store.load("text", vocab_size=300, path=text).folder)
    with pytest.raises(ValueError, match=r"^vocab_size: .* was prepared for 300 tokens, got 301; ask for 300"):
        load_shards(whole, 301)
    for path in (None, ""):
        with pytest.raises(ValueError, match=r"^path: the folder that `tying-utils prepare` wrote is needed, got"):
            store.load("shards", vocab_size=300, path=path)
    with pytest.raises(ValueError, match=r"^name: 'shards' is no text"):
        texts.documents("shards", whole)


def test_shards_are_read_in_the_tokens_that_they_were_prepared_with(whole, source, text, tmp_path):
    other = store.load("text", vocab_size=300, path=text)
    with pytest.raises(ValueError, match=r"^vocabulary: the shards in .* are no tokens of 'text'; prepare them with `--tok"):
        store.load("shards", vocab_size=300, path=whole, vocabulary=other)
    shards = load_shards(whole)
    assert store.load("shards", vocab_size=300, path=whole, vocabulary=shards).fingerprint == shards.fingerprint
    prepare(tmp_path / "known", source, **sizes(tokenizer=other.folder / "tokenizer.json"))
    known = store.load("shards", vocab_size=300, path=tmp_path / "known", vocabulary=other)
    assert known.fingerprint["vocabulary"] == other.fingerprint
    assert known.fingerprint["sha256"] != load_shards(tmp_path / "known").fingerprint["sha256"]


def test_a_run_on_shards_resumes_to_the_same_bytes(whole, tiny, tmp_path, monkeypatch, interrupted):
    config: TrainConfig = tiny(corpus="shards", path=str(whole), steps=12)
    assert plan(config, probe_steps=1).fits
    interrupted(config, 7)
    run = training.train(config, progress=False)
    monkeypatch.setenv("TYING_HOME", str(tmp_path / "other"))
    plain = training.train(config, progress=False)
    assert plain.folder != run.folder and plain.record["files"] == run.record["files"]
    assert run.fingerprint == load_shards(whole).fingerprint


def test_a_run_is_the_same_in_one_shard_and_in_many(whole, source, tiny, tmp_path):
    prepare(tmp_path / "one", source, **sizes(shard_tokens=10**6))
    assert isinstance(load_shards(tmp_path / "one").train, np.memmap)
    runs = [training.train(tiny(corpus="shards", path=str(path)), progress=False) for path in (whole, tmp_path / "one")]
    assert runs[0].record["files"] == runs[1].record["files"] and runs[0].key != runs[1].key
