"""Every remedy trained: from its start, through an interruption, to a checkpoint that anyone can read."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import small_runs
import torch
from small_runs import PARAMETERS, contents
from transformers import AutoModelForCausalLM

from tying_utils import models
from tying_utils.models.balance import REMEDIES
from tying_utils.study import plan
from tying_utils.training import TrainConfig, Trainer, budget, hardware, run_store, train
from tying_utils.training import trainer as training
from tying_utils.training.metrics import SCALARS
from tying_utils.training.run_store import Run

FOLDED = ("projection", "spd-map", "factorised", "compact")
remedies = pytest.mark.parametrize("name", REMEDIES)


@pytest.fixture(scope="module")
def remedied(tiny) -> Callable[..., TrainConfig]:
    """A small condition with the remedy of that name; keyword arguments change fields."""
    return lambda name, **changes: tiny(**{**small_runs.remedied(name), **changes})


@pytest.fixture(scope="module")
def uninterrupted(remedied, trained_once) -> Callable[..., Run]:
    return lambda name, **changes: trained_once(remedied(name, **changes))


def stepped(config: TrainConfig, steps: int) -> Trainer:
    trainer = Trainer(config, config.load_corpus())
    for step in range(1, steps + 1):
        trainer.step(step)
    return trainer


def same_tables(run: Run, other: Run, step: int) -> bool:
    a, b = run.tables(step), other.tables(step)
    return torch.equal(a.input, b.input) and torch.equal(a.output, b.output)


@remedies
def test_a_remedy_is_plain_in_a_configuration_and_in_its_key(remedied, name):
    config = remedied(name)
    values = config.as_dict()
    assert values["remedy"] == REMEDIES[name](**PARAMETERS.get(name, {})).as_dict()
    assert TrainConfig.from_dict(values) == config and hash(TrainConfig.from_dict(values)) == hash(config)
    by_object = config.replace(remedy=config.remedy)
    assert by_object == config and run_store.run_key(by_object, {}) == run_store.run_key(config, {})
    keys = {run_store.run_key(config, {})}
    for field in dataclasses.fields(REMEDIES[name]):
        value = getattr(config.remedy, field.name)
        halved = value / 2 + 0.01 if isinstance(value, float) else value
        other = {"by": "table", "memory": 7, "width": 2, "digits": 3}.get(field.name, halved)
        changed = config.replace(remedy=dataclasses.replace(config.remedy, **{field.name: other}))
        keys.add(run_store.run_key(changed, {}))
    assert len(keys) == 1 + len(dataclasses.fields(REMEDIES[name]))
    assert run_store.run_key(config.replace(remedy=None), {}) not in keys


def test_a_remedy_may_be_a_name_or_a_mapping():
    assert TrainConfig().as_dict()["remedy"] is None
    assert TrainConfig(remedy="pcgrad") == TrainConfig(remedy={"name": "pcgrad", "by": "table"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"remedy": "weigh it"}, "^remedy: 'weigh it' is unknown; choose one of\n  scale: constant scales"),
        ({"remedy": 3}, '^remedy: a mapping {"name": ...}, a name or None is needed, got 3'),
        ({"remedy": {"target": 0.5}}, '^remedy: a mapping needs a "name"'),
        ({"remedy": {"name": "untie", "at": 2}}, "^at: "),
        ({"remedy": {"name": "untie", "when": 0.5}}, "^remedy: when: no parameter of 'untie'; it has at"),
        ({"remedy": "norm-match", "tied": False}, "^remedy: 'norm-match' needs tied=True, got tied=False; .* table-rates"),
        ({"remedy": "table-rates"}, "^remedy: 'table-rates' needs tied=False, got tied=True; .* norm-match"),
        ({"remedy": "factorised", "tied": False, "d_model": 16, "n_heads": 2}, "^width: below d_model = 16"),
        ({"remedy": "pcgrad", "input_scale": 5}, "^input_scale and output_scale: the remedy 'pcgrad' takes their place"),
    ],
)
def test_a_remedy_that_cannot_be_is_named(changes, said):
    with pytest.raises(ValueError, match=said):
        TrainConfig(**changes)


@remedies
def test_it_changes_the_run_and_says_so(uninterrupted, name):
    run, plain = uninterrupted(name), uninterrupted(None, tied=REMEDIES[name].fits[0])
    assert run.key != plain.key
    metrics = run.metrics.drop(columns=["validation_loss", *(["output_update_share"] if name in FOLDED else [])])
    assert metrics.notna().all(axis=None)
    assert run.metrics["output_update_share"].isna().all() == (name in FOLDED)
    assert not torch.equal(run.tables().input, plain.tables().input)
    assert run.metrics["loss"].iloc[-1] < run.metrics["loss"].iloc[0] + 0.05
    # From the tied model's start, whose first loss is the same to the bit; but where there are other weights.
    assert (run.metrics["loss"][0] == plain.metrics["loss"][0]) == (name not in ("factorised", "compact"))
    extra = run.config.remedy.added_parameters(120, 16)  # type: ignore[union-attr]
    assert run.record["made"]["parameters"] == plain.record["made"]["parameters"] + extra == budget.parameters(run.config)


def test_a_constant_scale_is_the_fields_of_old(uninterrupted):
    remedy, fields = uninterrupted("scale"), uninterrupted(None, input_scale=3)
    pd.testing.assert_frame_equal(remedy.metrics, fields.metrics, check_exact=True)
    assert contents(remedy) == contents(fields)


@pytest.mark.parametrize(
    ("remedy", "tied"),
    [
        ({"name": "shrink", "alpha": 1.0}, True),
        ({"name": "scale"}, True),
        ({"name": "schedule", "input": 1.0}, True),
        ({"name": "table-rates"}, False),
    ],
)
def test_rules_and_rates_that_weigh_both_paths_alike_are_the_ordinary_run(uninterrupted, home, remedied, remedy, tied):
    config = remedied(None, tied=tied).replace(remedy=remedy)
    assert contents(train(config, progress=False)) == contents(uninterrupted(None, tied=tied))


def test_rates_of_their_own_in_separate_groups_are_those_of_one_group(remedied, home):
    """To the bit: that 1 is the ordinary run does not hang on how the weights are grouped."""
    config = remedied("table-rates")
    trainer = Trainer(config, config.load_corpus())
    assert [group["rate"] for group in trainer.optimizer.param_groups].count(1.0) == len(trainer.parameters) - 2
    for group in trainer.optimizer.param_groups:
        group["rate"] = 1.0
    for step in range(1, 5):
        trainer.step(step)
    other = stepped(config.replace(remedy=None), 4)
    assert all(torch.equal(p, q) for p, q in zip(trainer.parameters, other.parameters, strict=True))


def test_rates_scale_the_first_steps(uninterrupted, remedied, home):
    """Of each table by its own factor: Adam's first step has the size of the rate."""
    run, plain = (train(c, progress=False) for c in (remedied("table-rates"), remedied(None, tied=False)))
    for table, rate in (("input", 3.0), ("output", 0.5)):
        moves = [getattr(r.tables(1), table) - getattr(r.tables(0), table) for r in (run, plain)]
        used = moves[1].abs() > 1e-5
        torch.testing.assert_close(moves[0][used], rate * moves[1][used], rtol=1e-3, atol=1e-6)


