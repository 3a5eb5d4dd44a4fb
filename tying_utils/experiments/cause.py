"""Notebook 02, the cause of the bias: do the output path's larger gradient early in training and the tie cause it?"""

from dataclasses import replace

import pandas as pd
from matplotlib.figure import Figure

from tying_utils.base.names import TIED, UNTIED, scaled
from tying_utils.experiments import style
from tying_utils.experiments.judge import Evidence, Statistic
from tying_utils.experiments.looks import CORPORA, LOOKS, NO_EFFECT
from tying_utils.experiments.remedies import biases
from tying_utils.experiments.style import TWO_COLUMNS
from tying_utils.experiments.tables import OfCorpus, Tables, where

CLAIM = "C2 cause"
FIRST = 10  # steps that are called the first
EQUAL_NORMS, EARLY, LATE, THROUGHOUT = "norm-match", "early x5", "late x5", scaled(5)
FIGURES = style.Gallery()
# What the figure calls the interventions, in its order.
_SHOWN = {EQUAL_NORMS: "equal\nnorms", EARLY: "input\n×5,\nearly", LATE: "input\n×5,\nlate", THROUGHOUT: "input\n×5"}


def bias_left(tables: Tables) -> pd.DataFrame:
    """Return the fraction of the tied arm's output bias that remains: a row per seed, a column per arm; of one corpus.

    The bias is that of `remedies.outcomes`; below 0 a table leans to the input. No rows where no remedy was trained.
    """
    if not any(name in tables and len(tables[name]) for name in ("remedy_alignment", "remedy_roles")):
        return pd.DataFrame()
    by_arm = biases(tables).pivot(index="seed", columns="arm", values="bias")
    return by_arm.div(by_arm[TIED], axis=0)


def early_shares(tables: Tables, steps: int | None = None) -> pd.DataFrame:
    """Return the mean output share of the gradient over the first `steps` (None: the first tenth), of one corpus.

    A row per seed, a column per arm, fractions.
    """
    gradients = tables["gradients"]
    rows = gradients[gradients["step"] <= (steps or gradients["step"].max() / 10)]
    return rows.pivot_table(index="seed", columns="arm", values="output_share")


def displaced(lengths: Tables) -> pd.DataFrame:
    """Return each part's share of the way that a tied table went, over the whole of training: fractions that add up to 1.

    A row per place, part ("input path", "output path", "decay") and seed, a column per number of tokens per weight. `lengths`
    has the table displacement of the axis of length.
    """
    own = where(lengths["displacement"], arm=TIED)
    ends = own.groupby(["place", "seed", "tokens_per_weight"])["step"].transform("max")
    return own[own["step"] == ends].pivot(index=["place", "part", "seed"], columns="tokens_per_weight", values="share")


def evidence(tables: Tables) -> Evidence:
    """Yield the statistics of the story of the cause, from gradients and, where remedies were trained, from their bias.

    The story: as the tie adds both gradients, the larger one, that of the output path early in training, turns the table. Then
    most of the bias has to go where both norms are equal, and where the input path is scaled early; the early share has to be
    larger in a tied model than in an untied one, and above one half from the first steps on.
    """
    left = bias_left(tables)
    if EQUAL_NORMS in left:
        words, unit = "output bias that remains with equal gradient norms", "fraction of the tied arm's"
        yield Statistic("bias_left_equal_norms", CLAIM, words, unit, null=0.5, claimed="below"), left[EQUAL_NORMS]
    if {EARLY, LATE, THROUGHOUT} <= {*left}:
        taken, words = 1 - left, "what input x5 takes off the output bias, early alone"
        yield (
            Statistic("taken_early", CLAIM, f"{words} over throughout", "fraction", null=0.5),
            taken[EARLY] / taken[THROUGHOUT],
        )
        yield (
            Statistic("taken_early_late", CLAIM, f"{words} - late alone", "fraction of the tied arm's"),
            taken[EARLY] - taken[LATE],
        )
    words, tenth = "output share of the gradient", early_shares(tables)
    gap = Statistic("early_share_gap", CLAIM, f"{words}, first tenth, tied - untied", "fraction")
    yield gap, tenth[TIED] - tenth[UNTIED]
    first = Statistic("first_share", CLAIM, f"{words}, steps 1 to {FIRST}", "fraction", null=0.5)
    yield first, early_shares(tables, FIRST)[TIED]


@FIGURES.reads("02_cause", "gradients", "remedy_alignment", "remedy_roles", corpus=None)
def cause(tables: Tables) -> Figure:
    """Draw what remains of the output bias under each intervention, and the early output share of tied and untied models."""
    titles = "How much of the bias is left?", f"Gradient, steps 1 to {FIRST}", "Gradient, first tenth"
    figure, (left, *right) = style.panels(TWO_COLUMNS, 2.8, *titles)
    gradients = tables["gradients"]
    of_corpus = {corpus: OfCorpus(tables, corpus) for corpus in CORPORA if (gradients["corpus"] == corpus).any()}
    remains = {corpus: rows for corpus, own in of_corpus.items() if {EQUAL_NORMS, THROUGHOUT} & {*(rows := bias_left(own))}}
    shown = [arm for arm in _SHOWN if any(arm in rows for rows in remains.values())]
    for place, (corpus, rows) in enumerate(remains.items()):
        for x, arm in enumerate(shown):
            if arm in rows:
                style.point(left, x + _beside(place, len(remains)), rows[arm], CORPORA[corpus])
    for y in (0, 1):
        style.level(left, y)
    style.categories(left, [_SHOWN[arm] for arm in shown])
    lowest = min(rows[arm].min() for rows in remains.values() for arm in shown if arm in rows)  # dots set no limits
    left.set(xlabel="intervention", ylabel="output bias (fraction of tied)", ylim=(min(0, lowest) - 0.15, None))
    seen = []
    for ax, steps in zip(right, (FIRST, None), strict=True):
        for x, own in enumerate(of_corpus.values()):
            shares = early_shares(own, steps)[[TIED, UNTIED]]
            for place, arm in enumerate((TIED, UNTIED)):
                style.point(ax, x + _beside(place, 2), shares[arm], LOOKS[arm])
            seen += [*shares.min(), *shares.max(), 0.5]
        style.level(ax, 0.5)
        style.categories(ax, [CORPORA[corpus].label.replace(" ", "\n") for corpus in of_corpus])
        ax.set(xlabel="corpus", ylabel="output share (fraction)")
    for ax in right:
        ax.set_ylim(min(seen) - 0.05, max(seen) + 0.05)
    looks = [*(CORPORA[corpus] for corpus in remains), *(replace(LOOKS[arm], line="none") for arm in (TIED, UNTIED))]
    looks.append(replace(NO_EFFECT, label="tied (1) and none (0); equal norms"))
    of_remedies = style.counted({CORPORA[corpus].label: [len(rows)] for corpus, rows in remains.items()})
    note = f"In a {of_remedies}; the bias is the purity gap in the two-role language. Early: the first quarter, inside the "
    note += "warmup; late: the rest."
    return style.finish(figure, gradients, looks, note, columns=3)


def _beside(place: int, count: int) -> float:
    """Return how far from its tick the `place`-th of `count` is drawn."""
    return 0.4 * (place - (count - 1) / 2)
