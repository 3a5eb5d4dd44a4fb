"""The axis of length measured: what is finished is tabulated once, and what is not yet is waited for."""

import dataclasses
import shutil

import pandas as pd
import pytest
from small_runs import ROLES

from tying_utils.base import paths
from tying_utils.base.names import LOG_COUNT, SECOND_START, TIED, UNTIED, scaled
from tying_utils.corpora.two_role import Settings
from tying_utils.study import axis, lengths, of_lengths
from tying_utils.study.axis import PLACES, TABLES, Axis, Lengths
from tying_utils.study.lengths import ARMS, LongProfile
from tying_utils.training import train

LENGTHS = (0.5, 2.0)


@pytest.fixture
def small(home, tiny, monkeypatch) -> LongProfile:
    """A two-role language at two lengths in the place of the axis."""
    own = {name: getattr(tiny(), name) for name in ("context", "batch_size", "d_model", "n_heads")} | {"vocab_size": 120}
    profile = LongProfile(
        name="two-role",
        purpose="",
        corpus="two-role",
        seeds=(0, 1),
        training={**own, "n_layers": 2, "language": Settings(**ROLES["language"]), "validation_sequences": 8, "device": "cpu"},
        equal={"n_layers": 3},
        permutations=3,
        lens={"steps": 5},
        lens_windows=8,
        evaluation_windows=4,
    )
    monkeypatch.setattr(axis, "PLACES", {"two-role": profile})
    monkeypatch.setattr(lengths, "_ORDER", ((profile, 0), (profile, 1)))
    monkeypatch.setattr(lengths, "TOKENS_PER_WEIGHT", LENGTHS)
    monkeypatch.setattr(lengths, "tried", lambda: iter(()))
    monkeypatch.setattr(lengths, "remedied", lambda: iter(()))
    monkeypatch.setattr(of_lengths, "_WINDOWS", 32)
    return profile


def trained(profile: LongProfile, seed: int, length: float) -> None:
    for arm in ARMS:
        train(profile.condition(arm, length, seed).config, progress=False)


def grown(name: str) -> pd.DataFrame:
    return Axis("two-role", fresh=True, progress=False)[name]


def test_every_table_has_every_length_and_seed_whose_arms_are_all_there(small):
    trained(small, 0, 0.5)
    train(small.condition(lengths.TIED, 2.0, 0).config, progress=False)  # alone at its length: nothing to compare it with
    measured = Axis("two-role", fresh=True, progress=False)
    assert measured.finished == [(0.5, 0)]
    assert measured.names == [name for name in TABLES if name not in axis._BESIDE]
    for name in measured.names:
        table = measured[name]
        assert list(table.columns[:6]) == ["corpus", "d_model", "tokens_per_weight", "arm", "input_scale", "seed"]
        assert set(table["tokens_per_weight"]) == {0.5} and set(table["seed"]) == {0}
        expected = {arm.name for arm in TABLES[name]} | ({LOG_COUNT} if name == "poles" else set())
        if name == "poles":
            expected -= {UNTIED}  # it is what the others are compared with
        assert set(table["arm"]) == expected, name
        assert not table.select_dtypes("number").drop(columns=["gaussian"], errors="ignore").isna().all().any(), name
    poles = measured["poles"]
    assert set(poles.loc[poles["arm"] == SECOND_START, "target"]) == {"input", "output"}
    assert set(poles.loc[poles["arm"] == TIED, "frequency_out"]) == {True, False}


