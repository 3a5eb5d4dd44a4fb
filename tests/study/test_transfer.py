"""What fine-tuned runs are measured by, and what the tables come to: beside values found another way, and by hand."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tying_utils import corpora
from tying_utils.base.names import NEW_ROLES, TIED, TWO_ROLE, UNTIED, scaled, tuned
from tying_utils.experiments import claims
from tying_utils.experiments import transfer as transfer_outcomes
from tying_utils.measures.probe import probe
from tying_utils.study import Results, Study, arms, study_tables, transfer
from tying_utils.study.profile import Profile
from tying_utils.study.profiles import PROFILES
from tying_utils.training import pool
from tying_utils.training.next_token import NextTokenLoss

ARMS = {UNTIED, TIED, scaled(5), "norm-match", "untie"}


# Tokens


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *((text, "keyword") for text in ("def", " return", "None", "lambda")),
        *((text, "identifier part") for text in ("self", " Tokenizer", "_", "__", " x", "é", "ing", "print", "match")),
        *((text, "whitespace") for text in (" ", "\n", "\n        ", "\t")),
        *((text, "number") for text in ("0", " 42", "007")),
        *((text, "punctuation") for text in ("(", " ==", "):", ",\n", "._", '"""', "#")),
        *((text, None) for text in ("", "�", "<|endoftext|>", "3d", "x=", "→", "東 京", "½")),
    ],
)
def test_the_kind_of_a_token(text: str, kind: str | None) -> None:
    assert transfer.category(text) == kind
    assert kind is None or kind in transfer.CATEGORIES


def test_tokens_have_the_kind_and_the_bytes_of_their_text(home: Path, text: Path) -> None:
    corpus = corpora.load("text", vocab_size=300, path=text)
    kinds, sizes = transfer.categories(corpus), transfer.token_bytes(corpus)
    for word, kind in ((" a", "identifier part"), ("7", "number"), (",", "punctuation"), ("\n", "whitespace")):
        (token,) = corpus.tokenizer.encode(word).ids
        assert transfer.CATEGORIES[kinds[token]] == kind and sizes[token] == len(word)
    assert kinds[corpus.tokenizer.token_to_id(corpus.separator)] == -1
    words = "seven lemons, 99 → 東京 \n🦊"
    assert sizes[corpus.tokenizer.encode(words).ids].sum() == len(words.encode())
    assert sizes[corpus.train].sum() + sizes[corpus.validation].sum() == text.stat().st_size


# Steps to a target


def test_steps_to_a_target_by_hand() -> None:
    assert transfer_outcomes.steps_to([0, 10, 20], [4.0, 3.0, 2.0], 2.5) == (15.0, True)
    assert transfer_outcomes.steps_to([0, 10, 20], [4.0, 3.0, 2.0], 3.0) == (10.0, True)
    assert transfer_outcomes.steps_to([0, 10, 20], [4.0, 3.0, 2.0], 1.9) == (20.0, False)
    assert transfer_outcomes.steps_to([0, 10, 20], [4.0, 3.0, 2.0], 4.5) == (0.0, True)
    assert transfer_outcomes.steps_to([0, 10, 20, 30], [4.0, 2.0, 3.5, 1.0], 3.0) == (5.0, True), "the first time counts"


@given(st.floats(0.001, 0.1), st.floats(0.05, 0.95), st.lists(st.integers(1, 200), min_size=2, max_size=30, unique=True))
def test_a_straight_fall_is_met_where_it_is(slope: float, part: float, steps: list[int]) -> None:
    steps = [0, *sorted(steps)]
    place = part * steps[-1]
    found, reached = transfer_outcomes.steps_to(steps, [5 - slope * step for step in steps], 5 - slope * place)
    assert reached and found == pytest.approx(place, abs=1e-6)


