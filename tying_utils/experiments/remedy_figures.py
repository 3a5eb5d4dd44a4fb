"""The figures of the remedies: loss against bias, and what each remedy changes, from tidy tables alone.

Looks as in the other figures; a remedy's colour and marker say what it acts on.
"""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tying_utils.base.names import AGAIN, TIED, UNTIED
from tying_utils.experiments import drawing, outcomes
from tying_utils.experiments.claims import Tables
from tying_utils.experiments.drawing import BLUE, CORPORA, GREY, LOOKS, ORANGE, PURPLE, TWO_COLUMNS, Look
from tying_utils.experiments.outcomes import EQUAL_SHAPE, MEASURES

FIGURES = drawing.Gallery()
_WEIGHS = Look("weighs the two gradients", BLUE, "o", "none")
_STEPS = Look("changes the optimizer's step", ORANGE, "s", "none")
_TABLES = Look("has other tables", PURPLE, "v", "none")
_POLES = {TIED: replace(LOOKS[TIED], line="none"), AGAIN: replace(LOOKS[UNTIED], label="untied, another start", line="none")}
_KINDS = {
    "coupled-adam": _STEPS,
    "table-rates": _STEPS,
    "projection": _TABLES,
    "spd-map": _TABLES,
    "factorised": _TABLES,
    "untie": _TABLES,
}
_NEEDS = ("remedy_losses", "remedy_alignment", "remedy_roles", "remedy_lens", "remedy_steps")
_BIAS = {"two-role": "purity gap, target − source role (fraction)"}
_LOSS = {"two-role": "loss over the floor (nats per token)"}


def _look(arm: str) -> Look:
    return _POLES.get(arm) or _KINDS.get(arm, _WEIGHS)


def _named(arm: str) -> str:
    return arm.replace(" x", " ×")


@FIGURES.reads("09_pareto", *_NEEDS, corpus=None)
def pareto(tables: Tables) -> Figure:
    """Loss against the bias of the input-use table, for every remedy between the tied and the untied pole."""
    frame = outcomes.outcomes(tables)
    remedies = [arm for arm in frame["arm"].unique() if arm not in _POLES]
    numbers = {arm: str(place) for place, arm in enumerate(remedies, 1)}
    cells = [*frame.groupby(["corpus", "shape"], sort=False).groups]
    corpora, shapes = (list(dict.fromkeys(part)) for part in zip(*cells, strict=True))
    titles = [f"{CORPORA[corpus].label}, {shape}" for corpus in corpora for shape in shapes]
    figure, panels = drawing.panels(TWO_COLUMNS, 2.6 * len(corpora) + 1.3, *titles, rows=len(corpora))
    places = dict(zip(itertools.product(corpora, shapes), panels, strict=True))
    for place in places.keys() - {*cells}:  # a corpus that is compared at equal shape alone
        places.pop(place).remove()
    for (corpus, shape), ax in places.items():
        part = drawing.where(frame, corpus=corpus, shape=shape)
        _front(ax, part)
        for arm in part["arm"].unique():
            _arm(ax, drawing.where(part, arm=arm), _look(arm), 6 if arm in _POLES else 4)
        ax.set(
            xlabel=_BIAS.get(corpus, "output bias of the input-use table"), ylabel=_LOSS.get(corpus, "loss (nats per token)")
        )
    figure.draw_without_rendering()  # from here on it is known what lies beside what on the page
    for (corpus, shape), ax in places.items():
        means = drawing.where(frame, corpus=corpus, shape=shape).groupby("arm")[["bias", "loss"]].mean()
        _number(ax, means, numbers)
    looks = [*_POLES.values(), _WEIGHS, _STEPS, _TABLES]
    handles = [look.handle() for look in looks] + [Line2D([], [], color=GREY, linewidth=0.8, label="Pareto front of the means")]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    words = ", ".join(f"{number} {_named(arm)}" for arm, number in numbers.items())
    n = " or ".join(str(n) for n in sorted({part["seed"].nunique() for _, part in frame.groupby("corpus")}))
    return drawing.small_print(
        figure, f"Large: mean; small: n = {n} seeds. An arm that is lowest in both is the front alone. {words}."
    )


def _arm(ax: Axes, rows: pd.DataFrame, look: Look, size: float) -> None:
    """A small dot a seed, and the mean."""
    common: dict[str, Any] = {"color": look.colour, "linestyle": "none"}
    ax.plot(rows["bias"], rows["loss"], ".", markersize=2.5, alpha=0.4, **common)
    ax.plot(rows["bias"].mean(), rows["loss"].mean(), marker=look.marker, markersize=size, markeredgecolor="white",
            markeredgewidth=0.4, **common)  # fmt: skip