def test_a_table_grows_by_what_has_been_trained_since(small, monkeypatch):
    trained(small, 0, 0.5)
    first = grown("losses")
    trained(small, 0, 2.0)
    measured = []
    measure = axis._measure_of

    def noting(name):
        def one(runs, profile, bar):
            measured.append((runs[0].tokens_per_weight, runs[0].seed))
            return measure(name)(runs, profile, bar)

        return one

    monkeypatch.setattr(axis, "_measure_of", noting)
    second = grown("losses")
    assert measured == [(2.0, 0)], "what was measured before is measured again"
    pd.testing.assert_frame_equal(second[second["tokens_per_weight"] == 0.5], first)
    pd.testing.assert_frame_equal(Axis("two-role", only_read=True)["losses"], second)
    monkeypatch.setattr(axis, "FORMAT", 99)
    grown("losses")
    assert measured == [(2.0, 0), (0.5, 0), (2.0, 0)], "a measure that gives other numbers is measured again"


def test_what_was_measured_before_an_interruption_is_kept(small, monkeypatch):
    trained(small, 0, 0.5)
    trained(small, 0, 2.0)
    measure, calls = axis._measure_of, []

    def stopping(name):
        def one(runs, profile, bar):
            calls.append(runs[0].tokens_per_weight)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return measure(name)(runs, profile, bar)

        return one

    monkeypatch.setattr(axis, "_measure_of", stopping)
    with pytest.raises(KeyboardInterrupt):
        grown("losses")
    assert set(grown("losses")["tokens_per_weight"]) == {*LENGTHS} and calls == [0.5, 2.0, 2.0]


@pytest.mark.parametrize("later", [(2.0, 0), (0.5, 1)])
def test_what_was_measured_on_another_machine_is_kept(small, later):
    """Its runs are not here; one text and one setting make the same keys."""
    trained(small, 0, 0.5)
    first = {name: grown(name) for name in ("losses", "poles")}
    before = Axis("two-role", only_read=True).manifest
    shutil.rmtree(paths.runs())
    trained(small, later[1], later[0])
    for name, table in first.items():
        second = grown(name)
        groups = second.groupby(["tokens_per_weight", "seed"])
        assert {*groups.groups} == {(0.5, 0), later}
        pd.testing.assert_frame_equal(groups.get_group((0.5, 0)).reset_index(drop=True), table)
    after = Axis("two-role", only_read=True).manifest
    assert before and after
    for name in first:
        runs = after["tables"][name]["runs"]
        assert {*before["tables"][name]["runs"]} < {*runs} <= {*after["runs"]} and len(runs) == len({*runs})


def test_what_is_not_new_is_not_written_again(small, monkeypatch):
    """Nor is a table asked of runs that it is not made of: displacement has no long ones."""
    monkeypatch.setattr(axis, "_REPLAYED", 1.3)
    trained(small, 0, 2.0)
    measured = Axis("two-role", fresh=True, progress=False)
    assert "losses" in measured and "displacement" not in measured
    first = measured["losses"]
    monkeypatch.setattr(axis.Axis, "_measure", None)
    again = Axis("two-role", fresh=True, progress=False)
    pd.testing.assert_frame_equal(again["losses"], first)
    assert again.origin["losses"].startswith("read from losses.csv")