def test_a_schedule_is_the_ordinary_run_until_it_begins(uninterrupted):
    run, plain = uninterrupted("schedule"), uninterrupted(None)
    assert [step for step in run.checkpoints if same_tables(run, plain, step)] == [0, 1, 2]  # it begins with step 4


def test_a_run_is_tied_up_to_the_fraction_and_then_goes_two_ways(uninterrupted):
    run, plain = uninterrupted("untie"), uninterrupted(None)  # at 0.6 of 12 steps: 7 tied ones
    for step in run.checkpoints:
        tables = run.tables(step)
        assert tables.tied is (step <= 7)
        assert torch.equal(tables.input, tables.output) is (step <= 7)
        assert same_tables(run, plain, step) is (step <= 7)
    assert not models.tables(run.model(12)).tied and models.tables(run.model(5)).tied
    tied = [name for name in plain.metrics.columns if name != "validation_loss"]
    pd.testing.assert_frame_equal(run.metrics[tied][:7], plain.metrics[tied][:7], check_exact=True)
    # In step 8 the tables are still equal, so the loss is; their gradients are no longer added up.
    assert run.metrics["loss"][7] == plain.metrics["loss"][7]
    assert run.metrics["gradient_norm"][7] != plain.metrics["gradient_norm"][7]


def test_moments_are_copied_where_the_table_is(remedied, home):
    trainer = stepped(remedied("untie"), 7)
    held, before = trainer.optimizer.state[trainer.input_weight], trainer.input_weight.detach().clone()
    moments = {key: value.clone() for key, value in held.items()}
    trainer.untie()
    copied = trainer.optimizer.state[trainer.output_weight]
    assert set(copied) == {"step", "exp_avg", "exp_avg_sq"} and float(copied["step"]) == 7
    assert all(torch.equal(copied[key], moments[key]) and copied[key] is not held[key] for key in moments)
    assert torch.equal(trainer.output_weight, before) and not models.tables(trainer.model).tied
    trainer.step(8)
    assert not torch.equal(trainer.output_weight, trainer.input_weight)
    assert all(len(group["params"]) == len(set(group["params"])) for group in trainer.optimizer.param_groups)


