"""What the causes of the bias come to: on tables whose answers are known, and on the committed ones."""

import itertools

import matplotlib
import numpy as np
import pandas as pd
import pytest
from synthetic_tables import synthetic

from tying_utils.base.names import PYTHON, TIED, TWO_ROLE, UNTIED, WIKITEXT
from tying_utils.experiments import cause, figures, remedies
from tying_utils.experiments.tables import OfCorpus
from tying_utils.study import Results

matplotlib.use("Agg")
# Of each arm the bias, in units of a seed's own: by the story, and as it would be if nothing of it held.
STORY = {TIED: 1.0, "norm-match": 0.1, "early x5": 0.2, "late x5": 0.8, "input x5": 0.1}
OTHER = {TIED: 1.0, "norm-match": 0.9, "early x5": 0.9, "late x5": 0.4, "input x5": 0.3}


def made(biases: dict[str, float], tied: float, untied: float, corpus: str = PYTHON) -> dict[str, pd.DataFrame]:
    """Tables in which arms have these biases and output shares; a seed has a size of its own."""
    gradients, alignment, roles = [], [], []
    for seed, wobble in enumerate((-0.01, 0.0, 0.01)):
        for arm, share in ((TIED, tied + wobble / 2), (UNTIED, untied - wobble / 2)):
            step = np.arange(1, 201)
            late = {"corpus": corpus, "arm": arm, "seed": seed, "step": step, "output_share": np.where(step <= 20, share, 9.0)}
            gradients.append(pd.DataFrame(late))
        for arm, bias in biases.items():
            half = (0.1 + 0.05 * seed) * (bias + wobble * (arm != TIED)) / 2
            labels = {"corpus": corpus, "arm": arm, "seed": seed}
            for source, role, sign in (("input", "source", -1), ("output", "target", 1)):
                alignment.append({**labels, "source": source, "target": "tied", "corrected": 0.5 + sign * half})
                roles.append({**labels, "table": "tied", "role": role, "purity": 0.5 + sign * half})
    of_bias = {"remedy_roles": roles} if corpus == TWO_ROLE else {"remedy_alignment": alignment}
    return {"gradients": pd.concat(gradients)} | {name: pd.DataFrame(rows) for name, rows in of_bias.items()}


def test_the_last_step_of_a_tied_run_says_what_moved_its_table():
    rows = []
    for (length, seed, arm), way in itertools.product(
        [(0.4, 0, TIED), (0.4, 1, TIED), (4.0, 0, TIED), (4.0, 0, UNTIED)], (0, 1)
    ):
        last = 10 if length < 1 else 40
        for step, share in ((1, 0.5), (last, length / 10 + seed / 100)):
            part = {"part": ("input path", "output path")[way], "share": share if way == 0 else 1 - share}
            rows.append({"place": "p", "tokens_per_weight": length, "seed": seed, "arm": arm, "step": step, **part})
    found = cause.displaced({"displacement": pd.DataFrame(rows)})
    own = found.reset_index().query("part == 'input path'")
    assert own[0.4].tolist() == pytest.approx([0.04, 0.05]) and own[4.0].tolist() == pytest.approx([0.4, np.nan], nan_ok=True)
    sums = found.groupby("seed").sum(min_count=2).to_numpy()
    assert sums[np.isfinite(sums)].tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("corpus", [PYTHON, TWO_ROLE])
@pytest.mark.parametrize(
    ("biases", "tied", "untied", "verdict"),
    [(STORY, 0.7, 0.6, "supported"), (OTHER, 0.4, 0.45, "refuted")],
)
def test_the_story_is_judged_by_what_it_predicts(corpus, biases, tied, untied, verdict):
    found = {statistic.id: (statistic, values) for statistic, values in cause.evidence(made(biases, tied, untied, corpus))}
    assert list(found) == ["bias_left_equal_norms", "taken_early", "taken_early_late", "early_share_gap", "first_share"]
    rows = {name: statistic.row(values) for name, (statistic, values) in found.items()}
    assert {row["verdict"] for row in rows.values()} == {verdict} and {row["seeds"] for row in rows.values()} == {3}
    assert {row["claim"] for row in rows.values()} == {cause.CLAIM} and all(row["unit"] for row in rows.values())
    taken = {arm: 1 - bias for arm, bias in biases.items()}
    expected = {
        "bias_left_equal_norms": biases["norm-match"],
        "taken_early": taken["early x5"] / taken["input x5"],
        "taken_early_late": taken["early x5"] - taken["late x5"],
        "early_share_gap": tied - untied,
        "first_share": tied,
    }
    assert {name: row["estimate"] for name, row in rows.items()} == pytest.approx(expected, abs=1e-3)


