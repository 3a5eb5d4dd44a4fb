"""A file of every kind that is kept, damaged: named, set aside as it is, made again to the same bytes.

Here are tidy tables and their manifest, and the memory of verified shards. Runs are tested in test_run_store, tokens in
test_corpora and test_token_shards, cached tables of checkpoints in test_checkpoints, miniatures in test_public.
"""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tying_utils import corpora
from tying_utils.base import files
from tying_utils.base.table_store import TableStore
from tying_utils.corpora import token_shards

DAMAGES = ("flipped", "truncated", "emptied", "missing")
TABLE = pd.DataFrame({"arm": ["tied", "untied"], "value": [0.125, -1e-9]})


def written(folder: Path) -> TableStore:
    store = TableStore(folder)
    store.write("losses", TABLE, {"format": 1}, device="cpu", seconds=1.0)
    store.write("other", TABLE, {"format": 1}, device="cpu", seconds=1.0)
    return store


def read(store: TableStore, *, keep: bool) -> Any:
    found = store.read("losses", lambda entry: entry["format"] == 1, keep=keep)
    return None if found is None else found[0]


def told(recwarn: pytest.WarningsRecorder) -> list[str]:
    return [str(warning.message) for warning in recwarn.list if issubclass(warning.category, UserWarning)]


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["losses.csv", "manifest.json"])
def test_a_damaged_table_or_manifest_is_set_aside_and_written_again(tmp_path, name, how, damaging, recwarn):
    store = written(tmp_path)
    whole = (tmp_path / "losses.csv").read_bytes()
    damaged = damaging(tmp_path / name, how)
    assert read(store, keep=False) is None
    asides = list(tmp_path.glob("*.damaged-*"))
    assert {path.name: path.read_bytes() for path in asides} == ({} if how == "missing" else {f"{name}.damaged-1": damaged})
    if (name, how) != ("manifest.json", "missing"):
        assert [str(tmp_path / name) in words for words in told(recwarn)] == [True]
    written(tmp_path)
    pd.testing.assert_frame_equal(read(store, keep=False), TABLE)
    assert (tmp_path / "losses.csv").read_bytes() == whole
    assert all(path.read_bytes() == damaged for path in asides)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["losses.csv", "manifest.json"])
def test_who_only_reads_moves_nothing_and_is_given_nothing_damaged(tmp_path, name, how, damaging, recwarn):
    store = written(tmp_path)
    damaging(tmp_path / name, how)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert read(store, keep=True) is None
    assert store.manifest is None or name != "manifest.json"
    assert store.checksums is not None
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert told(recwarn) == []


def test_a_table_is_not_taken_for_another(tmp_path):
    """A whole file in another's place has the wrong checksum."""
    store = written(tmp_path)
    store.write("other", TABLE.assign(value=0.0), {"format": 1}, device="cpu", seconds=1.0)
    (tmp_path / "losses.csv").write_bytes((tmp_path / "other.csv").read_bytes())
    with pytest.warns(UserWarning, match=r"losses\.csv: it is missing or does not match its checksum; it is kept as losses"):
        assert read(store, keep=False) is None


def test_what_a_killed_process_left_half_written_goes_with_the_next_writing(tmp_path, home, text):
    store = written(tmp_path / "tables")
    folder = corpora.load("text", vocab_size=300, path=text).folder
    for place in (store.folder, folder):
        (place / ".losses.csv.abcdef.tmp").write_text("half")
    mine = store.folder / "mine" / ".notes.tmp"
    files.write_with(mine, lambda path: path.write_text("not of this store"))
    written(store.folder)
    corpora.load("text", vocab_size=300, path=text)
    assert list(tmp_path.rglob("*.tmp")) == [mine]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_memory_of_verified_shards_is_made_again_from_the_shards(tmp_path, home, text, monkeypatch, how, damaging):
    out = tmp_path / "out"
    sizes: dict[str, Any] = {"vocab_size": 300, "shard_tokens": 4000, "validation_tokens": 500, "progress": False}
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(files.json.dumps({"text": line}) + "\n" for line in text.read_text().splitlines()))
    token_shards.prepare(out, str(lines), **sizes)
    corpora.load("shards", vocab_size=300, path=out)
    (memory,) = (home / "data" / "corpora").glob("shards-*.json")
    known = files.read_json(memory)
    damaged, verified, digest = damaging(memory, how), [], files.digest
    monkeypatch.setattr(files, "digest", lambda path: verified.append(path.name) or digest(path))
    if how == "missing":
        corpora.load("shards", vocab_size=300, path=out)
    else:
        with pytest.warns(UserWarning, match=re.escape(str(memory))):
            corpora.load("shards", vocab_size=300, path=out)
        assert memory.with_name(f"{memory.name}.damaged-1").read_bytes() == damaged
    assert len([name for name in verified if name.endswith(".bin")]) == len(list(out.glob("*.bin"))), "all are read again"
    assert files.read_json(memory) == known
