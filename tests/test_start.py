"""Runs that go on from the finished weights of another: what they start with, what they resume, what they are keyed by."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tying_utils.study.plan import plan
from tying_utils.training import run_store, train, train_all
from tying_utils.training import trainer as training
from tying_utils.training.config import TrainConfig
from tying_utils.training.run_store import Run

# How the run to start from was made, and whether it ends with one table.
STARTS: dict[str, tuple[dict[str, Any], bool]] = {
    "tied": ({}, True),
    "scaled": ({"input_scale": 5.0}, True),
    "untied": ({"tied": False}, False),
    "matched": ({"remedy": "norm-match"}, True),
    "coupled": ({"remedy": "coupled-adam"}, True),
    "untied on the way": ({"remedy": "untie"}, False),
    "folded": ({"remedy": "projection"}, False),
}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, grammar: Callable[..., str]) -> str:
    """A second text."""
    file = tmp_path_factory.mktemp("other") / "other.txt"
    file.write_text("".join(reversed(grammar(400, seed=1))), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def tuned(tiny: Callable[..., TrainConfig], other: str) -> Callable[..., TrainConfig]:
    """A maker of runs on the second text that start from one on the first; keyword arguments change fields of the later run."""

    def make(name: str = "tied", **changes: Any) -> TrainConfig:
        how, tied = STARTS[name]
        return tiny(path=other, tied=tied, start=tiny(**how), **{"init_seed": 7, **changes})

    return make


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    mine, yours = dict(a.named_parameters()), dict(b.named_parameters())
    return mine.keys() == yours.keys() and all(torch.equal(mine[name], yours[name]) for name in mine)


@pytest.mark.parametrize("name", STARTS)
def test_it_starts_with_what_the_other_ended_with(home: Path, tuned: Callable[..., TrainConfig], name: str) -> None:
    config = tuned(name)
    assert config.start is not None
    run, start = train(config, progress=False), train(config.start, progress=False)
    first, last = run.tables(0), start.tables()
    assert first.tied == last.tied == config.tied
    assert torch.equal(first.input, last.input) and torch.equal(first.output, last.output)
    # The whole model, not the tables alone: without a step there is nothing to tell the two apart.
    still = train(config.replace(learning_rate=1e-30, steps=1), progress=False)
    assert same(still.model(), start.model())
    assert not torch.equal(run.tables().input, first.input)
    assert run.record["config"]["start"] == config.start.as_dict()


def test_the_text_is_in_the_tokens_that_the_model_knows(home: Path, tuned: Callable[..., TrainConfig]) -> None:
    config = tuned()
    assert config.start is not None
    corpus, before = config.load_corpus(), config.start.load_corpus()
    assert corpus.tokenizer.to_str() == before.tokenizer.to_str() != config.replace(start=None).load_corpus().tokenizer.to_str()
    assert train(config, progress=False).fingerprint["vocabulary"] == before.fingerprint


def test_the_optimizer_starts_anew(home: Path, tuned: Callable[..., TrainConfig]) -> None:
    """Adam's first step of a weight is the learning rate, whatever the gradient's size, if it remembers nothing."""
    config = tuned(steps=1, warmup_steps=0, learning_rate=1e-3, weight_decay=0.0, adam_eps=1e-30)
    run = train(config, progress=False)
    moved = (run.tables().input - run.tables(0).input).abs()
    assert float(moved.max()) == pytest.approx(1e-4, rel=1e-3), "a tenth of the peak, at the end of its cosine"


def test_a_missing_start_is_trained_first_and_once(
    home: Path, tuned: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, run_of = [], training.Trainer.run

    def counting(trainer: Any, *arguments: Any) -> Run | None:
        trained.append(trainer.config)
        return run_of(trainer, *arguments)

    monkeypatch.setattr(training.Trainer, "run", counting)
    configs = [tuned(), tuned(data_seed=1)]
    runs = train_all([*configs, tuned().start], progress=False, workers=1)  # type: ignore[list-item]
    assert trained == [configs[0].start, *configs]
    assert [run.config for run in runs] == [*configs, configs[0].start]
    assert train_all(configs, progress=False) == runs[:2] and len(trained) == 3


def test_side_by_side_they_are_the_runs_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuned: Callable[..., TrainConfig]
) -> None:
    configs, records = [tuned(), tuned("untied")], []
    for workers in (1, 2):
        monkeypatch.setenv("TYING_HOME", str(tmp_path / str(workers)))
        records.append([run.record["files"] for run in train_all(configs, progress=False, workers=workers)])
    assert records[0] == records[1]


def test_a_plan_trains_no_start(home: Path, tuned: Callable[..., TrainConfig]) -> None:
    config = tuned()
    made = plan(config, probe_steps=1)
    assert made.fits and not (home / "data" / "runs").exists()
    run = train(config, progress=False)
    left = sum(path.stat().st_size for path in run.folder.rglob("*.safetensors"))
    assert left <= made.disk <= 1.05 * left


def test_runs_from_one_start_and_from_none_lie_apart(home: Path, tuned: Callable[..., TrainConfig]) -> None:
    configs = [tuned(), tuned("scaled"), tuned().replace(start=None)]
    folders = {run_store.run_folder(config, config.load_corpus().fingerprint) for config in configs}
    assert len(folders) == 3
