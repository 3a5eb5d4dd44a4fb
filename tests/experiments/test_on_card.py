"""The claims on a card, from tables made up so that each statistic is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tying_utils.base.names import PACKAGES, PYTHON, TIED, UNTIED, scaled
from tying_utils.experiments import advice, on_card, places
from tying_utils.pages import costs, report
from tying_utils.study.axis import Lengths

X5, SEEDS = scaled(5), 4
ROOT = Path(on_card.__file__).parents[2]
# Of each arm, without the scatter of the seeds.
LOSS = {UNTIED: 2.6, TIED: 2.65, X5: 2.8}
SHARE = {UNTIED: 0.6, TIED: 0.7, X5: 0.7}
BIAS = {TIED: 0.3, X5: 0.1}
KL = {UNTIED: 3.0, TIED: 2.8, X5: 2.5}


def tables(missing: tuple[tuple[str, int], ...] = ()) -> dict[str, pd.DataFrame]:
    """What `tying-utils gpu --read` writes of runs of all arms and seeds except those `missing`."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in on_card.TABLES}
    for arm, seed in ((arm, seed) for arm in LOSS for seed in range(SEEDS) if (arm, seed) not in missing):
        noise = 1e-3 * seed * (arm != UNTIED)
        run = {"corpus": PACKAGES, "arm": arm, "seed": seed, "d_model": 128, "n_layers": 4, "tokens_per_weight": 20.0}
        weights = 2_097_152 if arm == UNTIED else 1_572_864
        rows["losses"].append({**run, "validation_loss": LOSS[arm] + noise, "parameters": weights})
        for tenth in range(1, 11):
            rows["share"].append({**run, "tenth": tenth, "output_share": SHARE[arm] + noise - 0.01 * (tenth - 1)})
        for layer in range(5):
            rows["lens"].append({**run, "layer": layer, "kl_bits": (KL[arm] + noise) * (1 - layer / 4)})
        if arm in BIAS:
            for source, value in (("input", 0.3), ("output", 0.3 + BIAS[arm] + noise)):
                rows["alignment"].append({**run, "source": source, "target": "tied", "corrected": value})
            rows["alignment"].append({**run, "source": "input", "target": "output", "corrected": 0.35})
    made = {name: pd.DataFrame(part) for name, part in rows.items()}
    numbers = {"tokens_per_step": 16384.0, "weights": 2_097_152.0}
    sizes = pd.DataFrame([{"part": "claims", "task": "size", "what": name, "value": value} for name, value in numbers.items()])
    return made | {"rates": sizes, "checks": pd.DataFrame([{"part": "correct", "outcome": "held"}])}


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> Lengths:
    """The committed axis of length, whose statistics a card is judged by."""
    monkeypatch.setenv("TYING_HOME", str(ROOT))
    return Lengths()


def test_each_statistic_is_the_difference_that_was_put_in(lengths):
    judged = on_card.verdicts(tables(), lengths).set_index("id")
    scatter = 1e-3 * np.mean(range(SEEDS))
    expected = {
        "output_bias": BIAS[TIED] + scatter,
        "early_share": SHARE[TIED] + scatter,
        "late_share": SHARE[TIED] - 0.09 + scatter,
        "share_gap": SHARE[TIED] - SHARE[UNTIED] + scatter,
        "lens_gap": KL[TIED] - KL[UNTIED] + scatter,
        "scaled_bias": BIAS[X5] - BIAS[TIED],
        "scaled_loss": LOSS[X5] - LOSS[TIED],
        "equal_shape": LOSS[TIED] - LOSS[UNTIED] + scatter,
    }
    assert judged["estimate"].to_dict() == pytest.approx(expected)
    assert [*judged.index] == [*expected], "in the order of the claims"
    words = judged["verdict"].to_dict()
    assert words.pop("lens_gap") == "refuted" and set(words.values()) == {"supported"}
    assert set(judged["place"]) == {"on a card"} and set(judged["seeds"]) == {SEEDS}
    assert (judged["p_holm"] >= judged["p"]).all()


