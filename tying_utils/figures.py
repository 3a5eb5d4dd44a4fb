"""Tidy tables to figures at their printed size; nothing here trains or measures.

Every figure shows each seed as a thin line or a small dot, their mean, and the 95 % t interval of that mean. A table or an
arm has one colour, marker and line in all figures (`LOOKS`), told apart in grey as well.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from tying_utils import claims, files, paths, profiles, published
from tying_utils.claims import Tables
from tying_utils.measures import statistics
from tying_utils.profiles import SCALED, SHARED_START, TIED, UNTIED

STYLE = Path(__file__).with_name("paper.mplstyle")
ONE_COLUMN, TWO_COLUMNS = 3.35, 6.9  # inches
WINDOW = 20  # steps of the rolling mean


@dataclass(frozen=True)
class Look:
    """How one table, arm or pair is drawn, and what the legend calls it."""

    label: str
    colour: str
    marker: str
    line: Any = "-"


BLUE, ORANGE, GREEN, BLACK, GREY = "#0173b2", "#de8f05", "#029e73", "#000000", "#777777"
DASHED = (0, (4, 1.5))
LOOKS = {
    "input": Look("untied input E", BLUE, "o"),
    "output": Look("untied output U", ORANGE, "s"),
    "tied": Look("tied W", BLACK, "D"),
    TIED: Look("tied", BLACK, "D"),
    UNTIED: Look("untied", GREEN, "^", DASHED),
}
_SHADES = sns.color_palette("plasma", 8).as_hex()[1:6]
LOOKS |= {
    arm: Look(arm.replace("x", "×"), shade, marker)
    for arm, shade, marker in zip(SCALED, _SHADES, ("v", "<", ">", "P", "X"), strict=True)
}
_PAIRS = {
    ("input", "tied"): replace(LOOKS["input"], label="E–W"),
    ("output", "tied"): replace(LOOKS["output"], label="U–W"),
    ("input", "output"): Look("E–U", GREY, "^"),
}
_PUBLISHED = Look("published (OLMo-1B)", BLACK, "d")


class Picture(Figure):
    """A figure outside pyplot that a notebook shows once, as the value of a cell."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        with io.BytesIO() as buffer:
            self.savefig(buffer, format="png", dpi=200)
            width, height = self.get_size_inches() * 110
            return buffer.getvalue(), {"width": round(width), "height": round(height)}


@dataclass(frozen=True)
class Drawing:
    """What draws a figure, and the tables that it reads."""

    function: Callable[[Tables], Figure]
    needs: tuple[str, ...]


FIGURES: dict[str, Drawing] = {}


def _reads(name: str, *needs: str) -> Callable[[Callable[[Tables], Figure]], Callable[[Tables], Figure]]:
    def register(function: Callable[[Tables], Figure]) -> Callable[[Tables], Figure]:
        FIGURES[name] = Drawing(function, needs)
        return function

    return register


# What repeats in every figure


def _panels(
    width: float, height: float, *titles: str, rows: int = 1, widths: Sequence[float] | None = None
) -> tuple[Picture, list[Axes]]:
    """A figure with a panel for each title, lettered where there are several."""
    figure = Picture(figsize=(width, height), layout="constrained")
    columns = len(titles) // rows
    panels = list(figure.subplots(rows, columns, squeeze=False, width_ratios=widths).flat)
    for letter, ax, title in zip("abcdef", panels, titles, strict=False):
        if len(titles) > 1:
            ax.set_title(letter, loc="left", fontweight="bold")
        ax.set_title(title)
    return figure, panels


def _finish(figure: Figure, frame: pd.DataFrame, looks: Sequence[Look | Line2D], note: str = "", columns: int = 0) -> Figure:
    """The legend above the panels and the small print below them, which says how many seeds there are."""
    handles = [look if isinstance(look, Line2D) else _handle(look) for look in looks]
    figure.legend(handles=handles, loc="outside upper center", ncols=columns or len(handles))
    n = frame["seed"].nunique()
    seeds = f"n = {n} seeds, each thin or small; mean with 95 % t interval." if n > 1 else "n = 1 seed, no interval."
    figure.supxlabel(f"{seeds} {note}".strip(), x=0.01, ha="left", color="#555555", linespacing=1.3)
    return figure


def _handle(look: Look, **changes: Any) -> Line2D:
    style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "linestyle": look.line, "label": look.label}
    return Line2D([], [], **(style | {"markersize": 3.5} | changes))


_HOLLOW: dict[str, Any] = {"markerfacecolor": "white", "linestyle": "none"}
_PUBLISHED_HANDLE = _handle(_PUBLISHED, **_HOLLOW)
_CHANCE_HANDLE = Line2D([], [], color=GREY, linewidth=1, linestyle=(0, (1, 1)), label="chance (rows permuted)")


