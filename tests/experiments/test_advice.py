"""What is measured nearest to a model: found by hand, by distances that behave as such, and never stretched in silence."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tying_utils.experiments import advice, figures, grid, on_card, places, style
from tying_utils.experiments.advice import NEAR, SHAPE, SIZE, advise, cases, distances
from tying_utils.experiments.shares import Parameters
from tying_utils.experiments.tables import where
from tying_utils.study.axis import Lengths
from tying_utils.training import budget
from tying_utils.training.config import TrainConfig

ROOT = Path(advice.__file__).parents[2]
OURS: dict[str, Any] = {"vocab_size": 2048, "d_model": 64, "n_layers": 4}
WEIGHTS = 524_288
PUBLIC = pd.DataFrame(
    {
        "model": ["small", "half", "same", "large"],
        "tied": [True, True, False, False],
        "parameters": [1e6, 5e8, 1e9, 1e10],
        "share_tied": [0.5, 0.2, 0.1, 0.02],
        "share_untied": [0.6, 0.3, 0.15, 0.04],
    }
)


@pytest.fixture(scope="module")
def committed() -> Any:
    """The gaps of the committed tables, with the tables of the axis of length."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TYING_HOME", str(ROOT))
        lengths = Lengths()
        yield advice.measured(places.results("laptop", only_read=True), lengths), lengths


def row(length: float, weights: int = WEIGHTS, share: float = 0.5, **other: Any) -> dict[str, Any]:
    shape = {"corpus": "packages", **OURS, "budget": SHAPE, "larger": "", "seeds": 3, "verdict": "open"}
    gap = {"estimate": -0.1, "low": -0.2, "high": 0.0}
    return {**shape, **gap, "tokens_per_weight": length, "parameters": weights, "share": share, **other}


def test_every_gap_that_was_measured_is_there_once(committed: Any) -> None:
    found, lengths = committed
    assert not found.duplicated(["corpus", *OURS, "tokens_per_weight", "budget", "larger"]).any()
    assert set(found["corpus"]) == {"packages", "two-role", "python", "wikitext-2"}
    assert set(found["budget"]) == {SHAPE, SIZE} and found["estimate"].notna().all()
    losses = where(lengths["losses"], place="packages, d 64", tokens_per_weight=20.0).set_index(["arm", "seed"])[
        "validation_loss"
    ]
    at20 = where(found, corpus="packages", d_model=64, tokens_per_weight=20.0).set_index("budget")
    assert at20.loc[SHAPE, "estimate"] == pytest.approx((losses["tied"] - losses["untied"]).mean())
    assert at20.loc[SIZE, "estimate"] == pytest.approx((losses["equal parameters"] - losses["untied"]).mean())
    assert (at20.loc[SHAPE, "parameters"], at20.loc[SHAPE, "share"]) == (WEIGHTS, 0.5)
    twice = where(found, corpus="python", vocab_size=2048, d_model=128, n_layers=4, budget=SHAPE)
    assert [*twice["seeds"]] == [5], "of sizes and grid the one with more seeds"


def test_weights_are_those_that_a_run_here_has() -> None:
    advised = advise(pd.DataFrame([row(1.0)]), **OURS, tokens=WEIGHTS)
    config = TrainConfig(tied=False, vocab_size=2048, d_model=64, n_layers=4)
    assert advised.parameters == budget.parameters(config) == WEIGHTS
    assert advised.parameters - advised.added == budget.parameters(config.replace(tied=True))
    assert (advised.share_untied, advised.share_tied, advised.tokens_per_weight) == (0.5, pytest.approx(1 / 3), 1.0)


def test_the_nearest_is_found_by_hand() -> None:
    rows = [row(1.0), row(20.0, estimate=0.3, low=0.2, high=0.4, verdict="supported"), row(20.0, weights=8 * WEIGHTS)]
    table = pd.DataFrame([*rows, row(4.0, budget=SIZE, larger="wider")])
    advised = advise(table, **OURS, tokens=10 * WEIGHTS)
    shape, size = (where(advised.nearest, budget=budget).iloc[0] for budget in (SHAPE, SIZE))
    assert (shape["tokens_per_weight"], shape["distance"]) == (20.0, pytest.approx(0.30103, abs=1e-5))
    assert size["length"] == pytest.approx(-0.39794, abs=1e-5)
    assert advised.sentence.startswith("At equal shape, measured near this (source of packages, V 2048, d 64, 4 layers, 20 ")
    assert "0.30 nats per token (0.20 to 0.40, 3 seeds), the untied model is better" in advised.sentence
    other = advise(table, **OURS, tokens=10 * WEIGHTS, memory=True).sentence
    assert other.startswith("At equal parameters") and "tied wider" in other and "−0.10" in other and "unresolved" in other


