"""Notebook 00: every claim again at each length of training, and whether it grows, holds, fades or turns."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from tying_utils.base.names import EQUAL, TIED, TWO_ROLE, UNTIED, scaled
from tying_utils.experiments import alignment, evolution, gradients, position, style, tuned_lens
from tying_utils.experiments.judge import Evidence, Statistic, at_equal_parameters
from tying_utils.experiments.looks import ARMS, CORPORA, DASHED, DOTTED, LOOKS, NO_EFFECT, SOURCE, in_order
from tying_utils.experiments.style import TWO_COLUMNS
from tying_utils.experiments.tables import Tables, tuned, where
from tying_utils.measures import statistics
from tying_utils.study.axis import NAME, Axis, Lengths
from tying_utils.study.lengths import TOKENS_PER_WEIGHT

# The statistics that stand for the claims, by id.
HEADLINES = (
    "position",
    "output_bias",
    "early_share",
    "share_gap",
    "lens_gap",
    "early_ablation",
    "scaled_bias",
    "scaled_loss",
    "equal_shape",
    "equal_parameters",
)
FIGURES = style.Gallery()
PLACES = {
    "packages, d 64": replace(SOURCE, label="source of packages, d 64", line="-"),
    "packages, d 128": replace(SOURCE, label="source of packages, d 128", line=DASHED, hollow=True),
    "two-role": replace(CORPORA[TWO_ROLE], line=DOTTED),
}
_X5 = scaled(5)


class _At:
    """The tables of a place at one number of tokens per weight, by the names that a study has for them."""

    def __init__(self, axis: Axis, tokens_per_weight: float) -> None:
        self.axis, self.tokens_per_weight = axis, tokens_per_weight

    def __contains__(self, name: object) -> bool:
        return ("share" if name == "gradients" else name) in self.axis

    def __getitem__(self, name: str) -> pd.DataFrame:
        return where(self.axis["share" if name == "gradients" else name], tokens_per_weight=self.tokens_per_weight)


def evidence(tables: Tables) -> Evidence:
    """Yield every claim's statistics at one length."""
    yield from alignment.evidence(tables)
    yield from gradients.evidence(tables)
    early = {arm: gradients.share_over(tables["gradients"], 0, 0.1, arm=arm) for arm in (TIED, UNTIED)}
    words = "output share of the gradient, first tenth, tied - untied"
    yield Statistic("share_gap", "C2", words, "fraction"), early[TIED] - early[UNTIED]
    yield from tuned_lens.evidence(tables)
    bias = where(position.positions(tables["poles"]), frequency_out=False).set_index(["arm", "seed"])["bias"]
    words, unit = "output bias, orthogonal, input x5 - tied", "corrected alignment"
    yield Statistic("scaled_bias", "C4", words, unit, claimed="below"), bias[_X5] - bias[TIED]
    loss, unit = tables["losses"].set_index(["arm", "seed"])["validation_loss"], "nats per token"
    for name, claim, words, one, other in (
        ("scaled_loss", "C4 price", "validation loss, input x5 - tied", _X5, TIED),
        ("equal_shape", "C5", "validation loss, tied - untied, equal shape", TIED, UNTIED),
        ("equal_parameters", "C5", "validation loss, tied - untied, equal parameters", EQUAL, UNTIED),
        ("larger_tied", "C5 check", "validation loss, larger tied - tied", EQUAL, TIED),
    ):
        claimed = "below" if name == "larger_tied" else "above"
        statistic = Statistic(name, claim, words, unit, claimed=claimed)
        if name == "equal_parameters":
            statistic = at_equal_parameters(statistic, loss[EQUAL] - loss[TIED])
        yield statistic, loss[one] - loss[other]
    yield from evolution.evidence(tables)


def values(lengths: Lengths) -> pd.DataFrame:
    """Return each statistic's value by place, tokens_per_weight and seed, with its id and the `Statistic` itself."""
    if not lengths.places:
        raise ValueError(
            "lengths: no tables of the axis of length are here; they are committed under data/results/lengths, and "
            "`tying-utils lengths --measure` makes them of finished runs"
        )
    rows = []
    for axis in lengths.places:
        for length in sorted(axis["losses"]["tokens_per_weight"].unique()):
            for statistic, by_seed in evidence(_At(axis, length)):
                labels = {"place": axis.profile.name, "tokens_per_weight": length, "id": statistic.id, "statistic": statistic}
                rows += [{**labels, "seed": seed, "value": value} for seed, value in by_seed.items()]
    return pd.DataFrame(rows)


def verdicts(lengths: Lengths) -> pd.DataFrame:
    """Judge every statistic at every place and length: place, tokens_per_weight and the columns of `Statistic.row`."""
    return _judged(values(lengths))