def _interval(values: Any) -> tuple[float, float]:
    interval = statistics.mean_interval(values)
    return interval.low, interval.high


def _curve(ax: Axes, frame: pd.DataFrame, x: str, y: str, look: Look, *, bars: bool = False, hollow: bool = False) -> None:
    """Each seed thin, their mean, and its interval: a band, or bars where the points are few."""
    common: dict[str, Any] = {"data": frame, "x": x, "y": y, "ax": ax, "color": look.colour, "linestyle": look.line}
    sns.lineplot(**common, units="seed", estimator=None, linewidth=0.5, alpha=0.45, legend=False)
    if bars:
        spread: dict[str, Any] = {"err_style": "bars", "err_kws": {"elinewidth": 0.8, "capsize": 1.5}}
    else:
        spread = {"err_style": "band", "err_kws": {"alpha": 0.15, "linewidth": 0}}
    points = frame[x].nunique()
    every = 1 if points <= 25 else (points // 16, points // 8)
    face = {"markerfacecolor": "white", "markeredgecolor": look.colour} if hollow else {}
    sns.lineplot(**common, errorbar=_interval, marker=look.marker, markevery=every, legend=False, **spread, **face)


def _point(ax: Axes, x: float, values: pd.Series, look: Look) -> None:
    """A small dot a seed, and beside them their mean with its interval."""
    interval = statistics.mean_interval(values)
    ax.plot(np.full(len(values), x - 0.16), values, ".", color=look.colour, markersize=3, alpha=0.6)
    error = [[interval.mean - interval.low], [interval.high - interval.mean]]
    bars = None if len(values) == 1 else error
    ax.errorbar(x, interval.mean, bars, color=look.colour, marker=look.marker, markersize=4.5, elinewidth=1, capsize=2)


def _chance(ax: Axes, x: float, rows: pd.DataFrame) -> None:
    """A short line at the mean chance level, with its 95 % band where the table has one."""
    if "chance_low" in rows and rows["chance_low"].notna().all():
        ax.fill_between([x - 0.35, x + 0.35], rows["chance_low"].mean(), rows["chance_high"].mean(), color=GREY, alpha=0.25, lw=0)
    ax.hlines(rows["chance"].mean(), x - 0.35, x + 0.35, color=GREY, linewidth=1, linestyle=(0, (1, 1)))


def _categories(ax: Axes, labels: Sequence[str]) -> None:
    ax.set_xticks(range(len(labels)), labels)
    ax.set_xlim(-0.6, len(labels) - 0.4)
    ax.grid(visible=False, axis="x")


def _scaled(tables: Tables, name: str) -> pd.DataFrame:
    """The table and its scaled arms; the untied pair, which stands in both, once."""
    return pd.concat([tables[name], tables[f"scaling_{name}"]], ignore_index=True).drop_duplicates()


def _tuned(lens: pd.DataFrame, arm: str, indexing: str = "matched", kind: str = "tuned") -> pd.DataFrame:
    return lens[(lens["arm"] == arm) & (lens["indexing"] == indexing) & (lens["lens"] == kind)]


def _layers(ax: Axes, last: int, first: str = "input", final: str = "output") -> None:
    """Ticks "input, 1, 2, ..., output", thinned where there are many layers."""
    stride = 1 if last <= 6 else 2 if last <= 12 else 4
    inner = [layer for layer in range(stride, last, stride) if stride == 1 or layer <= last - stride]
    ax.set_xticks([0, *inner, last], [first, *map(str, inner), final])
    ax.set_xlabel("layer")


def _scale_axis(ax: Axes) -> None:
    ticks = profiles.SCALES
    ax.set_xticks(ticks, [f"{scale:g}" for scale in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.axvline(1, color=GREY, linewidth=0.6, linestyle=(0, (1, 1)))
    ax.set_xlabel("input scale (1: ordinary tied)")


def _reference(ax: Axes, values: pd.Series, look: Look) -> None:
    """A level line for a condition without a scale: each seed thin, their mean, its interval as a band."""
    interval = statistics.mean_interval(values)
    for value in values:
        ax.axhline(value, color=look.colour, linewidth=0.5, alpha=0.45, linestyle=look.line)
    ax.axhline(interval.mean, color=look.colour, linestyle=look.line)
    if len(values) > 1:
        ax.axhspan(interval.low, interval.high, color=look.colour, alpha=0.12, linewidth=0)


def _rolled(frame: pd.DataFrame, *columns: str, points: int = 300) -> pd.DataFrame:
    """Rolling means by seed, thinned to about `points` steps, the last among them."""
    parts = []
    for _, rows in frame.sort_values("step").groupby("seed"):
        means = {column: statistics.rolling_mean(rows[column], WINDOW) for column in columns}
        parts.append(rows[["seed", "step"]].assign(**means).iloc[:: -max(1, len(rows) // points)])
    return pd.concat(parts, ignore_index=True)