def test_without_remedies_the_gradients_are_judged_alone():
    tables = {"gradients": made(STORY, 0.7, 0.6)["gradients"]}
    assert [statistic.id for statistic, _ in cause.evidence(tables)] == ["early_share_gap", "first_share"]
    elsewhere = OfCorpus(made(STORY, 0.7, 0.6) | {"gradients": tables["gradients"].assign(corpus=WIKITEXT)}, WIKITEXT)
    assert [statistic.id for statistic, _ in cause.evidence(elsewhere)] == ["early_share_gap", "first_share"]
    few = made({TIED: 1.0, "norm-match": 0.5, "late x5": 0.5}, 0.7, 0.6)
    assert [statistic.id for statistic, _ in cause.evidence(few)][:2] == ["bias_left_equal_norms", "early_share_gap"]


@pytest.fixture(scope="module")
def laptop() -> Results:
    return Results("laptop", only_read=True, progress=False)


def test_the_committed_tables_say_what_the_bias_does_not_come_of(laptop: Results):
    corpora = (PYTHON, WIKITEXT, TWO_ROLE)
    rows = {(c, s.id): s.row(values) for c in corpora for s, values in cause.evidence(OfCorpus(laptop, c))}
    found = {key: [round(row[name], 3) for name in ("estimate", "low", "high")] for key, row in rows.items()}
    assert found[PYTHON, "bias_left_equal_norms"] == [0.921, 0.920, 0.923]
    assert found[PYTHON, "taken_early"] == [0.168, 0.102, 0.234]
    assert found[PYTHON, "taken_early_late"] == [-0.220, -0.256, -0.183]
    assert found[TWO_ROLE, "bias_left_equal_norms"] == [0.789, 0.324, 1.255]
    gaps = [found[corpus, "early_share_gap"] for corpus in corpora]
    assert gaps == [[-0.002, -0.037, 0.033], [0.008, -0.009, 0.025], [0.011, -0.007, 0.028]]
    first = [found[corpus, "first_share"] for corpus in corpora]
    assert first == [[0.476, 0.461, 0.491], [0.490, 0.479, 0.502], [0.577, 0.527, 0.626]]
    verdicts = {key: row["verdict"] for key, row in rows.items()}
    assert {verdicts[PYTHON, name] for name in ("bias_left_equal_norms", "taken_early", "taken_early_late")} == {"refuted"}
    assert {verdicts[corpus, "early_share_gap"] for corpus in corpora} == {"equivalent"}
    assert {verdicts[corpus, "first_share"] for corpus in (PYTHON, WIKITEXT)} == {"equivalent"}
    # By other code: the change of the bias beside the tied arm, and what each schedule takes off.
    tables = {name: laptop[name] for name in laptop.studies[PYTHON].names if name.startswith("remedy_")}
    python = {name: rows[rows["corpus"] == PYTHON] for name, rows in tables.items()}
    change = remedies.changes(remedies.outcomes(python)).query("measure == 'bias' and shape == @remedies.EQUAL_SHAPE")
    changes = change.set_index("arm")[["change", "low", "high"]].to_dict("index")
    assert {name: round(value, 3) for name, value in changes["norm-match"].items()} == {
        "change": -0.034,
        "low": -0.035,
        "high": -0.033,
    }
    tied = remedies.biases(python).query("arm == @TIED")["bias"].mean()
    taken = {arm: round(-changes[arm]["change"] / tied, 2) for arm in ("early x5", "late x5", "input x5")}
    assert taken == {"early x5": 0.05, "late x5": 0.27, "input x5": 0.32}


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_figure_shows_each_seed_and_fits_its_page(seeds: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(figures, "FIGURES", cause.FIGURES)
    known = synthetic(seeds)
    drawn = figures.draw("02_cause", {name: known[name] for name in cause.FIGURES["02_cause"].needs})
    assert f"n = {seeds} seed" in drawn.get_supxlabel()
    assert all(ax.get_ylabel() and ax.get_xlabel() for ax in drawn.axes)
    drawn.draw_without_rendering()
    texts = [*drawn.legends[0].get_texts(), *drawn.texts, *(ax.title for ax in drawn.axes)]
    texts += [axis.label for ax in drawn.axes for axis in (ax.xaxis, ax.yaxis)]
    for box in (text.get_window_extent() for text in texts if text.get_text()):
        assert drawn.bbox.x0 <= box.x0 and box.x1 <= drawn.bbox.x1 and drawn.bbox.y0 <= box.y0 and box.y1 <= drawn.bbox.y1
    for ax in drawn.axes:
        ticks = [label.get_window_extent() for label in ax.get_xticklabels()]
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(ticks))
        low, high = ax.get_ylim()
        dots = [line for line in ax.lines if line.get_marker() == "."]
        assert dots and all(len(np.asarray(line.get_ydata())) == seeds for line in dots)
        assert all(low <= value <= high for line in dots for value in np.asarray(line.get_ydata()))