def _judged(values: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (place, length, _), part in values.groupby(["place", "tokens_per_weight", "id"], sort=False):
        judged = part["statistic"].iloc[0].row(part["value"])
        rows.append({"place": place, "tokens_per_weight": length, **judged})
    return pd.DataFrame(rows)


def whole(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the seeds that have every length, of a table of one place."""
    lengths = table.groupby("seed")["tokens_per_weight"].transform("nunique")
    return table[lengths == lengths.max()]


def at_equal_loss(axis: Tables) -> pd.DataFrame:
    """Return `tuned_lens.gap_at_equal_loss` at the input, of the seeds of one place that have every length."""
    lens = whole(tuned(axis["lens"], 0))
    return tuned_lens.gap_at_equal_loss(lens[lens["arm"].isin([UNTIED, TIED])], axis["losses"]).dropna()


def trend(part: pd.DataFrame, null: float, smallest: float = 0.0) -> dict[str, Any]:
    """Return how one statistic changes with the length of training: part has tokens_per_weight, seed and value.

    slope, low, high: per decade of tokens per weight, mean over the seeds that have every length and its 95 % interval. trend:
    "turns" where the intervals at the shortest and the longest length lie on two sides of `null`; else, where the interval of
    the slope covers 0, "holds" if it is wholly nearer to 0 than `smallest` and "open" if not; else "grows" or "fades" as the
    mean goes away from `null` or towards it. "" below three seeds or two lengths.
    """
    wide = part.pivot_table(index="seed", columns="tokens_per_weight", values="value").dropna()
    if wide.shape[1] < 2 or len(wide) < statistics.ENOUGH:
        return {"slope": np.nan, "low": np.nan, "high": np.nan, "trend": ""}
    decades = np.log10(wide.columns.to_numpy(dtype=float))
    slope = statistics.mean_interval([statistics.slope(decades, row) for row in wide.to_numpy()])
    first, last = (statistics.mean_interval(wide[length]) for length in (wide.columns[0], wide.columns[-1]))
    if (first.high < null < last.low) or (last.high < null < first.low):
        word = "turns"
    elif slope.low <= 0 <= slope.high:
        word = "holds" if max(-slope.low, slope.high) < smallest else "open"
    else:
        word = "grows" if abs(last.mean - null) > abs(first.mean - null) else "fades"
    return {"slope": slope.mean, "low": slope.low, "high": slope.high, "trend": word}


def headlines(lengths: Lengths) -> pd.DataFrame:
    """Judge the headline of every claim and place at the longest length that has three seeds, all of them together.

    A row per id in `HEADLINES` and place: place, tokens_per_weight, the columns of `Statistic.row`, p_holm (the p value
    adjusted over all rows, see `statistics.holm`), earliest (tokens per weight), early_estimate, early_low, early_high,
    early_verdict (at that length) and trend. A row that is "supported" or "refuted" alone but not with the others is "open".
    """
    of = values(lengths)
    judged, rows = _judged(of), []
    for (place, name), part in judged[judged["id"].isin(HEADLINES)].groupby(["place", "id"], sort=False):
        enough = part[part["seeds"] >= statistics.ENOUGH]
        if enough.empty:
            continue
        last, first = (enough.sort_values("tokens_per_weight").iloc[place] for place in (-1, 0))
        own = where(of, place=place, id=name)
        own = own[own["tokens_per_weight"] <= last["tokens_per_weight"]]
        early = {f"early_{column}": first[column] for column in ("estimate", "low", "high", "verdict")}
        rows.append(
            {
                **last,
                "earliest": first["tokens_per_weight"],
                **early,
                "trend": trend(own, last["null"], own["statistic"].iloc[0].worth_naming)["trend"],
            }
        )
    frame = together(pd.DataFrame(rows))
    order = {name: number for number, name in enumerate(HEADLINES)}
    return frame.sort_values("id", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def together(frame: pd.DataFrame) -> pd.DataFrame:
    """Judge rows of `Statistic.row` together: with p_holm, and "open" where one does not stay supported or refuted."""
    adjusted = frame.assign(p_holm=statistics.holm(frame["p"]))
    fragile = (adjusted["p_holm"] >= 0.05) & frame["verdict"].isin(["supported", "refuted"])
    return adjusted.assign(verdict=frame["verdict"].mask(fragile, "open"))


def over_tokens(ax: Axes, ylabel: str, lengths: Iterable[float] = TOKENS_PER_WEIGHT) -> None:
    """Give `ax` the lengths of training as its x axis, one tick each."""
    ax.set_xscale("log")
    ax.set_xticks([*lengths], [f"{length:g}" for length in lengths])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="tokens per weight", ylabel=ylabel)


@FIGURES.reads(
    "00_lengths",
    *("losses", "poles", "alignment", "neighbors", "share", "lens", "residual", "drift"),
    corpus=NAME,
)
def over_lengths(lengths: Lengths) -> Figure:
    """Draw what becomes of each claim as training goes on, up to the paper's 20 tokens per weight."""
    panels = {
        "position": ("W from E′ (0) to U′ (1)", "position of W (fraction)"),
        "early_share": ("Output path's early share", "output share (fraction)"),
        "lens_gap": ("Lens, tied − untied", "KL at the input (bits per token)"),
        "scaled_bias": ("Bias, input ×5 − tied", "bias (corrected alignment)"),
        "equal_shape": ("Loss, tied − untied", "loss (nats per token)"),
        "equal_parameters": ("The same, equal parameters", "loss (nats per token)"),
    }
    frame = values(lengths)
    figure, axes = style.panels(TWO_COLUMNS, 4.7, *(title for title, _ in panels.values()), rows=2)
    for ax, (name, (_, unit)) in zip(axes, panels.items(), strict=True):
        rows = where(frame, id=name)
        for place, look in PLACES.items():
            if len(own := where(rows, place=place)):
                style.curve(ax, own, "tokens_per_weight", "value", look, bars=own["seed"].nunique() > 2)
        style.level(ax, rows["statistic"].iloc[0].null)
        over_tokens(ax, unit)
    shown = [PLACES[place] for place in PLACES if (frame["place"] == place).any()]
    note = "Below three seeds no interval. Each point is trained to its end. b: first tenth of training."
    frame["place"] = frame["place"].map({place: look.label for place, look in PLACES.items()})
    return style.finish(figure, frame, [*shown, NO_EFFECT], note, every=["place", "tokens_per_weight"], by="place")


@FIGURES.reads("00_deciles", "deciles", corpus=NAME)
def by_frequency(lengths: Lengths) -> Figure:
    """Draw where tying hurts: the loss, tied minus untied, from rare tokens to common ones, by length of training."""
    table = where(lengths["deciles"], place="packages, d 64")
    wide = table.pivot_table(index=["tokens_per_weight", "decile", "seed"], columns="arm", values="loss").reset_index()
    figure, axes = style.panels(TWO_COLUMNS, 2.7, "Tied − untied", "Tied, input ×5, − untied", "Larger tied − untied")
    shown = (0.4, 4.0, 20.0)
    looks = dict(zip(shown, in_order([f"{length:g} tokens per weight" for length in shown]), strict=True))
    for ax, arm in zip(axes, (TIED, _X5, EQUAL), strict=True):
        for length, look in looks.items():
            own = where(wide, tokens_per_weight=length)
            style.curve(ax, own.assign(gap=own[arm] - own[UNTIED]), "decile", "gap", look)
        style.level(ax, 0)
        ax.set(xlabel="tenth of text, rare to common", ylabel="loss gap (nats per token)", xticks=(1, 4, 7, 10))
    limits = [ax.get_ylim() for ax in axes]
    for ax in axes:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    drawn, note = table[table["tokens_per_weight"].isin(shown)], "Source of packages, d 64. Larger: as many weights as untied."
    return style.finish(figure, drawn, [*looks.values(), NO_EFFECT], note, every=["tokens_per_weight"], bars=False)


@FIGURES.reads("00_rates", "rates", corpus=NAME)
def rates(lengths: Lengths) -> Figure:
    """Draw the loss against the learning rate, arm by arm, at each width and length where rates were tried."""
    table = lengths["rates"]
    tried = [*table.groupby(["d_model", "tokens_per_weight"])]
    titles = (f"{length:g} tokens\nper weight, d {width}" for (width, length), _ in tried)
    figure, axes = style.panels(TWO_COLUMNS, 4.9, *titles, rows=2)
    looks = {**{arm: LOOKS[arm] for arm in (UNTIED, TIED)}, _X5: ARMS[_X5]}
    for ax, (_, own) in zip(axes, tried, strict=True):
        for arm, look in looks.items():
            style.curve(ax, where(own, arm=arm), "learning_rate", "validation_loss", look)
        ax.set_xscale("log")
        found = sorted(own["learning_rate"].unique())
        ax.set_xticks(found, [f"{1000 * rate:g}" for rate in found])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set(xlabel="rate (10⁻³ per step)", ylabel="loss (nats per token)")
    counts = ", ".join(str(own["seed"].nunique()) for _, own in tried)
    words = f"n = {counts} seeds in the order of the letters (thin lines), mean, no interval. Source of packages."
    style.legend(figure, looks.values())
    return style.small_print(figure, words)
