"""What the trainer says of its last step: the parts of both paths and of weight decay add up to what the tables did."""

from typing import Any

import pytest
import small_runs
import torch
from torch import Tensor

from tying_utils import models
from tying_utils.models.balance import REMEDIES
from tying_utils.training import Trainer
from tying_utils.training.metrics import SCALARS

ARMS: dict[str, dict[str, Any]] = {
    "tied": {},
    "input x5": {"input_scale": 5},
    "in parts": {"output_scale": 0.5, "micro_batches": 2},
    "without decay": {"weight_decay": 0},
    "untied": {"tied": False},
}
APART = [
    name for name, remedy in REMEDIES.items() if remedy(**small_runs.PARAMETERS.get(name, {})).added_parameters(120, 16) == 0
]


def tables(trainer: Trainer) -> dict[str, Tensor]:
    own = models.tables(trainer.model)
    return {"tied": own.table.clone()} if own.tied else {"input": own.input.clone(), "output": own.output.clone()}


@pytest.mark.parametrize("changes", [*ARMS.values(), *map(small_runs.remedied, APART)], ids=[*ARMS, *APART])
def test_parts_add_up_to_what_the_tables_did(tiny, home, changes):
    config = tiny(**changes, steps=40, learning_rate=1e-2, clip=0.2)
    trainer = Trainer(config, config.load_corpus())
    start = before = tables(trainer)
    sums: dict[str, dict[str, Tensor]] = {}
    clips = []
    for step in range(1, config.steps + 1):
        clips.append(float(trainer.step(step)[SCALARS.index("clip")]))
        after = tables(trainer)
        for name, added in trainer.update_parts().items():
            assert list(added)[-1] == "decay" and len(added) == (3 if config.tied else 2)
            torch.testing.assert_close(sum(added.values()), after[name] - before[name], rtol=1e-3, atol=3e-7)
            whole = config.weight_decay * config.learning_rate_at(step) * rate(config, name)
            torch.testing.assert_close(added["decay"], -whole * before[name], rtol=1e-4, atol=1e-10)
            held = sums.setdefault(name, {part: torch.zeros_like(update) for part, update in added.items()})
            for part, update in added.items():
                held[part] += update
        before = after
    assert min(clips) < 1, "clipping was to be active"
    for name, held in sums.items():
        moved = after[name] - start[name]
        assert float((sum(held.values()) - moved).norm() / moved.norm()) < 1e-4
        assert all(float(part.norm()) > 0 for part in list(held.values())[: -1 if config.weight_decay == 0 else None])


def rate(config: Any, table: str) -> float:
    """What a remedy multiplies a table's learning rate by."""
    rates = config.remedy.rates() if config.remedy else (1.0, 1.0)
    return rates[1] if table == "output" else rates[0]


@pytest.mark.parametrize("path", ["input", "output"])
def test_a_path_that_is_shut_supplies_nothing(tiny, home, path):
    config = tiny(**{f"{path}_scale": 0})
    trainer = Trainer(config, config.load_corpus())
    for step in range(1, 6):
        trainer.step(step)
        added = trainer.update_parts()["tied"]
        other = {"input": "output", "output": "input"}[path]
        assert float(added[f"{path} path"].norm() / added[f"{other} path"].norm()) < 1e-5


def test_asking_changes_nothing(tiny, home):
    config = tiny(input_scale=5)
    trainers = [Trainer(config, config.load_corpus()) for _ in range(2)]
    for step in range(1, 6):
        rows = [trainer.step(step) for trainer in trainers]
        assert torch.equal(*rows)
        parts = [trainers[0].update_parts()["tied"] for _ in range(2)]
        assert all(torch.equal(parts[0][name], parts[1][name]) for name in parts[0])
    assert torch.equal(*(trainer.input_weight for trainer in trainers))


@pytest.mark.parametrize("name", [name for name in REMEDIES if name not in APART])
def test_what_has_no_parts_is_named(tiny, home, name):
    config = tiny(**small_runs.remedied(name))
    trainer = Trainer(config, config.load_corpus())
    trainer.step(1)
    with pytest.raises(ValueError, match=f"^config: the remedy '{name}' .* no path has its own update; use another"):
        trainer.update_parts()
