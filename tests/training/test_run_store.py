import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from small_runs import contents
from transformers import AutoModelForCausalLM

from tying_utils import corpora, models
from tying_utils.base import files
from tying_utils.training import run_store, train_all
from tying_utils.training import trainer as training
from tying_utils.training.config import TrainConfig
from tying_utils.training.run_store import Run

both_arms = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[Path, Run]]:
    """A home and the finished run in it, tied and untied. Not to be written to."""
    result = {}
    for tied in (True, False):
        home = tmp_path_factory.mktemp("home")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TYING_HOME", str(home))
            result[tied] = home, training.train(tiny(tied=tied), progress=False)
    return result


@pytest.fixture
def finished(made, home: Path) -> Run:
    """A copy of the finished tied run in a home of its own."""
    source, run = made[True]
    shutil.copytree(source, home, dirs_exist_ok=True)
    copied = run_store.find(run.config, run.fingerprint)
    assert copied is not None and copied.folder.is_relative_to(home)
    return copied


def test_every_file_of_a_run_is_known_and_named(made):
    for tied, (_, run) in made.items():
        present = contents(run)
        assert set(present) == set(run.record["files"]), "a file that run.json does not name, or the other way round"
        assert {name: files.digest(run.folder / name) for name in present} == run.record["files"]
        tables = {f"tables/step-{step:06d}.safetensors" for step in (0, 1, 2, 5, 10, 12)}
        weights = {f"weights/step-{step:06d}.safetensors" for step in (5, 10)}
        model = {f"model/{name}" for name in ("model.safetensors", "config.json", "generation_config.json")}
        assert set(present) == {*tables, *weights, *model, "metrics-000012.parquet"}
        assert run.folder.name == f"olmo-{'tied' if tied else 'untied'}-{run.key}"
        assert run.key == run_store.run_key(run.config, run.fingerprint)


def test_record_says_how_it_was_made(made):
    _, run = made[True]
    assert TrainConfig.from_dict(run.record["config"]) == run.config
    assert run.record["finished"] is True and run.record["step"] == 12
    assert run.fingerprint["name"] == "text" and run.fingerprint["vocab_size"] == 300
    assert run.record["made"]["torch"] == torch.__version__ and run.record["made"]["device"] == "cpu"
    assert run.record["made"]["parameters"] == sum(p.numel() for p in run_store.build_model(run.config).parameters())


def test_there_is_no_run_before_it_is_made(home, tiny, text, recwarn):
    fingerprint = corpora.load("text", vocab_size=300, path=text).fingerprint
    assert run_store.find(tiny(), fingerprint) is None
    assert not [warning for warning in recwarn.list if issubclass(warning.category, UserWarning)]
    assert not (home / "data" / "runs").exists()


def test_a_run_in_training_is_not_waited_for(home, tiny, interrupted):
    config = tiny()
    fingerprint = config.load_corpus().fingerprint
    interrupted(config, 7)
    with run_store.writing(config, fingerprint), ThreadPoolExecutor(1) as pool:  # held as by the process that trains it
        assert pool.submit(run_store.find, config, fingerprint).result(timeout=30) is None


def test_a_run_is_found_by_its_content(finished, tiny, tmp_path):
    moved = shutil.copy(finished.config.path, tmp_path / "sentences.txt")
    found = run_store.find(tiny(path=str(moved)), finished.fingerprint)
    assert found is not None and found.folder == finished.folder
    assert run_store.find(tiny(steps=13), finished.fingerprint) is None
    assert run_store.find(tiny(), {**finished.fingerprint, "sha256": "other"}) is None


def test_keys_of_runs_on_text_are_what_they_were_before_there_was_a_language():
    assert run_store.run_key(TrainConfig(), {"sha256": "a"}) == "803d29c1fa567bfa"
    assert run_store.run_key(TrainConfig(corpus="two-role"), {}) != run_store.run_key(TrainConfig(), {})


def test_a_run_on_the_two_role_language_is_found_again(home, tiny):
    config = tiny(corpus="two-role", path=None, vocab_size=32, language={"length": 2000}, steps=2)
    run = training.train(config, progress=False)
    assert TrainConfig.from_dict(run.record["config"]) == config
    assert run.fingerprint == config.load_corpus().fingerprint
    found = run_store.find(config, run.fingerprint)
    assert found is not None and found.folder == run.folder
    (again,) = train_all([config], progress=False)
    assert again.folder == run.folder
    other = config.replace(language={"length": 2000, "agreement": 1.0})
    assert run_store.find(other, other.load_corpus().fingerprint) is None


