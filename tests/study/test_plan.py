import dataclasses
import json
import re
import time

import numpy as np
import pytest
import torch

from tying_utils.__main__ import main
from tying_utils.models import balance
from tying_utils.study import plan as plans
from tying_utils.study import profiles
from tying_utils.study.plan import Plan, ProfilePlan, duration, plan, plan_profile
from tying_utils.training import TrainConfig, Trainer, budget, pool, run_store, train


def test_a_plan_is_counted_exactly_and_writes_no_run(home, tiny, tmp_path, monkeypatch):
    places = tmp_path / "places"
    places.mkdir()
    monkeypatch.setattr(plans.tempfile, "tempdir", str(places))
    config = tiny(tied=False)
    made = plan(config, probe_steps=3)
    assert not (home / "data" / "runs").exists() and not list(places.glob("tying-plan-*"))
    assert made.step_seconds and made.fits

    run = train(config, progress=False)
    assert made.parameters == run.record["made"]["parameters"]
    assert (made.device, made.dtype) == (run.record["made"]["device"], run.record["made"]["dtype"])
    assert made.table_share == pytest.approx(2 * 300 * 16 / made.parameters)
    left = sum(path.stat().st_size for path in run.folder.rglob("*.safetensors"))
    assert left <= made.disk <= 1.05 * left and made.disk < made.disk_peak and made.memory == budget.memory(config)


def test_a_probe_leaves_generators_and_threads_as_they_were(home, tiny):
    threads, states = torch.get_num_threads(), (torch.random.get_rng_state(), np.random.get_state()[1].copy())  # type: ignore
    plan(tiny(threads=threads + 1), probe_steps=1)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # type: ignore[index]
    assert torch.get_num_threads() == threads


def test_a_probe_changes_no_run_and_may_be_longer_than_one(home, tiny, tmp_path, monkeypatch):
    config = tiny(steps=2)
    plan(config, probe_steps=4)
    run = train(config, progress=False)
    monkeypatch.setenv("TYING_HOME", str(tmp_path / "other"))
    assert train(config, progress=False).record["files"] == run.record["files"]


def test_time_is_about_what_a_run_takes(home, tiny):
    config = tiny(steps=60, d_model=64, n_layers=2, batch_size=16, checkpoint_every=30)
    made = plan(config)
    took = train(config, progress=False).record["made"]["seconds"]
    assert made.seconds is not None and took / 4 < made.seconds < took * 4


def test_every_part_of_the_time_counts(home, tiny, monkeypatch):
    """12 steps, 3 validations (5, 10, 12), 3 checkpoints, tables at 0, 1, 2, 5, 10 and 12."""
    for name, seconds in {"step": 0.02, "validate": 0.1}.items():
        real = getattr(Trainer, name)

        def slow(trainer, *arguments, real=real, seconds=seconds):
            time.sleep(seconds)
            return real(trainer, *arguments)

        monkeypatch.setattr(Trainer, name, slow)
    for owner, name, seconds in ((run_store.Writer, "put_tables", 0.05), (Trainer, "commit", 0.2)):
        monkeypatch.setattr(owner, name, lambda *_, seconds=seconds: time.sleep(seconds))
    made = plan(tiny(), probe_steps=2)
    rest = 3 * 0.1 + len(tiny().table_steps) * 0.05 + 3 * 0.2
    assert made.step_seconds is not None and made.seconds is not None
    assert made.step_seconds >= 0.02 and rest <= made.rest_seconds < rest + 1
    assert made.seconds == 12 * made.step_seconds + made.rest_seconds


def test_a_long_probe_ends_early_with_a_step(home, tiny, monkeypatch):
    taken, step = [], Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda trainer, number: (taken.append(number), step(trainer, number))[1])
    monkeypatch.setattr(plans, "PROBE_SECONDS", 0)
    assert plan(tiny()).step_seconds and taken == [1, 2], "one to warm up, and one"


def test_what_does_not_fit_is_not_probed(home, tiny, monkeypatch):
    monkeypatch.setattr(budget, "memory_free", lambda device: 1000)
    monkeypatch.setattr(plans, "Trainer", lambda *_: pytest.fail("it was probed"))
    made = plan(tiny())
    assert (made.fits, made.seconds, made.step_seconds) == (False, None, None)
    assert "not probed: it does not fit in memory" in str(made)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "3"])
def test_bad_probe_steps_are_named(home, tiny, steps):
    with pytest.raises(ValueError, match=r"^probe_steps: "):
        plan(tiny(), probe_steps=steps)


