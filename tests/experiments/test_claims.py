"""Verdicts follow from tables whose answer is known."""

import itertools

import numpy as np
import pandas as pd
import pytest

from tying_utils.base.names import EQUAL, TIED, UNTIED, scaled
from tying_utils.experiments import claims, sizes
from tying_utils.study.profiles import SCALES

SEEDS = (0, 1, 2)
SCALED = tuple(scaled(scale) for scale in SCALES if scale != 1)
ARM_SCALE = {TIED: 1.0, UNTIED: 1.0} | {scaled(s): s for s in SCALES}


def known_tables(sign: float = 1.0) -> dict[str, pd.DataFrame]:
    """Tables in which every claim holds by construction (sign 1), fails (sign -1), or is lost in noise (sign 0)."""
    noise = np.random.default_rng(0)

    def value(mean: float, effect: float) -> float:
        return mean + sign * effect + noise.normal(0, 1e-3 if sign else 1.0)

    def labels(arm: str, seed: int) -> dict[str, object]:
        return {"corpus": "python", "arm": arm, "input_scale": ARM_SCALE.get(arm, 1.0), "seed": seed}

    def alignment(arms: tuple[str, ...]) -> pd.DataFrame:
        rows = []
        for arm in arms:
            for seed in SEEDS:
                for kind in ("orthogonal", "linear"):
                    decades = np.log10(ARM_SCALE[arm])
                    for source, effect in (("output", 0.2 - 0.1 * decades), ("input", 0.0)):
                        rows.append({**labels(arm, seed), "kind": kind, "source": source, "target": "tied"})
                        rows[-1] |= {"corrected": value(0.3, effect), "held_out": value(0.3, effect)}
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

    def of_sizes() -> pd.DataFrame:
        rows = []
        for seed, (width, cost) in itertools.product(SEEDS, ((32, 0.1), (128, 0.3))):
            for arm, layers in ((UNTIED, 4), (TIED, 4), (EQUAL, 4 + 128 // width)):
                tables = 2048 * width * (1 + (arm == UNTIED))
                weights = {"parameters": layers * 16 * width**2 + tables, "table_parameters": tables}
                loss = value(4.0, cost * (arm != UNTIED))
                rows.append({**labels(arm, seed), "d_model": width, "n_layers": layers, "validation_loss": loss, **weights})
        return pd.DataFrame(rows)

    def roles() -> pd.DataFrame:
        rows = []
        for seed, (arm, scale) in itertools.product(SEEDS, ARM_SCALE.items()):
            for agreement in (0.0, 1.0) if arm in (UNTIED, TIED) else (0.0,):
                over = value(0.2, 0.2 * (arm != UNTIED) * (1 - agreement))
                for table in ("input", "output") if arm == UNTIED else ("tied",):
                    lean = {"input": -0.2, "output": 0.2, "tied": 0.1 - 0.05 * np.log10(scale)}[table]
                    common = {**labels(arm, seed), "agreement": agreement, "output_scale": 1.0, "tied": arm != UNTIED}
                    if agreement:
                        common["arm"] = f"{arm}, agreement 1"
                    for role, side in (("source", -1), ("target", 1)):
                        purity = value(0.3, side * lean)
                        rows.append({**common, "table": table, "role": role, "purity": purity, "over_floor": over})
        return pd.DataFrame(rows)

    def transfer() -> dict[str, pd.DataFrame]:
        losses, forgetting, probes = [], [], []
        for arm, seed in itertools.product((UNTIED, TIED, scaled(5)), SEEDS):
            of = {**labels(arm, seed), "to": "english"}
            half = value(50, -20 * (arm != TIED))  # of the way down, by then
            losses += [{**of, "step": step, "loss": 5 - step / half, "bytes_per_token": 3.0} for step in range(0, 91, 10)]
            forgetting.append({**of, "before": 2.0, "after": 2.0 + value(1.0, -0.3 * (arm != TIED))})
            for table in ("input", "output") if arm == UNTIED else ("tied",):
                probed = {"table": table, "question": "category", "corrected": value(0.5, -0.2 * (arm == TIED))}
                probes.append({**labels(arm, seed), **probed})
        tables = {"losses": losses, "forgetting": forgetting, "probe": probes}
        return {f"transfer_{name}": pd.DataFrame(rows) for name, rows in tables.items()}

    steps = [(seed, step) for seed in SEEDS for step in range(1, 101)]
    shares = {"output_share": 0.2, "output_update_share": 0.1}
    return {
        "alignment": alignment((TIED,)),
        "neighbors": alignment((TIED,)).query("kind == 'linear'").drop(columns="kind"),
        "scaling_alignment": alignment(SCALED),
        "gradients": pd.DataFrame(
            {**labels(arm, seed), "step": step, **{name: value(0.5, effect * (arm == TIED)) for name, effect in shares.items()}}
            for arm in (UNTIED, TIED)
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
        "sizes": of_sizes(),
        "roles": roles(),
        "scaling_losses": losses(SCALED),
        "drift": pd.DataFrame(
            {**labels(UNTIED, seed), "table": table, "step": step, "to_start": value(0.5, 0.1 if table == "input" else 0)}
            for table in ("input", "output")
            for seed in SEEDS
            for step in (0, 5, 10, 50, 100)
        ),
        **transfer(),
    }


@pytest.mark.parametrize(("sign", "expected"), [(1, "supported"), (-1, "refuted")])
def test_every_claim_is_judged_by_the_side_its_interval_lies_on(sign: float, expected: str) -> None:
    table = claims.verdicts(known_tables(sign))
    named = {"C1", "C2", "C2b", "C3", "C3 lens", "C4", "C4 price", "C5", "C6", "roles", "C1 roles", "C4 roles", "C5 roles"}
    assert set(table["claim"]) == named | {"transfer", "C2 cause"}
    larger = table["id"] == "equal_parameters"  # its tied model of more weights has no lower loss than the other
    assert set(table["verdict"][~larger]) == {expected} and set(table["verdict"][larger]) == {"not measurable"}
    assert (table["low"] < table["estimate"]).all() and (table["estimate"] < table["high"]).all()
    assert (table["seeds"] == len(SEEDS)).all() and set(table["corpus"]) == {"python"}
    assert table["id"].is_unique and table["statistic"].is_unique and table["unit"].all()
    assert set(table[table["null"] != 0]["claim"]) == {"C2", "C2b", "C2 cause"} and set(table["null"]) == {0, 0.5}
    assert set(claims.HEADLINES) <= set(table["id"])


def test_noise_leaves_claims_open() -> None:
    verdicts = claims.verdicts(known_tables(0))["verdict"]
    assert (verdicts == "open").mean() > 0.7


def test_one_seed_gives_no_interval_and_no_verdict() -> None:
    tables = {name: table.query("seed == 0") for name, table in known_tables().items()}
    table = claims.verdicts(tables)
    assert set(table["verdict"]) == {""} and table["low"].isna().all()


def test_estimates_are_the_effects_put_in() -> None:
    table = claims.verdicts(known_tables()).set_index("statistic")["estimate"]
    assert table["output bias, orthogonal, chance-corrected"] == pytest.approx(0.2, abs=5e-3)
    assert table["output bias, orthogonal, per decade of input scale"] == pytest.approx(-0.1, abs=5e-3)
    assert table["lens KL at the input, tied - untied, bits"] == pytest.approx(1.0, abs=5e-3)
    assert table["output share of the gradient, first tenth"] == pytest.approx(0.7, abs=5e-3)
    assert table["validation loss, nats per decade of input scale"] == pytest.approx(0.1, abs=5e-3)
    assert table["validation loss, tied - untied, equal shape, nats"] == pytest.approx(0.1, abs=5e-3)
    decades = np.log10((4 * 16 * 128**2 + 2 * 2048 * 128) / (4 * 16 * 32**2 + 2 * 2048 * 32))
    assert table["loss gap at equal parameters, per decade of parameters"] == pytest.approx(0.2 / decades, abs=5e-3)
    assert table["purity of the untied input table, target - source role"] == pytest.approx(-0.4, abs=5e-3)
    assert table["the tied table's target - source purity per decade of input scale"] == pytest.approx(-0.1, abs=5e-3)
    assert table["the same where they agree (1) minus that"] == pytest.approx(-0.2, abs=5e-3)
    assert table["forgetting, nats, english, untied - tied"] == pytest.approx(-0.3, abs=5e-3)
    # The untied arm is where it is to be by step 30; the tied one is 50 / 30 times as slow.
    assert table["steps to the target loss, english, input x5 - tied"] == pytest.approx(30 - 50, abs=0.05)
    assert table["probe for the category, corrected, tied - untied input table"] == pytest.approx(-0.2, abs=5e-3)


def test_a_claim_alone_needs_its_own_tables_alone() -> None:
    tables = known_tables()
    table = claims.verdicts({name: tables[name] for name in ("alignment", "neighbors")}, ("C1",))
    assert list(table["claim"]) == ["C1"] * 5
    with pytest.raises(KeyError, match="gradients"):
        claims.verdicts({"alignment": tables["alignment"]}, ("C2",))


def test_each_corpus_has_rows_of_its_own_beside_the_others() -> None:
    python, other = known_tables(), known_tables(-1)
    both = {name: pd.concat([table, other[name].assign(corpus="text")]) for name, table in python.items()}
    table = claims.verdicts(both, ("C1", "C4"))
    assert list(table["corpus"]) == ["python", "text"] * (len(table) // 2)
    assert set(table.query("corpus == 'python'")["verdict"]) == {"supported"}
    assert set(table.query("corpus == 'text'")["verdict"]) == {"refuted"}


def test_sizes_are_compared_at_equal_shape_and_at_equal_weights() -> None:
    gaps = sizes.loss_gaps(known_tables()["sizes"])
    assert set(gaps["parameters_ratio"]) == {1.0}
    assert sorted(gaps["share"].unique()) == pytest.approx([1 / 3, 2 / 3])


def test_unknown_claim_is_named() -> None:
    with pytest.raises(ValueError, match="C9"):
        claims.verdicts(known_tables(), ("C9",))


@pytest.mark.parametrize("asked", [5, [["C1"]], ["C1", None], {"C1": 1}])
def test_what_are_no_claims_is_named(asked) -> None:
    with pytest.raises(ValueError, match="^claims: .* unknown; choose from C1, "):
        claims.verdicts({}, asked)


@pytest.mark.parametrize("results", [None, 5, [], "alignment"])
def test_what_holds_no_tables_is_named(results) -> None:
    with pytest.raises(ValueError, match="^results: a Study, a Results or a dict of tables is needed, got "):
        claims.verdicts(results)