def test_what_was_not_measured_is_left_out(lengths):
    some = tables(missing=((X5, 0), (X5, 3), (UNTIED, 1)))
    judged = on_card.verdicts(some, lengths).set_index("id")
    assert judged.loc["scaled_bias", "seeds"] == 2 and judged.loc["scaled_bias", "verdict"] == ""
    assert judged.loc["equal_shape", "seeds"] == 3 and judged.loc["output_bias", "seeds"] == 4
    del some["lens"]
    assert [*on_card.verdicts(some, lengths)["id"]] == [name for name in judged.index if name != "lens_gap"]
    pair = {name: part[part["arm"] != X5] if "arm" in part else part for name, part in some.items()}
    assert not on_card.verdicts(pair, lengths)["id"].str.startswith("scaled").any()
    without_tied = tables(missing=tuple((TIED, seed) for seed in range(SEEDS)))
    assert on_card.verdicts(without_tied, lengths).empty, "as where every tied run was lost"
    del some["alignment"]
    assert on_card.verdicts(some, lengths).empty and on_card.verdicts({}, lengths).empty


def test_a_page_without_a_card_says_so(home, monkeypatch):
    assert on_card.found() == ({}, {})
    assert costs.card().startswith("Nothing here was run on a card yet")
    results = places.results("laptop", only_read=True)
    assert {heading: write for heading, _, write in report.SECTIONS}["The claims on a card"](results).startswith("Nothing")


def test_the_committed_card_is_what_the_pages_say(lengths):
    machine, found = on_card.found()
    judged = on_card.verdicts(found, lengths).set_index("id")
    losses = found["losses"].pivot_table(index="seed", columns="arm", values="validation_loss")
    assert judged.loc["equal_shape", "estimate"] == pytest.approx((losses[TIED] - losses[UNTIED]).mean())
    assert judged.loc["equal_shape", "seeds"] == len(losses) >= 3
    assert machine["card"] in costs.card() and on_card.condition(machine, found) in costs.card()


def test_a_gap_on_a_card_is_one_of_those_that_were_measured(lengths):
    results = places.results("laptop", only_read=True)
    without, whole = (advice.measured(results, lengths, card) for card in (None, tables(missing=((TIED, 2),))))
    added = whole[~whole["vocab_size"].isin(without["vocab_size"])]
    assert len(whole) == len(without) + 1 and [*whole.dtypes] == [*without.dtypes]
    (row,) = added.to_dict("records")
    assert (row["vocab_size"], row["d_model"], row["n_layers"], row["parameters"], row["share"]) == (
        4096,
        128,
        4,
        2_097_152,
        0.5,
    )
    assert row["estimate"] == pytest.approx(LOSS[TIED] - LOSS[UNTIED] + 4e-3 / 3) and row["seeds"] == 3
    advised = advice.advise(whole, vocab_size=4096, d_model=128, n_layers=4, tokens=20 * 2_097_152)
    assert "V 4096, d 128, 4 layers, 20 tokens per weight" in advised.sentence and "measured near this" in advised.sentence
    assert advice.measured(results, lengths, {}).equals(without)
    for lost in (TIED, UNTIED):
        some = tables(missing=tuple((lost, seed) for seed in range(SEEDS)))
        assert advice.measured(results, lengths, some).equals(without), "without pairs there is no gap"


def test_the_text_is_named_as_it_was():
    made = tables()
    for corpus, label in ((PACKAGES, "source of packages"), (PYTHON, "Python source"), ("mine", "mine")):
        made["losses"] = made["losses"].assign(corpus=corpus)
        words = on_card.condition({"dtype": "float32: as asked for"}, made)
        assert words.startswith(f"{label}, d 128, 4 layers, 2.1 million weights") and words.endswith("of 16,384, float32")