def test_a_table_of_another_text_or_setting_keeps_nothing(small, monkeypatch):
    trained(small, 0, 0.5)
    grown("losses")
    shutil.rmtree(paths.runs())
    other = dataclasses.replace(small, training={**small.training, "context": small.training["context"] // 2})
    monkeypatch.setattr(axis, "PLACES", {"two-role": other})
    monkeypatch.setattr(lengths, "_ORDER", ((other, 0), (other, 1)))
    trained(other, 1, 0.5)
    assert set(grown("losses")["seed"]) == {1}


def test_tables_are_in_the_order_of_the_axis_whatever_came_first(small):
    trained(small, 1, 0.5)
    grown("losses")
    trained(small, 0, 0.5)
    assert grown("losses")["seed"].tolist() == [0] * len(ARMS) + [1] * len(ARMS)


def test_reading_needs_no_runs_and_says_what_to_do_without_tables(small):
    assert Lengths().places == []
    with pytest.raises(KeyError, match="'losses': no place of the axis of length has this table; they have none"):
        Lengths()["losses"]
    with pytest.raises(ValueError, match=r"losses.csv: missing.*tying-utils lengths --measure"):
        Axis("two-role", only_read=True)["losses"]
    with pytest.raises(ValueError, match="no length of 'two-role' has all its runs here"):
        grown("losses")
    trained(small, 1, 0.5)
    grown("losses")
    both = Lengths()
    assert set(both["losses"]["place"]) == {"two-role"} and set(both.checksums) == {"two-role/losses"}
    with pytest.raises(KeyError, match="'loses': no place .*; they have losses"):
        both["loses"]


def test_a_short_run_is_measured_on_the_tokens_that_it_met(small):
    """Its text holds others, whose rows nothing has told apart."""
    few = dataclasses.replace(small, training={**small.training, "batch_size": 1})
    condition = few.condition(lengths.UNTIED, 0.05, 0)
    run, corpus = train(condition.config, progress=False), condition.config.load_corpus()
    one = of_lengths.Long.of(condition, run, corpus)
    config = condition.config
    assert one.seen.sum() == config.steps * config.batch_size * config.context
    assert (one.seen[one.used.numpy()] > 0).all() and len(one.used) == (one.seen > 0).sum() < (corpus.counts > 0).sum()
    assert len(one.tables()["input"]) == len(one.used)


def test_places_that_are_none():
    with pytest.raises(ValueError, match="place: 'd32' is unknown; choose one of d64, two-role, d128"):
        Axis("d32")
    d64, d128, roles = ({*Axis(place, only_read=True).names} for place in ("d64", "d128", "two-role"))
    assert {"rates", "remedy_losses"} <= d64 and "roles" not in d64
    assert d128 == d64 - {name for name in TABLES if name.startswith(("remedy_", "tuned_"))}
    assert roles == {*TABLES} - {*axis._BESIDE}
    assert {*PLACES} == {"d64", "two-role", "d128"}


def test_tenths_of_the_text_go_from_rare_to_common():
    import numpy as np

    counts, held_out = np.array([1, 1000, 10, 0, 100]), np.repeat([0, 1, 2, 4], [10, 60, 10, 20])
    tenth = of_lengths.deciles(counts, held_out)
    assert tenth[[0, 2, 4, 1]].tolist() == [1, 2, 4, 8]  # the middles of 0 to 10, 10 to 20, 20 to 40 and 40 to 100 %
    assert tenth.min() == 1 and tenth.max() <= 10


def test_remedies_are_measured_beside_the_untied_pair_of_their_length(small, monkeypatch):
    remedied = [small.condition(arm, 0.5, 0) for arm in lengths.REMEDIED]
    monkeypatch.setattr(axis, "PLACES", {"d64": small})
    monkeypatch.setattr(lengths, "remedied", lambda: iter(remedied))
    for condition in remedied:
        train(condition.config, progress=False)
    with pytest.raises(ValueError, match="no length of 'd64' has all its runs here"):
        Axis("d64", fresh=True, progress=False)["remedy_losses"]
    trained(small, 0, 0.5)
    measured = Axis("d64", fresh=True, progress=False)
    names = [arm.name for arm in lengths.REMEDIED]
    assert measured["remedy_losses"]["arm"].tolist() == names
    assert set(measured["remedy_deciles"]["arm"]) == {*names}
    poles = measured["remedy_poles"]
    assert set(poles["arm"]) == {*names, SECOND_START, scaled(5), LOG_COUNT}
    assert set(poles.loc[poles["arm"] == "table-rates", "target"]) == {"input", "output"}
    tuned = measured["tuned_poles"]
    assert set(tuned["arm"]) == {UNTIED, TIED}, "the reference itself is compared with nothing"
    assert set(tuned.loc[tuned["arm"] == UNTIED, "target"]) == {"input", "output"}
    own = tuned.loc[tuned["arm"] == TIED, "value"]
    assert not set(own) & set(measured["poles"].query("arm == @TIED")["value"]), "compared with the ordinary reference"
