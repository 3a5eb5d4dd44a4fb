"""The documents' tables and the committed figures belong to the committed tables."""

import re
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from tying_utils.base.names import LABELS
from tying_utils.experiments import figures
from tying_utils.experiments.public import Public
from tying_utils.pages import by_length, report
from tying_utils.study import Results, axis, profiles
from tying_utils.study.axis import Lengths

ROOT = Path(report.__file__).parents[2]


@pytest.fixture
def laptop(monkeypatch: pytest.MonkeyPatch) -> Results:
    monkeypatch.setenv("TYING_HOME", str(ROOT))
    return Results("laptop", only_read=True)


BLOCKS = {"benchmarks/README.md": ["benchmarks", "card"]}


@pytest.mark.parametrize(("name", "blocks"), BLOCKS.items())
def test_documents_hold_the_numbers_of_the_committed_tables(name: str, blocks: list[str], laptop: Results) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert re.findall(r"<!-- begin ([\w-]+):", text) == blocks
    assert report.filled(text, laptop) == text, f"{name} has drifted: make figures PROFILE=laptop"


def test_results_are_those_of_the_committed_tables(laptop: Results) -> None:
    text = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    assert report.results_page(laptop) == text, "RESULTS.md has drifted: make figures PROFILE=laptop"


def judged(values: pd.Series, null: float, claimed_above: bool, smallest: float, gained: pd.Series | None = None) -> str:
    """A verdict cell as the documents show it, by scipy and without the package; gained: what size gains the tied model."""
    if len(values) < 3:
        return f"{values.mean():.3f}"
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    word = "open" if low <= null <= high else "supported" if (low > null) == claimed_above else "refuted"
    if null - smallest < low and high < null + smallest:
        word = "equivalent"
    elif gained is not None:
        reach = stats.t.interval(0.95, len(gained) - 1, gained.mean(), stats.sem(gained))[1]
        word = word if reach < 0 else "not measurable"
    return f"**{word}** {values.mean():.3f} ({low:.3f} to {high:.3f})"


@pytest.mark.parametrize("corpus", profiles.PROFILES["laptop"])
def test_committed_verdicts_follow_from_the_committed_results(corpus: str) -> None:
    folder = ROOT / "data" / "results" / "laptop" / corpus
    table = {file.stem: pd.read_csv(file) for file in folder.glob("*.csv")}
    fits = table["alignment"].query("kind == 'orthogonal' and arm == 'tied'").pivot(index="seed", columns="source")
    early = table["gradients"].query("arm == 'tied' and step <= 0.1 * step.max()").groupby("seed")["output_share"].mean()
    lens = table["lens"].query("lens == 'tuned' and indexing == 'matched' and layer == 0")
    lens = lens.pivot(index="seed", columns="arm", values="kl_bits")
    losses = table["losses"].pivot(index="seed", columns="arm", values="validation_loss")
    rows = {
        "output bias, orthogonal, chance-corrected": (fits["corrected"]["output"] - fits["corrected"]["input"], 0, 0.05),
        "output share of the gradient, first tenth": (early, 0.5, 0.05),
        "lens KL at the input, tied - untied, bits": (lens["tied"] - lens["untied"], 0, 0.1),
        "validation loss, tied - untied, equal shape, nats": (losses["tied"] - losses["untied"], 0, 0.02),
    }
    lines = (ROOT / "RESULTS.md").read_text(encoding="utf-8").splitlines()
    lines = lines[next(n for n, line in enumerate(lines) if line.startswith("| Claim | Statistic | Python source")) :]
    column = lines[0].split(" | ")
    place = column.index(LABELS[corpus])
    for statistic, (values, null, smallest) in rows.items():
        assert len(values) == 5
        shown = next(line for line in lines if f"| {statistic} |" in line).split(" | ")[place]
        assert shown == judged(values, null, True, smallest), statistic


@pytest.mark.parametrize("place", [one.place for one in Lengths().places])
def test_committed_verdicts_by_length_follow_from_the_committed_results(place: str) -> None:
    """Position and losses at every length, from the CSV files by pandas and scipy alone."""
    folder = ROOT / "data" / "results" / "lengths" / place
    losses, poles = pd.read_csv(folder / "losses.csv"), pd.read_csv(folder / "poles.csv").query("~frequency_out")
    wide = losses.pivot_table(index=["tokens_per_weight", "seed"], columns="arm", values="validation_loss")
    keys = ["tokens_per_weight", "seed", "arm", "target"]
    by_source = poles.pivot_table(index=keys, columns="source", values="corrected")
    bias = (by_source["output"] - by_source["input"]).unstack(["arm", "target"])
    low, high = (bias["untied, second start", pole] for pole in ("input", "output"))
    rows = {
        "position of W between the poles": ((bias["tied", "tied"] - low) / (high - low), 0.5, 0.1),
        "validation loss, tied - untied, equal shape": (wide["tied"] - wide["untied"], 0, 0.02),
        "validation loss, tied - untied, equal parameters": (wide["equal parameters"] - wide["untied"], 0, 0.02),
        "validation loss, input x5 - tied": (wide["input x5"] - wide["tied"], 0, 0.02),
    }
    text = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    gained = wide["equal parameters"] - wide["tied"]
    for statistic, (values, null, smallest) in rows.items():
        for tokens, own in values.groupby("tokens_per_weight"):
            size = gained[tokens] if "equal parameters" in statistic else None
            assert f"{judged(own, null, True, smallest, size)}, n = {len(own)} |" in text, statistic


