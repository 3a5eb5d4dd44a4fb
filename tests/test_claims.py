"""Verdicts follow from tables whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from tying_utils import claims
from tying_utils.profiles import SCALED, SCALES, TIED, UNTIED, scaled

SEEDS = (0, 1, 2)
ARM_SCALE = {TIED: 1.0, UNTIED: 1.0} | {scaled(s): s for s in SCALES}


def known_tables(sign: float = 1.0) -> dict[str, pd.DataFrame]:
    """Tables in which every claim holds by construction (sign 1), fails (sign -1), or is lost in noise (sign 0)."""
    noise = np.random.default_rng(0)

    def value(mean: float, effect: float) -> float:
        return mean + sign * effect + noise.normal(0, 1e-3 if sign else 1.0)

    def labels(arm: str, seed: int) -> dict[str, object]:
        return {"arm": arm, "input_scale": ARM_SCALE[arm], "seed": seed}

    def alignment(arms: tuple[str, ...], column: str) -> pd.DataFrame:
        rows = []
        for arm in arms:
            for seed in SEEDS:
                for kind in ("orthogonal", "linear"):
                    decades = np.log10(ARM_SCALE[arm])
                    for source, effect in (("output", 0.2 - 0.1 * decades), ("input", 0.0)):
                        rows.append({**labels(arm, seed), "kind": kind, "source": source, "target": "tied"})
                        rows[-1][column] = value(0.3, effect)
        return pd.DataFrame(rows)

    def lens(arms: tuple[str, ...]) -> pd.DataFrame:
        effects = {UNTIED: 0.0} | {arm: 1.0 - 0.3 * np.log10(ARM_SCALE[arm]) for arm in arms if arm != UNTIED}
        points = [(arm, seed, layer) for arm in arms for seed in SEEDS for layer in range(5)]
        return pd.DataFrame(
            {**labels(arm, seed), "lens": "tuned", "indexing": "matched", "layer": layer, "kl_bits": value(2.0, effects[arm])}
            for arm, seed, layer in points
        )

    def losses(arms: tuple[str, ...]) -> pd.DataFrame:
        points = [(arm, seed) for arm in arms for seed in SEEDS]
        return pd.DataFrame(
            {**labels(arm, seed), "validation_loss": value(4.0, 0.1 * np.log10(ARM_SCALE[arm]))} for arm, seed in points
        )

    steps = [(seed, step) for seed in SEEDS for step in range(1, 101)]
    shares = {"output_share": 0.2, "output_update_share": 0.1}
    return {
        "alignment": alignment((TIED,), "corrected"),
        "neighbors": alignment((TIED,), "value").query("kind == 'linear'").drop(columns="kind"),
        "scaling_alignment": alignment(SCALED, "corrected"),
        "gradients": pd.DataFrame(
            {**labels(TIED, seed), "step": step, **{name: value(0.5, effect) for name, effect in shares.items()}}
            for seed, step in steps
        ),
        "lens": lens((UNTIED, TIED)),
        "scaling_lens": lens(SCALED),
        "lens_budget": pd.DataFrame(
            {**labels(arm, seed), "steps": steps, "layer": layer, "kl_bits": value(3.0, arm == TIED)}
            for arm in (UNTIED, TIED)
            for seed in SEEDS
            for steps in (25, 50)
            for layer in (0, 1)
        ),
        "residual": pd.DataFrame(
            {**labels(arm, seed), "layer": layer, "component": "mlp", "share": value(0.2, -0.05 if arm == TIED else 0)}
            for arm in (UNTIED, TIED)
            for seed in SEEDS
            for layer in range(-1, 4)
        ),
        "losses": losses((UNTIED, TIED)),
        "scaling_losses": losses(SCALED),
        "drift": pd.DataFrame(
            {**labels(UNTIED, seed), "table": table, "step": step, "to_start": value(0.5, 0.1 if table == "input" else 0)}
            for table in ("input", "output")
            for seed in SEEDS
            for step in (0, 5, 10, 50, 100)
        ),
    }


@pytest.mark.parametrize(("sign", "expected"), [(1, "supported"), (-1, "refuted")])
def test_every_claim_is_judged_by_the_side_its_interval_lies_on(sign: float, expected: str) -> None:
    table = claims.verdicts(known_tables(sign))
    assert set(table["claim"]) == {"C1", "C2", "C2b", "C3", "C3 lens", "C4", "C4 price", "C6"}
    assert set(table["verdict"]) == {expected}
    assert (table["low"] < table["estimate"]).all() and (table["estimate"] < table["high"]).all()
    assert (table["seeds"] == len(SEEDS)).all()


def test_noise_leaves_claims_open() -> None:
    verdicts = claims.verdicts(known_tables(0))["verdict"]
    assert (verdicts == "open").mean() > 0.7


def test_one_seed_gives_no_interval_and_no_verdict() -> None:
    tables = {name: table.query("seed == 0") for name, table in known_tables().items()}
    table = claims.verdicts(tables)
    assert set(table["verdict"]) == {"open"} and table["low"].isna().all()
    assert "one seed, no interval" in claims.sentence(table, "quick")


def test_estimates_are_the_effects_put_in() -> None:
    table = claims.verdicts(known_tables()).set_index("statistic")["estimate"]
    assert table["output bias, orthogonal, chance-corrected"] == pytest.approx(0.2, abs=5e-3)
    assert table["output bias, orthogonal, per decade of input scale"] == pytest.approx(-0.1, abs=5e-3)
    assert table["lens KL at the input, tied - untied, bits"] == pytest.approx(1.0, abs=5e-3)
    assert table["output share of the gradient, first tenth"] == pytest.approx(0.7, abs=5e-3)
    assert table["validation loss, nats per decade of input scale"] == pytest.approx(0.1, abs=5e-3)


def test_a_claim_alone_needs_its_own_tables_alone() -> None:
    tables = known_tables()
    table = claims.verdicts({name: tables[name] for name in ("alignment", "neighbors")}, ("C1",))
    assert list(table["claim"]) == ["C1"] * 3


def test_unknown_claim_is_named() -> None:
    with pytest.raises(ValueError, match="C9"):
        claims.verdicts(known_tables(), ("C9",))


def test_sentence_says_verdict_interval_and_published_value() -> None:
    text = claims.sentence(claims.verdicts(known_tables(), ("C1",)), "quick")
    assert "C1 supported" in text and "quick scale" in text and "n = 3" in text and "0.249" in text
