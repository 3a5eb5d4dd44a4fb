"""Texts and corpora that more than one file of tests reads. Not to be written to."""

import gzip
import json
from pathlib import Path

import pytest
from corpora_helpers import SIZES

from tying_utils.corpora import Corpus, store
from tying_utils.corpora.token_shards import prepare


@pytest.fixture(autouse=True)
def without_local_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TYING_TEXTS", raising=False)


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TYING_HOME", str(tmp_path_factory.mktemp("home")))
        return store.load("python", vocab_size=300)


@pytest.fixture
def places_of_its_own(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="session")
def documents(grammar) -> list[str]:
    return [grammar(3 + number % 7, seed=number) for number in range(90)]


@pytest.fixture(scope="session")
def source(documents, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The documents in two files."""
    folder = tmp_path_factory.mktemp("source")
    for name, part in (("a", documents[:50]), ("b", documents[50:])):
        with gzip.open(folder / f"{name}.json.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in part)
    return f"{folder}/*.json.gz"


@pytest.fixture(scope="session")
def whole(source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text prepared without an interruption."""
    folder = tmp_path_factory.mktemp("whole") / "shards"
    prepare(folder, source, **SIZES)
    return folder
