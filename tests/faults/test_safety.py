"""What others give us runs no code and reaches no file outside of its folder; what is secret is said and kept nowhere."""

import ast
import json
import logging
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from local_hub import Fault, LocalHub, environment, pointing_at

from tying_utils import __main__ as command
from tying_utils import corpora, models
from tying_utils.base import files
from tying_utils.corpora import vocabulary
from tying_utils.experiments import public_tables as public
from tying_utils.models import checkpoints
from tying_utils.pages import notebooks
from tying_utils.study import miniatures
from tying_utils.training import run_store, train
from tying_utils.training.run_store import Run

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for folder in ("tying_utils", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECRET = "hf_SecretSecretSecretSecretSecret"


def cells(book: Path) -> list[str]:
    """The code of a notebook's cells; the first sets it up where it is not installed."""
    return [cell.source for cell in nbformat.read(book, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("source", [*SOURCES, *BOOKS], ids=lambda path: path.name)
def test_no_source_unpickles_evaluates_or_asks_for_code_from_elsewhere(source):
    text = source.read_text(encoding="utf-8") if source.suffix == ".py" else "\n".join(cells(source)[1:])
    tree = ast.parse(text)  # which a shell command in a notebook would not be
    imported = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported.isdisjoint({"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "runpy", "code"})
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load"), name
        assert not name.endswith((".unpack_archive", ".extractall", "read_pickle", "get_ipython")), name
        assert given.get("trust_remote_code", "False") == "False" and given.get("shell", "False") == "False"
        assert "allow_pickle" not in given
        if name == "torch.load":
            assert given["weights_only"] == "True"


@pytest.mark.parametrize("book", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_fetches_code_in_its_setup_alone_and_only_where_it_is_not_installed(book):
    first, *others = cells(book)
    shell = [line for line in first.splitlines() if line.lstrip().startswith(("!", "%"))]
    assert len(shell) == 3 and all(line.startswith("    ") for line in shell)
    assert 'if importlib.util.find_spec("tying_utils") is None:' in first
    assert not [line for cell in others for line in cell.splitlines() if line.lstrip().startswith(("!", "%"))]


def save_model(folder: Path, *, tied: bool) -> Path:
    models.build(tied=tied, vocab_size=300, d_model=16, n_layers=1, n_heads=2, context=16, seed=0).save_pretrained(folder)
    return folder


class Evil:
    """What touches a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def evil(tmp_path: Path) -> Iterator[bytes]:
    """A pickle that leaves a mark where it is loaded."""
    mark = tmp_path / "it ran"
    yield pickle.dumps({"table": Evil(mark), "lm_head.weight": Evil(mark)})
    assert not mark.exists(), "code of a file was run"


def test_the_pickle_is_one(tmp_path, evil):
    pickle.loads(evil)
    (tmp_path / "it ran").unlink()


@pytest.fixture(scope="module")
def finished(tiny, trained_once) -> Run:
    return trained_once(tiny(steps=6))


@pytest.fixture
def copied(finished: Run, tmp_path: Path) -> Path:
    """A run's folder as another might hand it on."""
    return Path(shutil.copytree(finished.folder, tmp_path / "handed" / finished.folder.name))


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object], name: str = "run.json") -> None:
    """A record changed by somebody who knows how its checksum is made."""
    record = files.read_json(folder / name)
    assert record is not None
    change(record)
    files.write_json(folder / name, record)


def test_a_run_of_pickles_under_the_right_checksums_runs_nothing(copied, evil):
    names = list((files.read_json(copied / "run.json") or {})["files"])
    for name in names:
        if name != "model/config.json":
            (copied / name).write_bytes(evil)
    rewritten(copied, lambda record: record.update(files={name: files.digest(copied / name) for name in names}))
    run = run_store.opened(copied)
    for read in (run.tables, run.model, lambda: run.model(5), lambda: run.metrics):
        with pytest.raises(Exception) as caught:
            read()
        assert not isinstance(caught.value, pickle.UnpicklingError)


@pytest.mark.filterwarnings("ignore:.*no safetensors")
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json", "tokenizer.json", "vocab.json"])
def test_a_checkpoint_of_pickles_is_refused(tmp_path, evil, name):
    folder = save_model(tmp_path / "model", tied=False)
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(evil)
    if name in ("tokenizer.json", "vocab.json"):
        with pytest.raises(ValueError, match=r"^source: "):
            vocabulary.read(folder)
        return
    with pytest.raises(ValueError, match=r"^source: "):
        checkpoints.read_tables(folder)
    with pytest.raises(Exception) as caught:
        public.load_model(folder)
    assert not isinstance(caught.value, SystemExit)


def test_a_torch_file_whose_tensors_are_code_is_refused(tmp_path, evil):
    folder = save_model(tmp_path / "model", tied=False)
    (folder / "model.safetensors").unlink()
    weights = {"lm_head.weight": Evil(tmp_path / "it ran")}
    for legacy in (False, True):
        torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
        with pytest.warns(UserWarning), pytest.raises(ValueError, match="holds more than tensors"):
            checkpoints.read_tables(folder)
        with pytest.raises(Exception, match=r"(?i)weights|unsupported|unpickl"):
            public.load_model(folder)


def test_code_that_lies_beside_a_checkpoint_is_not_run(tmp_path, capfd):
    folder = save_model(tmp_path / "model", tied=False)
    (folder / "modeling_evil.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "modeling_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}}
    for kind in ("olmo", "evil"):
        (folder / "config.json").write_text(json.dumps(config | {"model_type": kind}))
        checkpoints.read_tables(folder)
        try:
            public.load_model(folder)
        except ValueError as error:
            assert "trust_remote_code" in str(error) or "model type" in str(error)
    assert not (tmp_path / "it ran").exists()


OUT = (
    "../victim",
    "/etc/hostname",
    "tables/../../victim",
    "C:\\victim",
    "..\\victim",
    "tables\\..\\..\\victim",
    "",
    ".",
    "a\0b",
)
outside = pytest.mark.parametrize("name", OUT, ids=repr)


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A file of somebody's own beside the folder that is read."""
    path = tmp_path / "handed" / "victim"
    path.parent.mkdir(exist_ok=True)
    path.write_text("my own")
    yield path
    assert path.read_text() == "my own" and not list(tmp_path.rglob("victim.damaged*"))


@pytest.mark.parametrize("name", [*OUT, "a/../b", None, 3, ["a"], b"a"], ids=repr)
def test_names_that_lead_out_and_what_is_no_name_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"^name: .* leads out of .*; do not use what you were given"):
        files.inside(tmp_path / "folder", name)


@pytest.mark.parametrize("name", ["run.json", "tables/step-1.safetensors", "..a", "a..b", "é", "a b"])
def test_names_of_the_folder_are_its_files(tmp_path, name):
    assert files.inside(tmp_path, name) == tmp_path / name


@pytest.mark.skipif(sys.platform == "win32", reason="links")
def test_a_link_out_of_the_folder_is_no_way_out(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="leads out"):
        files.inside(folder, "link/file")
    (tmp_path / "again").symlink_to(folder)  # the folder itself may be reached through one
    assert files.inside(tmp_path / "again", "file") == tmp_path / "again" / "file"


@outside
def test_a_run_that_names_files_elsewhere_is_refused_and_moves_nothing(copied, victim, name, home, finished, monkeypatch):
    rewritten(copied, lambda record: record["files"].update({name: "0" * 64}))
    with pytest.raises(ValueError, match="leads out"):
        run_store.opened(copied)
    own = run_store.run_folder(finished.config, finished.fingerprint)
    shutil.copytree(copied, own)
    shutil.copy(victim, own.parent / "victim")
    for use in (lambda: run_store.find(finished.config, finished.fingerprint), lambda: train(finished.config, progress=False)):
        with pytest.raises(ValueError, match="leads out"):
            use()
    assert (own.parent / "victim").read_text() == "my own"


@outside
def test_a_cache_of_tokens_that_names_files_elsewhere_is_refused(home, text, name):
    folder = corpora.load("text", vocab_size=300, path=text).folder
    (folder.parent / "victim").write_text("my own")
    rewritten(folder, lambda record: record["files"].update({name: "0" * 64}), "corpus.json")
    with pytest.raises(ValueError, match="leads out"):
        corpora.load("text", vocab_size=300, path=text)
    assert (folder.parent / "victim").read_text() == "my own"


@outside
def test_shards_that_name_files_elsewhere_are_refused(home, tmp_path, name):
    folder = tmp_path / "shards"
    folder.mkdir()
    entry = {"sha256": "0" * 64, "tokens": 1}
    record = {"arguments": "", "finished": True, "vocab_size": 300, "dtype": "uint16", "tokenizer": "0", "separator": "a"}
    record |= {"files": {"validation.bin": entry, name: entry}, "tokens": {"train": 1}}
    files.write_json(folder / "corpus.json", record)
    with pytest.raises(ValueError, match="leads out"):
        corpora.load("shards", vocab_size=300, path=folder)


@outside
def test_a_miniature_that_names_files_elsewhere_is_refused(home, finished, victim, name):
    model = next(iter(miniatures.families().values())).tied
    folder = home / "data" / "miniatures" / "smoke" / model.source
    folder.mkdir(parents=True)
    record = {"format": miniatures.FORMAT, "run": finished.key, "files": {name: "0" * 64}}
    files.write_json(folder / "record.json", record)
    with pytest.raises(ValueError, match="leads out"):
        miniatures._saved(model, finished, "smoke")


@pytest.mark.parametrize("name", [*OUT, 3, None, {"a": 1}], ids=repr)
@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_an_index_that_names_files_elsewhere_is_refused(tmp_path, name, kind):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"vocab_size": 300, "architectures": ["OlmoForCausalLM"]}))
    index = {"weight_map": {"model.embed_tokens.weight": name, "lm_head.weight": name}}
    (folder / f"{kind}.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"^source: .*(is not to be trusted: .* leads out|holds no weight_map)"):
        checkpoints.read_tables(folder)
    with LocalHub() as hub, pointing_at(hub, tmp_path / "cache"):
        hub.add("org/model", folder)
        with pytest.raises(ValueError, match=r"^source: .*(is not to be trusted: .* leads out|holds no weight_map)"):
            checkpoints.read_tables("org/model")
        assert not [request for request in hub.requests if "victim" in request.path or ".." in request.path]


@outside
def test_a_cached_table_that_is_said_to_lie_elsewhere_is_refused(tmp_path, name):
    folder = save_model(tmp_path / "model", tied=True)
    with LocalHub() as hub, pointing_at(hub, tmp_path / "cache"):
        hub.add("org/model", folder)
        checkpoints.read_tables("org/model")
        (record,) = (tmp_path / "cache").rglob("record.json")
        rewritten(record.parent, lambda held: held.update(parts={"input": name}, sha256={name: "0" * 64}), "record.json")
        with pytest.raises(ValueError, match="leads out"):
            checkpoints.read_tables("org/model")


@pytest.fixture
def spoken(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """All that was logged, at any level, and written to stdout and stderr."""
    caplog.set_level(logging.DEBUG)
    for name in ("huggingface_hub", "httpx", "httpcore", "transformers", "datasets", "fsspec"):
        caplog.set_level(logging.DEBUG, logger=name)

    def words() -> str:
        captured = capfd.readouterr()
        return "\n".join([captured.out, captured.err, caplog.text, *(str(record.__dict__) for record in caplog.records)])

    return words


def holding_the_secret(*folders: Path) -> list[Path]:
    held = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [path for path in held if SECRET.encode() in path.read_bytes()]


FAULTS: dict[str, Callable[[LocalHub], object]] = {
    "all is well": lambda hub: None,
    "gated": lambda hub: setattr(hub, "token", "hf_another"),
    "unknown": lambda hub: hub.repos.pop("org/model"),
    "a server error": lambda hub: hub.faults.update({"config.json": Fault(status=500, methods=("GET", "HEAD"))}),
    "a teapot": lambda hub: hub.faults.update({".safetensors": Fault(status=418)}),
    "cut off": lambda hub: hub.faults.update({".safetensors": Fault(drop_after=5000)}),
    "another range": lambda hub: hub.faults.update({".safetensors": Fault(wrong_range=(1, 1))}),
    "no ranges": lambda hub: hub.faults.update({".safetensors": Fault(ignore_range=True)}),
    "no network": lambda hub: hub.stop(),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("fault", FAULTS)
def test_the_token_is_in_no_error_log_or_file(fault, tmp_path, home, spoken):
    folder = save_model(tmp_path / "model", tied=True)
    said = []
    with LocalHub(token=SECRET) as hub, pointing_at(hub, tmp_path / "cache", token=SECRET):
        hub.add("org/model", folder, gated=True)
        FAULTS[fault](hub)
        for use in (
            lambda: checkpoints.read_tables("org/model"),
            lambda: checkpoints.steps("org/model"),
            lambda: vocabulary.read("org/model"),
            lambda: public.load_model("org/model"),
        ):
            try:
                said.append(repr(use()))
            except Exception as error:
                said.append("".join(traceback.format_exception(error)) + repr(error))
        out = str(tmp_path / "home" / "shards")
        prepare = ["prepare", "--out", out, "--text", "org/data", "--tokenizer", "org/model", "--vocab-size", "300"]
        assert command.main(prepare) == 2
        sent = [request.authorization for request in hub.requests]
    assert fault == "no network" or f"Bearer {SECRET}" in sent, "the token was never sent, so nothing is shown"
    assert SECRET not in "\n".join(said) and SECRET not in spoken()
    assert holding_the_secret(home, tmp_path / "cache") == []


@pytest.mark.notebook
def test_the_token_is_in_no_executed_notebook_nor_in_what_a_failing_cell_says(tmp_path, monkeypatch):
    book = nbformat.v4.new_notebook()
    reads = "from tying_utils.checkpoints import read_tables\nread_tables(MODEL)"
    sources = ('MODEL = "org/model"', reads, 'read_tables("org/closed")')
    book.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    book.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(book, tmp_path / "01_book.ipynb")
    folder = save_model(tmp_path / "model", tied=True)
    with LocalHub(token=SECRET) as hub:
        hub.add("org/model", folder, gated=True)
        for name, value in environment(hub, tmp_path / "cache", token=SECRET).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        with pytest.raises(RuntimeError, match="org/closed") as caught:
            notebooks.run(tmp_path / "01_book.ipynb", tmp_path / "copy" / "01_book.ipynb", {}, progress=False)
        assert f"Bearer {SECRET}" in [request.authorization for request in hub.requests]
    text = (tmp_path / "copy" / "01_book.ipynb").read_text()
    assert "CheckpointTables(" in text and "org/closed" in text, "both cells ran"
    assert SECRET not in text and SECRET not in "".join(traceback.format_exception(caught.value))
    assert holding_the_secret(tmp_path / "copy", tmp_path / "cache") == []


def asked(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_make_lab_serves_this_machine_alone_and_asks_for_a_token(tmp_path):
    makefile = (ROOT / "Makefile").read_text()
    (options,) = re.findall(r"^lab: setup\n\t\$\(BIN\)/jupyter lab (.*)$", makefile, re.MULTILINE)
    config = tmp_path / "config"
    config.mkdir()
    # Somebody who opens other notebooks to the network must not open these.
    (config / "jupyter_server_config.py").write_text("c.ServerApp.ip = '0.0.0.0'\nc.ServerApp.port = 0\n")
    env = {**os.environ, "JUPYTER_CONFIG_DIR": str(config), "JUPYTER_RUNTIME_DIR": str(tmp_path / "run"), "HOME": str(tmp_path)}
    line = [sys.executable, "-m", "jupyter", "lab", *options.split(), "--no-browser", "--allow-root"]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(line, cwd=ROOT, env=env, stdout=log, stderr=log) as server:
        try:
            found = None
            for _ in range(600):
                if found := re.search(r"http://([\w.]+):(\d+)/lab\S*\?token=(\w+)", (tmp_path / "log").read_text()):
                    break
                assert server.poll() is None, (tmp_path / "log").read_text()[-2000:]
                time.sleep(0.1)
            assert found, (tmp_path / "log").read_text()[-2000:]
            port, token = int(found[2]), found[3]
            assert len(token) >= 32
            here = f"http://127.0.0.1:{port}/api/contents"
            assert asked(here) == 403 and asked(f"{here}?token=guess") == 403 and asked(f"{here}?token={token}") == 200
            addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
            for address in {*addresses, "127.0.0.2"} - {"127.0.0.1"}:
                with pytest.raises(OSError):
                    socket.create_connection((address, port), timeout=2).close()
        finally:
            server.terminate()
            server.wait(30)