def test_of_rows_equally_far_the_one_with_more_seeds() -> None:
    table = pd.DataFrame([row(1.0), row(1.0, seeds=5, corpus="python"), row(1.0, seeds=4, corpus="wikitext-2")])
    assert advise(table, **OURS, tokens=WEIGHTS).nearest["corpus"].iloc[0] == "python"


def test_what_has_no_verdict_is_taken_only_where_nothing_has_one() -> None:
    near, far = row(1.0, seeds=2, verdict=""), row(4.0, corpus="python")
    assert advise(pd.DataFrame([near, far]), **OURS, tokens=WEIGHTS).nearest["corpus"].iloc[0] == "python"
    words = advise(pd.DataFrame([near]), **OURS, tokens=WEIGHTS).sentence
    assert "2 seeds), too few seeds for a verdict" in words


def test_what_is_too_far_is_said_to_be_with_how_far_each_way() -> None:
    table = pd.DataFrame([row(1.0)])
    assert "measured near this (" in advise(table, **OURS, tokens=5 * WEIGHTS).sentence
    words = advise(table, **OURS, tokens=6 * WEIGHTS).sentence
    assert "nothing measured near this: the nearest is source of packages" in words
    assert "with 6 times fewer tokens per weight. There: tied" in words
    words = advise(table, **{**OURS, "n_layers": 400}, tokens=404 * WEIGHTS // 8).sentence
    assert "100 times higher odds of the tables' share" in words and "50 times fewer weights" in words
    assert "tokens per weight." not in words
    assert advise(table, **OURS, tokens=WEIGHTS, memory=True).sentence == "Nothing measured at equal parameters."


def test_nothing_is_near_the_models_that_people_use(committed: Any) -> None:
    for name, sizes in cases().items():
        for memory in (False, True):
            words = advise(committed[0], **sizes, memory=memory).sentence
            assert ("nothing measured near this" in words) == ("trained here" not in name)


models = st.tuples(st.floats(0.001, 0.999), st.floats(1e-3, 1e6), st.floats(1e3, 1e13))


def apart(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    share, length, weights = one
    table = pd.DataFrame({"share": [share], "tokens_per_weight": [length], "parameters": [weights]})
    return float(distances(table, *other)["distance"].iloc[0])


@given(models, models, models)
def test_distances_are_distances(a: Any, b: Any, c: Any) -> None:
    assert apart(a, a) == pytest.approx(0, abs=1e-9)
    assert apart(a, b) == pytest.approx(apart(b, a)) and apart(a, b) >= 0
    assert apart(a, c) <= apart(a, b) + apart(b, c) + 1e-9


@given(st.integers(8, 10**6), st.integers(8, 10**5), st.integers(1, 200), st.integers(1, 10**14))
def test_the_nearest_is_never_farther_than_any_other(V: int, d: int, layers: int, tokens: int) -> None:
    table = pd.DataFrame(
        [row(length, weights, share) for length in (0.1, 20.0) for weights in (10**5, 10**7) for share in (0.1, 0.7)]
    )
    advised = advise(table, vocab_size=V, d_model=d, n_layers=layers, tokens=tokens)
    all_of_them = distances(table, advised.share_untied, advised.tokens_per_weight, advised.parameters)["distance"]
    assert advised.nearest["distance"].iloc[0] == pytest.approx(all_of_them.min())
    assert ("nothing measured near" in advised.sentence) == (advised.nearest["distance"].iloc[0] > NEAR)
    assert 0 < advised.share_tied < advised.share_untied < 1


@pytest.mark.parametrize("name", ["vocab_size", "d_model", "n_layers", "tokens"])
@pytest.mark.parametrize("value", [0, -3, 2.5, "4", True])
def test_bad_input_is_refused(name: str, value: Any) -> None:
    good: dict[str, Any] = {**OURS, "tokens": 1000}
    with pytest.raises(ValueError, match=rf"{name}: an integer of at least 1 is needed, got {value!r}"):
        advise(pd.DataFrame([row(1.0)]), **good | {name: value})


@pytest.mark.parametrize("bad", [{"tokens": 10**400}, {"vocab_size": 10**18}, {"d_model": 10**9}, {"memory": "x"}])
def test_what_no_model_is_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(bad))}: (an integer below 1,000,000,000|True or False)"):
        advise(pd.DataFrame([row(1.0)]), **{**OURS, "tokens": 1000} | bad)
    most = 10**9 - 1
    for sizes in ((1, 1, 1), (most, 1, 1), (1, most, most), (most, most, most)):
        for tokens in (1, 10**18 - 1):
            shape = dict(zip(("vocab_size", "d_model", "n_layers"), sizes, strict=True))
            assert advise(pd.DataFrame([row(1.0)]), **shape, tokens=tokens).sentence