@pytest.mark.parametrize("profile", profiles.COMMITTED)
def test_committed_figures_belong_to_the_committed_tables(profile: str, laptop: Results) -> None:
    lengths = Lengths()
    checksums = laptop.checksums | Public(profile, only_read=True).checksums
    for name, drawing in figures.FIGURES.items():
        path = ROOT / "figures" / profile / f"{name}.png"
        corpora = [drawing.corpus] if drawing.corpus else [*laptop.studies]
        if drawing.corpus == axis.NAME:
            corpora = [one.place for one in lengths.places]
        known = lengths.checksums if drawing.corpus == axis.NAME else checksums
        measured = all(any(f"{corpus}/{table}" in known for corpus in corpora) for table in drawing.needs)
        assert path.exists() == path.with_suffix(".pdf").exists() == measured, path
        if not measured:
            continue
        tables = [f"{corpus}/{table}" for corpus in corpora for table in drawing.needs]
        expected = {table: known[table] for table in tables if table in known}
        assert figures.source(path) == expected, f"{path.name} has drifted: make figures PROFILE={profile}"


def test_the_summary_says_each_claim_in_words_with_its_number(laptop: Results) -> None:
    text = report.summary("laptop")
    assert (
        text.startswith("\nOf 24 comparisons at laptop scale, the first hundredth of training, ")
        and "✓ supported" in text.splitlines()[1]
    )
    frame = report.claims.verdicts(laptop, ("C5",)).query("id == 'equal_shape' and corpus == 'python'")
    row = frame.iloc[0]
    assert f"Python source       ✓ {row['estimate']:.3f} ({row['low']:.3f} to {row['high']:.3f})" in text
    assert "C5: Tying costs loss: validation loss, tied - untied, equal shape" in text


def test_an_unknown_block_is_named(laptop: Results) -> None:
    with pytest.raises(ValueError, match="weather"):
        report.filled("<!-- begin weather: -->\n<!-- end weather: -->", laptop)


def test_each_arm_at_its_best_rate_is_of_its_own_place_and_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """At d 64 the tied arm is best at twice the rate, at d 128 the untied one at half of it."""
    losses = {
        "packages, d 64": {0.5: (4.0, 4.4), 1.0: (3.9, 4.2), 2.0: (4.1, 4.0)},
        "packages, d 128": {0.5: (3.1, 3.6), 1.0: (3.3, 3.5)},
    }
    rows = [
        {"place": place, "tokens_per_weight": 1.3, "seed": 0, "arm": arm, "rate": rate, "validation_loss": loss}
        for place, by_rate in losses.items()
        for rate, both in by_rate.items()
        for arm, loss in zip(("untied", "tied", "input x5"), (*both, both[1] + 0.1), strict=True)
    ]
    monkeypatch.setattr(by_length, "Lengths", lambda: {"rates": pd.DataFrame(rows)})
    one = "{:+.3f} (one seed)".format
    assert by_length.best_rates(None).splitlines()[2:] == [  # type: ignore[arg-type]
        f"| packages, d 64 | 1.3 | ×0.5, ×1, ×2 | ×1 | ×2 | ×2 | {one(0.1)} | {one(0.3)} | {one(0.1)} | {one(0.1)} |",
        f"| packages, d 128 | 1.3 | ×0.5, ×1 | ×0.5 | ×1 | ×1 | {one(0.4)} | {one(0.2)} | {one(0.1)} | {one(0.1)} |",
    ]


def test_what_is_left_of_the_bias_and_what_a_layer_is_worth_follow_from_the_committed_results() -> None:
    """By pandas alone, at d 64: norm-match at 4 tokens per weight, and a first layer that is left out at 20."""
    folder, text = ROOT / "data" / "results" / "lengths" / "d64", (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    bias = {}
    for name, arm in (("poles", "tied"), ("remedy_poles", "norm-match")):
        own = pd.read_csv(folder / f"{name}.csv").query("arm == @arm and tokens_per_weight == 4 and ~frequency_out")
        wide = own.pivot(index="seed", columns="source", values="corrected")
        bias[arm] = wide["output"] - wide["input"]
    left = (bias["norm-match"] / bias["tied"]).dropna()
    assert len(left) == 3 and f"| 4 | {report.mean(left, '.3f')} |" in text
    rises = pd.read_csv(folder / "ablation.csv").query("tokens_per_weight == 20 and layer == 0 and component == 'block'")
    wide = rises.pivot(index="seed", columns=["how", "arm"], values="increase")
    gaps = (report.mean(wide[how, "tied"] - wide[how, "untied"], ".3f") for how in ("zero", "mean"))
    assert f"| packages, d 64 | 20 | layer 1 | {' | '.join(gaps)} |" in text