def test_one_process_at_a_time_writes_a_run(home, tiny):
    entered = threading.Event()

    def second() -> None:
        with run_store.writing(tiny(), {}):
            entered.set()

    waiting = threading.Thread(target=second, daemon=True)
    with run_store.writing(tiny(), {}):
        waiting.start()
        assert not entered.wait(0.3)
        with run_store.writing(tiny(steps=13), {}):
            pass  # another run is free
    assert entered.wait(10)
    waiting.join(10)


@both_arms
def test_kept_tables_and_models_agree(made, tied):
    run = made[tied][1]
    assert run.checkpoints == [0, 1, 2, 5, 10, 12]
    assert run.model_steps == [5, 10, 12]
    assert set(run.model_steps) <= set(run.checkpoints)
    seen = []
    for step in run.model_steps:
        model = run.model(step)
        own, kept = models.tables(model), run.tables(step)
        assert not model.training
        assert own.tied is kept.tied is tied
        assert torch.equal(own.input, kept.input) and torch.equal(own.output, kept.output)
        assert kept.input.shape == kept.output.shape == (300, 16)
        assert kept.input.dtype == torch.float32
        assert torch.equal(kept.input, kept.output) is tied
        seen.append(kept.input)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


@both_arms
def test_tables_before_the_first_step_are_the_initial_ones(made, tied):
    run = made[tied][1]
    start, kept = models.tables(run_store.build_model(run.config)), run.tables(0)
    assert torch.equal(start.input, kept.input) and torch.equal(start.output, kept.output)
    assert not torch.equal(kept.input, run.tables(1).input)


@both_arms
def test_last_step_is_the_default(made, tied):
    run = made[tied][1]
    assert torch.equal(run.tables().output, run.tables(12).output)
    last, default = run.model(12).state_dict(), run.model().state_dict()
    assert all(torch.equal(last[name], default[name]) for name in last)


@pytest.mark.parametrize("step", [3, 13, -1])
def test_a_step_that_was_not_kept_is_named(made, step):
    run = made[True][1]
    with pytest.raises(ValueError, match=rf"^step:.*{step} .*\[0, 1, 2, 5, 10, 12\]"):
        run.tables(step)
    for without_a_model in (step, 0):
        with pytest.raises(ValueError, match=rf"^step:.*{without_a_model} .*\[5, 10, 12\]"):
            run.model(without_a_model)


@both_arms
def test_model_folder_is_an_ordinary_one(made, tied):
    run = made[tied][1]
    loaded: Any = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    assert models.tables(loaded).tied is tied
    assert loaded.config.tie_word_embeddings is tied
    tokens = torch.arange(16)[None] * 7
    assert torch.equal(loaded(tokens).logits, run.model()(tokens).logits)
    held = load_file(run.folder / "model" / "model.safetensors")
    assert sum(weight.shape == (300, 16) for weight in held.values()) == (1 if tied else 2)


def test_metrics_are_read_once(finished):
    first = finished.metrics
    assert isinstance(first, pd.DataFrame)
    assert finished.metrics is first


@both_arms
def test_weights_have_one_name_each(tiny, tied):
    model: Any = run_store.build_model(tiny(tied=tied))
    held = run_store.weight_names(model)
    assert len({p.data_ptr() for p in held.values()}) == len(held)
    assert {p.data_ptr() for p in held.values()} == {p.data_ptr() for p in model.parameters()}
    assert any(p is model.get_input_embeddings().weight for p in held.values())


@both_arms
def test_weights_are_copied_in_place(tiny, tied):
    config = tiny(tied=tied)
    source, target = run_store.build_model(config), run_store.build_model(config.replace(init_seed=1))
    places = {name: p.data_ptr() for name, p in run_store.weight_names(target).items()}
    weights = {name: p.detach().clone() for name, p in run_store.weight_names(source).items()}
    run_store.load_weights(target, weights)
    assert {name: p.data_ptr() for name, p in run_store.weight_names(target).items()} == places
    assert all(torch.equal(p, weights[name]) for name, p in run_store.weight_names(target).items())
    assert models.tables(target).tied is tied


def test_weights_of_another_model_are_refused(tiny):
    model = run_store.build_model(tiny())
    weights = {name: p.detach().clone() for name, p in run_store.weight_names(model).items()}
    name, *others = weights
    fewer = {other: weights[other] for other in others}
    for wrong in (fewer, {**weights, "more": torch.zeros(1)}, {**weights, name: weights[name][1:]}):
        with pytest.raises(ValueError, match=r"^weights: names or shapes"):
            run_store.load_weights(model, wrong)


def test_a_finished_run_is_read_from_a_disk_that_is_only_read(finished, home: Path, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()}
    monkeypatch.setattr("os.access", lambda *_: False)

    def locked(*_: Any, **__: Any) -> None:
        raise PermissionError("a lock was asked for")

    monkeypatch.setattr("filelock.FileLock.acquire", locked)
    assert training.train(finished.config, progress=False).key == finished.key
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()} == before