@pytest.mark.parametrize("table", [None, [], pd.DataFrame({"share": [0.5]})])
def test_what_is_no_table_of_gaps_is_refused(table: Any) -> None:
    with pytest.raises(ValueError, match=r"^measured: the table of `measured` is needed, got .* without \['budget'"):
        advise(table, **OURS, tokens=1000)


def test_a_share_that_has_no_odds_and_a_count_of_none_are_refused() -> None:
    for share in (0, 1, 1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match="^share: a fraction between 0 and 1"):
            distances(pd.DataFrame([row(1.0)]), share, 1.0, 1e6)
    for count in (0, -1, 2.5):
        with pytest.raises(ValueError, match="^count: an integer of at least 1"):
            advice.peers(PUBLIC, 10**9, count)  # type: ignore[arg-type]


def test_the_exercise_says_how_far_the_nearest_gap_is(committed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of notebook 12, in whose words the factors stand."""
    monkeypatch.setenv("TYING_HOME", str(ROOT))
    found = advice.measured(places.results("laptop", only_read=True), committed[1], on_card.found()[1])
    nearest = advise(found, **cases()["1B, as OLMo, 20 tokens per weight"]).nearest.iloc[0]
    factors = {name: 10 ** abs(nearest[name]) for name in ("weights", "odds", "length")}
    assert factors == {name: pytest.approx(said, rel=0.1) for name, said in {"weights": 600, "odds": 5, "length": 1}.items()}


def test_peers_are_public_models_of_about_the_size() -> None:
    found = advice.peers(PUBLIC, 10**9)
    assert [*found["model"]] == ["half", "same"] and [*found["is"]] == ["tied", "untied"] and [*found["share"]] == [0.2, 0.15]
    assert advice.described(found) == "half tied, 20 %; same untied, 15 %"
    assert advice.described(advice.peers(PUBLIC, 10**14)) == "none of those listed"
    assert [*advice.peers(PUBLIC, 10**9, count=1)["model"]] == ["same"]


def test_a_table_of_cases_and_of_one_model(committed: Any) -> None:
    table = advice.of_cases(committed[0], PUBLIC)
    assert [*table["model"]] == [*cases()] and table.notna().all(axis=None)
    facts = advise(committed[0], **OURS, tokens=WEIGHTS).table().set_index("of this model")["is"]
    assert facts["untying adds"] == "131,072 weights, 33.3 %" and facts["tokens per weight"] == "1"
    assert facts["weights, untied"] == "524,288, 50 % of them in two tables" and facts["nearest at equal shape"].endswith(
        "near"
    )


def test_the_verdict_says_each_length_and_the_rare_tokens(committed: Any) -> None:
    gaps, lengths = committed
    told = advice.verdicts(gaps, advice.rare(lengths))
    assert told.groupby(["budget", "trained on"]).ngroups == 9 and told["length"].iloc[-1] == "20 tokens per weight"
    assert "20 tokens per weight (n = " in grid.grid(told, "laptop", rows=("budget", "trained on"), columns="length").to_html()
    rare = advice.rare(lengths)
    own = where(lengths["deciles"], place="packages, d 64", decile=1, tokens_per_weight=20.0).set_index(["arm", "seed"])["loss"]
    found = where(rare, place="packages, d 64", tokens_per_weight=20.0)["estimate"].iloc[0]
    assert found == pytest.approx((own["tied"] - own["untied"]).mean())


def test_the_figure_is_drawn_and_counts_seeds(committed: Any) -> None:
    figure = figures.draw("12_gaps", committed[1])
    assert [ax.get_title() for ax in figure.axes] == ["Does untying pay at equal shape?", "… and at equal parameters?"]
    assert all(ax.get_xlabel() and ax.get_ylabel() for ax in figure.axes) and "n = " in figure.get_supxlabel()
    counts = committed[1]["losses"].groupby(["corpus", "place", "tokens_per_weight"])["seed"].nunique()
    by = {advice.LOOKS[str(corpus)].label: part for corpus, part in counts.groupby("corpus", sort=False)}
    assert figure.get_supxlabel().startswith(style.counted(by))


def test_shares_are_counted_by_the_one_rule() -> None:
    advised = advise(pd.DataFrame([row(1.0)]), vocab_size=50304, d_model=2048, n_layers=16, tokens=10**9)
    assert advised.counted == Parameters(16 * 16 * 2048**2, 50304 * 2048, tied=False)
    assert advised.share_tied == pytest.approx(0.0875473, rel=1e-5), "as OLMo-1B's among the public models"