@pytest.mark.parametrize("tied", [True, False])
def test_coupled_rows_share_their_second_moment(remedied, home, tied):
    trainer = stepped(remedied("coupled-adam", tied=tied), 3)
    shapes = {tuple(state["exp_avg_sq"].shape) for p, state in trainer.optimizer.state.items() if len(p) == 120}
    assert shapes == {(1, 16)}


def test_the_output_share_of_the_update_counts_the_rules_weights(uninterrupted):
    """At step 1 Adam's moments are the gradient's parts over one common size."""
    run, plain = uninterrupted("norm-match"), uninterrupted(None)
    first = plain.metrics.iloc[0]
    source, target = first["input_norm"], first["output_norm"]
    scales = {"input_scale": 0.6 * (source + target) / source, "output_scale": 0.4 * (source + target) / target}
    config = run.config.replace(remedy=None, **scales)
    by_hand = dict(zip(SCALARS, Trainer(config, config.load_corpus()).step(1).tolist(), strict=True))
    assert run.metrics["output_update_share"][0] == pytest.approx(by_hand["output_update_share"], rel=1e-3)
    assert run.metrics["gradient_norm"][0] == pytest.approx(by_hand["gradient_norm"], rel=1e-4)


@remedies
def test_checkpoints_are_ordinary_models(uninterrupted, name):
    run = uninterrupted(name)
    tokens = torch.arange(16)[None] * 7
    for step in run.model_steps:
        own, kept = models.tables(run.model(step)), run.tables(step)
        assert own.tied is kept.tied is run.config.tied_after(step)
        assert torch.equal(own.input, kept.input) and torch.equal(own.output, kept.output)
        assert kept.input.shape == kept.output.shape == (120, 16)
    loaded: Any = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    assert loaded.config.tie_word_embeddings is models.tables(loaded).tied is run.config.tied_after(12)
    assert torch.equal(loaded(tokens).logits, run.model()(tokens).logits)


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_every_architecture_can_end_with_two_tables(home, remedied, arch):
    run = train(remedied("untie", arch=arch, n_layers=1, steps=3, checkpoint_every=2, table_snapshots=2), progress=False)
    tables, tokens = run.tables(), torch.arange(16)[None]
    assert not tables.tied and not torch.equal(tables.input, tables.output)
    assert torch.equal(models.tables(run.model()).output, tables.output)
    assert not torch.equal(run.model()(tokens).logits, run.model(2)(tokens).logits)
    loaded: Any = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    assert torch.equal(loaded(tokens).logits, run.model()(tokens).logits)


@remedies
def test_disk_is_little_more_than_what_is_held(remedied, held_by, name):
    config = remedied(name, d_model=64)
    for estimated, found in zip(budget.disk(config), held_by(config), strict=True):
        assert found <= estimated <= 1.3 * found


def test_a_plan_knows_a_remedy(home, remedied):
    for name in ("factorised", "compact", "untie"):
        made = plan.plan(remedied(name), probe_steps=1)
        run = train(remedied(name), progress=False)
        assert made.parameters == run.record["made"]["parameters"] and f", {name}, " in str(made)
        tables = {"factorised": 4 * (120 + 16), "compact": 16 * (2 * 11 + 4 * 16), "untie": 120 * 16}[name] + 120 * 16
        trunk = made.parameters - tables
        assert made.table_share == pytest.approx(1 - trunk / made.parameters)


@remedies
def test_what_a_gpu_does_otherwise_is_rounding_alone(home, remedied, uninterrupted, monkeypatch, name):
    """Logits in chunks, batches ahead, and two passes of a compiler's probe that no rule may count."""
    reference = uninterrupted(name)
    monkeypatch.setattr(training.Hardware, "on_gpu", True)
    monkeypatch.setattr(training, "LOGITS_AT_ONCE", 10 * 120)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: (9, 0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda place: None)
    monkeypatch.setattr(hardware, "_seconds", lambda once, probes: (once(), 0.01)[1])
    run = train(remedied(name), progress=False)
    assert run.record["made"]["reason"].endswith("before a compiler is")
    pd.testing.assert_frame_equal(run.metrics, reference.metrics, rtol=2e-3, atol=1e-5)
    for kept in ("input", "output"):
        torch.testing.assert_close(getattr(run.tables(), kept), getattr(reference.tables(), kept), rtol=1e-3, atol=1e-4)


@remedies
def test_no_step_makes_the_host_wait(home, remedied, monkeypatch, watching, name):
    monkeypatch.setattr(training, "compile_where_it_pays", lambda *_, **__: (False, "eager"))
    monkeypatch.setattr(training.Hardware, "on_gpu", True)
    trainer = stepped(remedied(name), 1)
    with watching() as watch:
        trainer.step(2)
    assert watch.waits == []