@pytest.mark.parametrize(("steps", "losses"), [([], []), ([0, 5], [1.0]), ([5, 0], [1.0, 2.0]), ([0, 0], [1.0, 2.0])])
def test_steps_that_do_not_grow_are_named(steps: list[int], losses: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^steps: growing steps, a loss each, are needed"):
        transfer_outcomes.steps_to(steps, losses, 1.0)


def test_outcomes_are_those_of_the_curves() -> None:
    """The untied arm falls by 1 in 30 steps, so the target is 4 in 90; one arm takes half as long again, one far longer."""
    pace = {UNTIED: 30.0, TIED: 45.0, "norm-match": 200.0}
    keys = [{"corpus": "python", "to": "english", "arm": arm, "seed": seed} for arm, seed in itertools.product(pace, (0, 1))]
    losses = [{**key, "step": step, "loss": 5 + key["seed"] - step / pace[key["arm"]]} for key in keys for step in (0, 20, 90)]
    losses = [{**row, "bytes_per_token": 4.0} for row in losses]
    forgetting = [{**key, "before": 2.0, "after": 2.5 + key["seed"]} for key in keys]
    rows = transfer_outcomes.outcomes(pd.DataFrame(losses).sample(frac=1, random_state=0), pd.DataFrame(forgetting))
    rows = rows.set_index(["arm", "seed"])
    assert rows["target"].tolist() == pytest.approx((4 + rows.index.get_level_values("seed")).tolist())
    for seed in (0, 1):
        tied = rows.xs((TIED, seed)).to_dict()
        assert rows.loc[(UNTIED, seed), "steps"] == pytest.approx(30)
        assert list(rows.loc[("norm-match", seed), ["steps", "reached"]]) == [90, False]
        assert [tied[name] for name in ("steps", "first", "last", "forgetting")] == pytest.approx(
            [45, 5 + seed, 3 + seed, 0.5 + seed]
        )
        assert tied["bits_per_byte"] == pytest.approx((3 + seed) / np.log(2) / 4)


# Tables of a study


@pytest.fixture(scope="module")
def smoke(smoke_home: Path) -> Any:
    """The smoke profile's tables of fine-tuning on the two-role language."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "_cores", lambda: 1)  # such runs are shorter than the start of a process
        names = [name for name in study_tables.TABLES if name.startswith("transfer_")]
        yield Study("smoke", TWO_ROLE, progress=False).complete(names)


def loss(study: Study, arm: str, seed: int, of: str) -> float:
    """The mean loss of a run's model on the held-out windows of the arm `of`, as training measures it."""
    runs = {one.seed: one for one in study.runs(arm)}
    config, corpus = runs[seed].run.config, {one.seed: one.corpus for one in study.runs(of)}[seed]
    windows = corpus.windows("validation", config.validation_sequences, config.context + 1)
    with torch.no_grad():
        return float(NextTokenLoss(runs[seed].run.model())(torch.from_numpy(windows)))


def test_every_start_is_tuned_on_every_text(smoke: Study) -> None:
    losses, forgetting = smoke["transfer_losses"], smoke["transfer_forgetting"]
    names = ("new source roles", "new target roles")
    expected = set(itertools.product(ARMS, names, smoke.profile.seeds))
    for table in (losses, forgetting):
        assert {(row["arm"], row["to"], row["seed"]) for row in table.to_dict("records")} == expected
        assert set(table["corpus"]) == {TWO_ROLE}
    config = smoke.profile.config(tuned(TIED, names[0]), 0)
    steps = [0, *range(config.validation_every, config.steps + 1, config.validation_every)]
    assert all(part["step"].tolist() == steps for _, part in losses.groupby(["arm", "to", "seed"]))
    assert (losses["loss"] > losses["floor"]).all() and losses["bytes_per_token"].isna().all()


@pytest.mark.parametrize(("arm", "role"), [(TIED, "source"), (UNTIED, "target"), ("untie", "source")])
def test_losses_are_of_the_right_model_on_the_right_text(smoke: Study, arm: str, role: str) -> None:
    to = f"new {role} roles"
    after = tuned(arm, to)
    for seed in smoke.profile.seeds:
        curve = smoke["transfer_losses"].query("arm == @arm and to == @to and seed == @seed").set_index("step")["loss"]
        (row,) = smoke["transfer_forgetting"].query("arm == @arm and to == @to and seed == @seed").to_dict("records")
        assert curve.iloc[0] == pytest.approx(loss(smoke, arm, seed, after), rel=1e-5)
        assert curve.iloc[-1] == pytest.approx(loss(smoke, after, seed, after), rel=1e-5)
        assert row["before"] == pytest.approx(loss(smoke, arm, seed, arm), rel=1e-5)
        assert row["after"] == pytest.approx(loss(smoke, after, seed, arm), rel=1e-5)


def test_one_role_of_each_language_is_dealt_anew(smoke: Study) -> None:
    names = (TIED, *(tuned(TIED, to) for to in ("new source roles", "new target roles")))
    before, source, target = (smoke.profile.config(name, 1).language for name in names)
    assert before and source and target
    assert (before.permuted, source.permuted, target.permuted) == (None, "source", "target")
    assert before.seed == source.seed == target.seed == 1


def test_probes_are_of_the_tables_that_were_started_from(smoke: Study) -> None:
    table = smoke["transfer_probe"]
    tables = {UNTIED: ["input", "output"], "untie": ["input", "output"]}
    expected = {(arm, name) for arm in ARMS for name in tables.get(arm, ["tied"])}
    assert set(zip(table["arm"], table["table"], strict=True)) == expected
    assert set(table["question"]) == {"source role", "target role"} and set(table["classes"]) == {4}
    arm = smoke.runs(UNTIED)[0]
    assert arm.language
    used = arm.used.numpy()
    found = probe(arm.run.tables().output[used], arm.language.target[used], permutations=2, seed=arm.seed)
    (row,) = table.query("arm == 'untied' and table == 'output' and question == 'target role' and seed == 0").to_dict("records")
    assert (row["value"], row["chance"]) == pytest.approx((found.value, found.chance), rel=1e-5)
    assert row["tokens"] == len(used) and row["low"] <= row["value"] <= row["high"]


def test_the_role_that_a_table_holds_is_the_one_that_costs_it_steps() -> None:
    """Steps by hand: the tied arm takes 60 to new source roles and 80 to new target roles, the other 90 and 70."""
    steps = {UNTIED: (30, 30), TIED: (60, 80), scaled(5): (90, 70)}
    losses, forgetting, probes = [], [], []
    for seed, (arm, pair) in itertools.product((0, 1), steps.items()):
        key = {"corpus": TWO_ROLE, "arm": arm, "seed": seed}
        probes.append({**key, "table": "input" if arm == UNTIED else "tied", "question": "source role", "corrected": 0.5})
        for to, count in zip(NEW_ROLES, pair, strict=True):
            curve = {"to": to, "bytes_per_token": np.nan}
            losses += [{**key, **curve, "step": step, "loss": 5 - step / (count + seed)} for step in (0, 90, 93)]
            forgetting.append({**key, "to": to, "before": 2.0, "after": 2.5})
    frames = {"losses": losses, "forgetting": forgetting, "probe": probes}
    tables = {f"transfer_{name}": pd.DataFrame(rows) for name, rows in frames.items()}
    estimates = claims.verdicts(tables, ("transfer",)).set_index("statistic")["estimate"]
    words = "steps to the target loss, new source roles minus new target roles, input x5 - tied"
    assert estimates[words] == pytest.approx(40, abs=1)


def test_the_verdicts_compare_every_start_with_the_tied_one(smoke: Study) -> None:
    table = claims.verdicts(smoke, ("transfer",))
    assert len(table) == 2 * 2 * (len(ARMS) - 1) + 2 + 2 and (table["seeds"] == 2).all()
    rows = transfer_outcomes.outcomes(smoke["transfer_losses"], smoke["transfer_forgetting"])
    wide = rows.query("to == 'new source roles'").pivot_table(index="seed", columns="arm", values="forgetting")
    estimate = table.set_index("statistic")["estimate"]["forgetting, nats, new source roles, norm-match - tied"]
    assert estimate == pytest.approx((wide["norm-match"] - wide[TIED]).mean())


@pytest.fixture
def texts(home: Path, text: Path, tmp_path: Path, grammar: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Study:
    """A profile that goes from one text to another, in place of smoke."""
    other = tmp_path / "other.txt"
    other.write_text(grammar(400, seed=5).upper(), encoding="utf-8")
    small = {"path": str(text), "vocab_size": 300, "d_model": 16, "n_layers": 1, "n_heads": 2, "context": 16, "steps": 4}
    profile = Profile(
        name="smoke",
        purpose="from a text to a text",
        corpus="text",
        seeds=(0, 1),
        training={**small, "validation_every": 2},
        starts=arms.PAIR,
        transfers={"capitals": {"path": str(other), "steps": 6}},
    )
    monkeypatch.setitem(PROFILES, "smoke", {"text": profile})
    monkeypatch.setattr(pool, "_cores", lambda: 1)
    return Study("smoke", "text", progress=False)


def test_from_a_text_to_a_text(texts: Study) -> None:
    losses, forgetting, probes = (texts[f"transfer_{name}"] for name in ("losses", "forgetting", "probe"))
    assert set(losses["step"]) == {0, 2, 4, 6} and losses["floor"].isna().all()
    corpus = texts.runs(tuned(TIED, "capitals"))[0].corpus
    # Long words of sentences are no tokens in capitals, so that a token holds little more than a byte.
    assert losses["bytes_per_token"].nunique() == 1 and 1 <= losses["bytes_per_token"].iloc[0] < 1.5
    assert "vocabulary" in corpus.fingerprint
    assert (forgetting["before"] > 0).all() and set(probes["question"]) == {"category"}
    manifest = texts.manifest
    assert manifest and len(manifest["corpora"]) == 2, "both texts are told apart"
    for key in manifest["tables"]["transfer_losses"]["runs"]:
        run = manifest["runs"][key]
        assert ("vocabulary" in manifest["corpora"][run["corpus"]]) == (run["config"]["start"] is not None)
    again = Results("smoke", only_read=True)
    pd.testing.assert_frame_equal(again["transfer_losses"], losses)
    assert np.isfinite(claims.verdicts(again, ("transfer",))["estimate"]).all()


def test_tables_of_a_text_that_is_missing_are_named(texts: Study) -> None:
    assert texts.without_text() == {}
    Path(texts.profile.transfers["capitals"]["path"]).unlink()
    said = Study("smoke", "text", progress=False).without_text()
    assert set(said) == {"transfer_losses", "transfer_forgetting"}
    assert all("does not exist" in words for words in said.values())
    with pytest.raises(ValueError, match="does not exist"):
        Study("smoke", "text", progress=False).table("transfer_losses")