def test_a_plan_in_words(home, tiny):
    found = {"step_seconds": 0.02, "rest_seconds": 3.0, "memory": 1_234_000, "memory_free": None, "disk_free": 5 * 10**9}
    made = dataclasses.replace(plan(tiny(), probe_steps=2), **found)
    model, cost, memory, disk = str(made).splitlines()
    assert model.startswith("model   olmo, tied, 1 layers, d 16, V 300: ") and "% of them in the tables" in model
    assert cost == "time    3.2 s: 12 steps of 20 ms, 3.0 s of validations and checkpoints"
    assert memory == "memory  1.23 MB at the peak, on cpu in float32; an unknown amount free"
    assert disk.endswith("; 5 GB free")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0042, "4.2 ms"),
        (0.5, "500 ms"),
        (12, "12 s"),
        (210, "3.5 min"),
        (4320, "72 min"),
        (9000, "2.5 h"),
        (864_000, "10 days"),
    ],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


# Profiles


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """The configurations that are probed: each step of them takes a second for every layer."""
    seen: list[TrainConfig] = []

    def counted(config: TrainConfig, *, probe_steps: int) -> Plan:
        seen.append(config)
        kept, peak = budget.disk(config)
        takes = {"parameters": budget.parameters(config), "memory": budget.memory(config), "disk": kept, "disk_peak": peak}
        free, seconds = {"memory_free": 10**10, "disk_free": 10**10}, float(config.n_layers)
        return Plan(config=config, device="cpu", dtype="float32", table_share=0.5, **takes, **free, step_seconds=seconds)

    monkeypatch.setattr(plans, "plan", counted)
    return seen


def test_a_profile_probes_each_kind_once_and_counts_what_is_missing(home, probed, monkeypatch):
    monkeypatch.setattr(pool, "_cores", lambda: 2)
    of = profiles.get("smoke", "two-role")
    configs = list(dict.fromkeys(of.config(arm, seed) for seed in of.seeds for arm in of.arms if seed in of.seeds_of(arm)))
    whole = plan_profile("smoke", "two-role")
    assert (whole.runs, whole.missing, whole.workers) == (len(configs), len(configs), 2)
    weighs = balance.PathRule  # costs what an ordinary run does
    kinds = {(c.arch, c.tied, c.n_layers, None if isinstance(c.remedy, weighs) else c.remedy, c.start is None) for c in configs}
    assert len(probed) == len(kinds) < len(configs) / 2  # untied, tied, tied with a layer more, ...
    assert whole.disk == sum(budget.disk(config)[0] for config in configs)
    assert whole.seconds == sum(config.steps * config.n_layers for config in configs) / 2

    for config, finished in zip(configs, (True, False), strict=False):
        folder = run_store.run_folder(config, config.load_corpus().fingerprint)
        run_store.files.write_json(folder / "run.json", {"finished": finished})
    rest = plan_profile("smoke", "two-role")
    assert (rest.runs, rest.missing) == (len(configs), len(configs) - 1)
    assert whole.disk - rest.disk == budget.disk(configs[0])[0]
    assert str(rest).startswith(f"smoke on two-role: {len(configs) - 1} of {len(configs)} runs are missing\ntime ")


def test_a_profile_that_is_finished_or_too_large_says_so(home, probed):
    done = ProfilePlan(profile="quick", corpus="python", runs=3, plans=(), workers=1)
    assert str(done) == "quick on python: 0 of 3 runs are missing" and done.seconds == 0
    whole = plan_profile("smoke", "two-role")
    unknown = dataclasses.replace(whole, plans=((dataclasses.replace(whole.plans[0][0], step_seconds=None), 2),))
    assert unknown.seconds is None and "not probed: a run does not fit in memory" in str(unknown)


def test_one_run_is_no_faster_for_more_workers(home, probed):
    whole = plan_profile("smoke", "two-role")
    one = dataclasses.replace(whole, plans=((whole.plans[0][0], 1),), workers=2)
    assert one.seconds == whole.plans[0][0].seconds


# The command


def test_the_command_prints_configurations(home, tiny, capsys):
    options = [option for tied in (True, False) for option in ("--config", json.dumps(tiny(tied=tied).as_dict()))]
    assert main(["plan", *options]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^model   olmo, (\w+)", out, re.M) == ["tied", "untied"]
    assert len(re.findall(r"^time    .*: 12 steps of .* of validations and checkpoints$", out, re.M)) == 2
    assert not (home / "data" / "runs").exists()


def test_the_command_prints_a_profile(home, probed, capsys):
    assert main(["plan", "--profile", "smoke", "--corpus", "two-role"]) == 0
    assert capsys.readouterr().out.startswith("smoke on two-role: ")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--config", '{"stepz": 1}'), "stepz"),
        (("--config", "["), "--config: "),
        (("--profile", "huge"), "PROFILE: 'huge'"),
        (("--profile", "smoke", "--corpus", "wikitext-2"), "CORPUS: 'wikitext-2'"),
        (("--corpus", "python"), "--profile: "),
        (("--profile", "smoke", "--config", "{}"), "--profile: "),
    ],
)
def test_bad_options_end_with_2_and_words(home, capsys, options, named):
    assert main(["plan", *options]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("tying-utils: ") and named in err and not out
