"""Notebook 02, claim C2: early in training the output path dominates the tied table's gradient, and its Adam update."""

from dataclasses import replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from tying_utils.base.names import TIED
from tying_utils.experiments import style
from tying_utils.experiments.judge import Evidence, Statistic
from tying_utils.experiments.looks import BLUE, DASHED, GREY, LOOKS, NO_EFFECT, Look
from tying_utils.experiments.style import TWO_COLUMNS
from tying_utils.experiments.tables import Tables, where
from tying_utils.measures import statistics

WINDOW = 20  # steps of the rolling mean
FIGURES = style.Gallery()


def share_over(gradients: pd.DataFrame, first: float, last: float, column: str = "output_share", arm: str = TIED) -> pd.Series:
    """Return the mean output share by seed over the fraction `first` to `last` of training, of `arm`."""
    own = where(gradients, arm=arm)
    done = own["step"] / own["step"].max()
    return own[(done > first) & (done <= last)].groupby("seed")[column].mean()


def evidence(tables: Tables) -> Evidence:
    """Yield the statistics of C2 (gradients) and C2b (Adam updates), from the table gradients."""
    parts = {
        "early": ("first tenth", 0, 0.1, "0.703 over 1,000 steps, unlike norms"),
        "late": ("last tenth", 0.9, 1, "0.624 at 10,000 steps, unlike norms"),
    }
    for when, (words, first, last, published) in parts.items():
        label = f"output share of the gradient, {words}"
        gradient = Statistic(f"{when}_share", "C2", label, "fraction", null=0.5, published=published)
        yield gradient, share_over(tables["gradients"], first, last)
    for when, (words, first, last, _) in parts.items():
        update = Statistic(f"{when}_update_share", "C2b", f"output share of the Adam update, {words}", "fraction", null=0.5)
        yield update, share_over(tables["gradients"], first, last, "output_update_share")


def draw_share(ax: Axes, tied: pd.DataFrame, column: str, look: Look) -> None:
    """Draw the output share `column` by step, as a rolling mean, beside the level of equal norms."""
    style.curve(ax, rolled(tied, column), "step", column, look)
    style.level(ax, 0.5)
    ax.set(xlabel="step (optimizer)", ylabel="output share (fraction)", ylim=(0, 1))


def rolled(frame: pd.DataFrame, *columns: str, points: int = 300) -> pd.DataFrame:
    """Return rolling means by seed, thinned to about `points` steps, the last among them."""
    parts = []
    for _, rows in frame.sort_values("step").groupby("seed"):
        means = {column: statistics.rolling_mean(rows[column], WINDOW) for column in columns}
        parts.append(rows[["seed", "step"]].assign(**means).iloc[:: -max(1, len(rows) // points)])
    return pd.concat(parts, ignore_index=True)


@FIGURES.reads("02_gradients", "gradients")
def gradients(tables: Tables) -> Figure:
    """Draw Figure 4: both path gradients of the tied table, like with like and as published, and the Adam update."""
    tied = where(tables["gradients"], arm=TIED)
    figure, (left, middle, right) = style.panels(
        TWO_COLUMNS, 2.6, "Norm of each path", "Share of the gradient", "Share of Adam's update"
    )
    looks = {
        "input_norm": replace(LOOKS["input"], label="input path"),
        "output_norm": replace(LOOKS["output"], label="output path"),
        "published_input_norm": Look("input path as published", BLUE, "o", DASHED, hollow=True),
        "output_share": replace(LOOKS[TIED], label="output share"),
        "published_output_share": Look("share as published", GREY, "v", DASHED, hollow=True),
    }
    norms = [column for column in looks if column.endswith("norm")]
    left.set_yscale("log")
    for column in norms:
        style.curve(left, rolled(tied, column), "step", column, looks[column])
    left.set(xlabel="step (optimizer)", ylabel="gradient norm (Frobenius)")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter(NullFormatter())
    for column in ("published_output_share", "output_share"):
        draw_share(middle, tied, column, looks[column])
    draw_share(right, tied, "output_update_share", looks["output_share"])
    note = f"Tied arm, rolling mean of {WINDOW} steps. a: geometric mean of the seeds. "
    note += "As published: the input norm is of the activation gradient, the output norm of the weight gradient."
    equal = replace(NO_EFFECT, label="equal norms")
    return style.finish(figure, tied, [*looks.values(), equal], note, columns=3, bars=False)
