"""Every kind of damage to the files of every store: named, set aside as it is, made again to the same bytes.

The cached tables of public checkpoints are damaged in tests/models/test_checkpoints.py, through a hub.
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tying_utils import corpora, training
from tying_utils.base import files
from tying_utils.base.table_store import TableStore
from tying_utils.corpora import token_shards, two_role
from tying_utils.models.families import MODELS
from tying_utils.study import miniatures
from tying_utils.training import run_store

DAMAGES = ("flipped", "truncated", "emptied", "missing")
TABLE = pd.DataFrame({"arm": ["tied", "untied"], "value": [0.125, -1e-9]})
CORPUS = ("corpus.json", "tokenizer.json", "train.bin", "validation.bin")
# Of each store the files that are damaged; the first is its record.
STORES: dict[str, tuple[str, ...]] = {
    "run": (
        *("run.json", "metrics-000012.parquet", "tables/step-000000.safetensors", "tables/step-000012.safetensors"),
        *("weights/step-000005.safetensors", "model/model.safetensors", "model/config.json", "model/generation_config.json"),
    ),
    "unfinished run": ("run.json", "resume-000005.safetensors", "metrics-000005.parquet", "weights/step-000005.safetensors"),
    "text": CORPUS,
    "two-role": CORPUS,
    "shards": ("corpus.json", "tokenizer.json", "validation.bin", "train-00000.bin", "train-00001.bin", "train-00004.bin"),
    "tables": ("manifest.json", "losses.csv"),
    "miniature": ("record.json", "model.safetensors", "tokenizer.json"),
}
CASES = [
    (kind, name, how)
    for kind, names in STORES.items()
    for name in names
    for how in (("flipped", "missing") if kind == "unfinished run" else DAMAGES)
]


@dataclass
class Store:
    """What `make` finds, or makes where it is missing or damaged; `found` finds it or returns None."""

    folder: Path
    make: Callable[[], Any]
    found: Callable[[], Any] | None = None
    look: Callable[[], Any] | None = None  # as `found`, for a caller who only reads
    refusal: str = ""  # what `look` raises where it does not return None: a pattern, with {name} the damaged file
    timed: str = ""  # the record where it says how long it took: it is not compared
    whole: dict[str, bytes] | None = None  # the contents that it comes to; None: those that `make` gives at once


def contents(folder: Path, timed: str = "") -> dict[str, bytes]:
    """The bytes of each file by its relative name, but for locks, the file `timed` and what was set aside."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    out = {".lock", timed}
    return {name: path.read_bytes() for name, path in found.items() if path.name not in out and ".damaged-" not in name}


def stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def told(recwarn: pytest.WarningsRecorder) -> list[str]:
    return [str(warning.message) for warning in recwarn.list if issubclass(warning.category, UserWarning)]


def run(config: Any, home: Path, trained_once: Any) -> Store:
    whole = trained_once(config)
    shutil.copytree(whole.folder.parents[2], home, dirs_exist_ok=True)

    def found() -> Any:
        kept = run_store.find(config, whole.fingerprint)
        return kept and kept.record

    def make() -> Any:
        return training.train(config, progress=False).record

    folder = run_store.run_folder(config, whole.fingerprint)
    refusal = r"^folder: .*({name} in|no run.json, or a damaged one)"
    return Store(folder, make, found, lambda: run_store.opened(folder), refusal, timed="run.json")


def tables(folder: Path) -> TableStore:
    store = TableStore(folder)
    for name in ("losses", "other"):
        store.write(name, TABLE, {"format": 1}, device="cpu", seconds=1.0)
    return store


def table(store: TableStore, *, keep: bool) -> Any:
    found = store.read("losses", lambda entry: entry["format"] == 1, keep=keep)
    return None if found is None else found[0].to_csv()


@pytest.fixture
def shards(tmp_path: Path, home: Path, text: Path) -> tuple[Path, Callable[[], Any]]:
    """The folder of a prepared text, and what prepares it."""
    out, lines = tmp_path / "out", tmp_path / "lines.jsonl"
    lines.write_text("".join(files.json.dumps({"text": line}) + "\n" for line in text.read_text().splitlines()))
    sizes: dict[str, Any] = {"vocab_size": 300, "shard_tokens": 5000, "validation_tokens": 500, "progress": False}
    return out, lambda: token_shards.prepare(out, str(lines), **sizes)


@pytest.fixture
def opened(home: Path, text: Path, tiny, trained_once, interrupted, shards, monkeypatch) -> Callable[[str], Store]:
    """The store of a kind, whole."""

    def of(kind: str) -> Store:
        if kind == "run":
            return run(tiny(), home, trained_once)
        if kind == "unfinished run":
            whole = trained_once(tiny())
            interrupted(tiny(), 7)
            assert run_store.find(tiny(), whole.fingerprint) is None
            folder = run_store.run_folder(tiny(), whole.fingerprint)
            return Store(
                folder,
                lambda: training.train(tiny(), progress=False),
                timed="run.json",
                whole=contents(whole.folder, "run.json"),
            )
        if kind == "miniature":
            model = MODELS["GPT-Neo-2.7B"]
            config = tiny(arch=model.arch, tied=model.tied)
            run(config, home, trained_once)
            monkeypatch.setattr(miniatures, "config", lambda *_: config)
            make = lambda: miniatures.folders([model], "smoke", progress=False)[model.name]  # noqa: E731
            return Store(make(), make)
        if kind == "tables":
            store = tables(home / "tables")
            make = lambda: table(store, keep=False) or table(tables(home / "tables"), keep=False)  # noqa: E731
            return Store(store.folder, make, look=lambda: table(store, keep=True), timed="manifest.json")
        if kind == "shards":
            out, make = shards
            make()
            look = lambda: corpora.load("shards", vocab_size=300, path=out)  # noqa: E731
            return Store(out, make, look=look, refusal="^path: .*({name}|holds no prepared text).*tying-utils prepare")
        options: dict[str, Any] = {"path": text} if kind == "text" else {"language": two_role.Settings(length=2000, seed=5)}
        make = lambda: corpora.load(kind, vocab_size=300 if kind == "text" else 64, **options).folder  # noqa: E731
        return Store(make(), make)

    return of