def _number(ax: Axes, means: pd.DataFrame, numbers: dict[str, str]) -> None:
    """The number of each remedy where nothing else stands: beside its mean, or further out at the end of a thin line."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    point = figure.dpi / 72
    points = ax.transData.transform(means.to_numpy())
    taken = [*points]
    ways = [
        (r * math.cos(t), r * math.sin(t)) for r in (6.5, 11, 16, 22, 29) for t in np.linspace(0.6, 0.6 + math.tau, 13)[:-1]
    ]
    for arm, at in zip(means.index, points, strict=True):
        if arm not in numbers:
            continue
        free = (way for way in ways if all(np.hypot(*(at + np.multiply(way, point) - other)) > 6.8 * point for other in taken))
        way = next(free, ways[0])
        taken.append(at + np.multiply(way, point))
        line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 1.5}
        ax.annotate(
            numbers[arm],
            means.loc[arm].tolist(),
            xytext=way,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=6.5,
            color=_look(arm).colour,
            arrowprops=line if math.hypot(*way) > 8 else None,
        )


def _front(ax: Axes, part: pd.DataFrame) -> None:
    means = outcomes.front(part)
    corners = means[means["front"]].sort_values("bias")
    ax.step(corners["bias"], corners["loss"], where="post", color=GREY, linewidth=0.8, zorder=0)


@FIGURES.reads("09_changes", *_NEEDS, corpus=None)
def changes(tables: Tables) -> Figure:
    """What each remedy changes beside the tied arm at equal shape: bias, loss, early layers, and the time of a step."""
    frame = drawing.where(outcomes.outcomes(tables), shape=EQUAL_SHAPE)
    change = outcomes.changes(frame)
    arms = [arm for arm in frame["arm"].unique() if arm != TIED]
    titles = ("Output bias", "Validation loss", "Early lens KL", "Time of a step")
    figure, panels = drawing.panels(TWO_COLUMNS, 0.2 * len(arms) + 1.5, *titles)
    labels = ("change (score or fraction)", "change (nats per token)", "change (bits per token)", "ratio to the tied step")
    corpora = [corpus for corpus in CORPORA if (frame["corpus"] == corpus).any()]
    for ax, measure, xlabel in zip(panels, (*MEASURES, "step_ratio"), labels, strict=True):
        for place, corpus in enumerate(corpora):
            shift = 0.36 * (place - (len(corpora) - 1) / 2)
            look, own = CORPORA[corpus], drawing.where(frame, corpus=corpus)
            if measure == "step_ratio":
                rows = own.groupby("arm", sort=False)[measure].first()
                y = [arms.index(arm) + shift for arm in rows.index if arm != TIED]
                ax.plot(rows.drop(TIED), y, look.marker, color=look.colour, markersize=3)
            else:
                _differences(ax, own, drawing.where(change, corpus=corpus, measure=measure), arms, shift, look)
        ax.axvline(1 if measure == "step_ratio" else 0, color=GREY, linewidth=1, linestyle=drawing.DOTTED)
        ax.set(xlabel=xlabel, ylim=(len(arms) - 0.4, -0.6))
        ax.set_yticks(range(len(arms)), [_named(arm) for arm in arms] if ax is panels[0] else [""] * len(arms))
        ax.grid(visible=False, axis="y")
    looks = [CORPORA[corpus] for corpus in corpora]
    note = (
        "Differences from the tied arm within a seed. Bias: of the table that embeds the input; in the two-role language its "
    )
    return drawing.finish(figure, frame, looks, note + "purity gap. Time: one run each, in turns.")


def _differences(ax: Axes, own: pd.DataFrame, change: pd.DataFrame, arms: list[str], shift: float, look: Look) -> None:
    """A small dot a seed, the mean change, and its interval."""
    by_seed = own.pivot(index="seed", columns="arm", values=str(change["measure"].iloc[0]))
    for row in change.to_dict("records"):
        y = arms.index(row["arm"]) + shift
        values = (by_seed[row["arm"]] - by_seed[TIED]).dropna()
        ax.plot(values, [y] * len(values), ".", color=look.colour, markersize=2, alpha=0.5)
        ax.plot(row["change"], y, look.marker, color=look.colour, markersize=3)
        if row["seeds"] > 2:
            ax.plot([row["low"], row["high"]], [y, y], color=look.colour, linewidth=0.9)