@pytest.mark.parametrize(("kind", "name", "how"), CASES, ids=lambda value: str(value).replace("/", ":"))
def test_a_damaged_file_is_named_set_aside_and_made_again(opened, kind, name, how, damaging, recwarn):
    store, record = opened(kind), STORES[kind][0]
    whole = store.whole or contents(store.folder, store.timed)
    assert set(STORES[kind]) <= set(contents(store.folder))
    damaged = damaging(store.folder / name, how)
    before = contents(store.folder)
    assert not told(recwarn)

    if store.look is not None:
        if store.refusal:
            with pytest.raises(ValueError, match=store.refusal.format(name=re.escape(name))):
                store.look()
        else:
            assert store.look() is None
        assert contents(store.folder) == before and not told(recwarn), "a caller who only reads has moved something"

    if store.found is not None:
        assert store.found() is None
    else:
        store.make()
    # A record that is missing is one that was never made, but where nothing else says that there was one.
    is_named = kind == "miniature" or (name, how) != (record, "missing")
    folder_goes = kind == "miniature" or (kind.endswith("run") and name == record)  # without it nothing can be trusted
    place = store.folder if folder_goes else store.folder / name
    aside = place.with_name(f"{place.name}.damaged-1")
    if is_named:
        (said,) = told(recwarn)
        assert str(place) in said and (name if kind != "miniature" else "is missing or does not match its checksum") in said
    else:
        assert not told(recwarn)
    is_aside = is_named and (folder_goes or how != "missing")
    assert list(store.folder.parent.rglob("*.damaged-*")) == ([aside] if is_aside else [])
    kept = contents(aside) if aside.is_dir() else is_aside and aside.read_bytes()
    assert kept == (is_aside and (before if folder_goes else damaged))

    made = store.make()
    assert contents(store.folder, store.timed) == whole
    assert kept == (contents(aside) if aside.is_dir() else is_aside and aside.read_bytes()), "what was kept is gone"
    stamped = stamps(store.folder)
    assert store.found is None or store.found() == made
    assert store.look is None or store.look() is not None
    store.make()
    assert stamps(store.folder) == stamped, "it was made once more"
    assert len(told(recwarn)) == is_named


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("how", ["flipped", "missing"])
def test_every_damaged_file_is_named_and_what_is_whole_between_is_kept(opened, kind, how, damaging, recwarn):
    store, names = opened(kind), STORES[kind][1::2]
    whole = store.whole or contents(store.folder, store.timed)
    for name in names:
        damaging(store.folder / name, how)
    store.make()
    said = told(recwarn)
    if kind != "miniature":  # which goes whole
        assert len(said) == len(names)
        assert all(any(str(store.folder / name) in words for words in said) for name in names)
    assert contents(store.folder, store.timed) == whole


@pytest.mark.parametrize("kind", [kind for kind in STORES if kind != "unfinished run"])
def test_what_a_killed_process_left_half_written_goes_with_the_next_writing(opened, kind, tmp_path):
    store = opened(kind)
    (store.folder / ".file.abcdef.tmp").write_text("half")
    files.write_with(store.folder / "mine" / ".notes.tmp", lambda path: path.write_text("not of this store"))
    (store.folder / STORES[kind][1]).unlink()
    with pytest.warns(UserWarning, match="is missing or does not match its checksum"):
        store.make()
    assert [path.name for path in tmp_path.rglob("*.tmp")] == [".notes.tmp"]


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", STORES["tables"])
def test_the_checksums_of_damaged_tables_can_be_asked_for(tmp_path, name, how, damaging):
    store = tables(tmp_path)
    damaging(tmp_path / name, how)
    assert store.manifest is None or name != "manifest.json"
    assert store.checksums is not None


def test_a_table_is_not_taken_for_another(tmp_path):
    """A whole file in another's place has the wrong checksum."""
    store = tables(tmp_path)
    store.write("other", TABLE.assign(value=0.0), {"format": 1}, device="cpu", seconds=1.0)
    (tmp_path / "losses.csv").write_bytes((tmp_path / "other.csv").read_bytes())
    with pytest.warns(UserWarning, match=r"losses\.csv: it is missing or does not match its checksum; it is kept as losses"):
        assert table(store, keep=False) is None


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_memory_of_verified_shards_is_made_again_from_the_shards(shards, home, monkeypatch, how, damaging):
    out, make = shards
    make()
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
