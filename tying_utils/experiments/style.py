"""What figures share: panels at their printed size, curves with their seeds and intervals, legends and small print."""

import base64
import html
import io
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from matplotlib.transforms import offset_copy

from tying_utils.base.names import PYTHON
from tying_utils.experiments.looks import CORPORA, DOTTED, GREY, Look
from tying_utils.measures import statistics

STYLE = Path(__file__).with_name("paper.mplstyle")
ONE_COLUMN, TWO_COLUMNS = 3.35, 6.9  # inches


Draw = Callable[[Any], Figure]  # of `Tables`, or of what a gallery says it is at home in


@dataclass(frozen=True)
class Drawing:
    """What draws a figure, the tables that it reads, and the corpus that it is at home in (None: it is of all corpora)."""

    function: Draw
    needs: tuple[str, ...]
    corpus: str | None


class Gallery(dict[str, Drawing]):
    """Drawings by the name of their figure."""

    def reads(self, name: str, *needs: str, corpus: str | None = PYTHON) -> Callable[[Draw], Draw]:
        """Enter a function under the `name` of the figure that it draws from the tables called `needs`."""

        def register(function: Draw) -> Draw:
            self[name] = Drawing(function, needs, corpus)
            return function

        return register


class Picture(Figure):
    """A figure outside pyplot that a notebook shows once, as the value of a cell; its label is the text in its place.

    beside: the PNG of a committed figure that is shown beside it, where there is one.
    """

    beside: Path | None = None

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
        with io.BytesIO() as buffer:
            self.savefig(buffer, format="png", dpi=200)
            data = base64.b64encode(buffer.getvalue()).decode()
        width, height = self.get_size_inches() * 110
        metadata: dict[str, Any] = {"width": round(width), "height": round(height)}
        if words := str(self.get_label() or ""):
            metadata["alt"] = words
        shown = {"image/png": data}
        if self.beside:
            committed = base64.b64encode(self.beside.read_bytes()).decode()
            shown["text/html"] = _side_by_side({"Yours": data, "Committed (laptop)": committed}, words, width)
        return shown, {"image/png": metadata}


def _side_by_side(images: Mapping[str, str], alt: str, width: float) -> str:
    """Return HTML of PNGs in base64 by title: beside each other where both fit at four fifths of `width`, in pixels."""
    shown = "".join(
        f'<figure style="flex: 1 1 {0.8 * width:.0f}px; margin: 0"><figcaption>{title}</figcaption>'
        f'<img style="width: 100%" alt="{html.escape(alt)}" src="data:image/png;base64,{data}"></figure>'
        for title, data in images.items()
    )
    return f'<div style="display: flex; flex-wrap: wrap; gap: 1em">{shown}</div>'


def styled() -> AbstractContextManager[None]:
    """Return a context in which figures have the style of the paper's."""
    return style.context(["default", str(STYLE)])


def panels(width: float, height: float, *titles: str, rows: int = 1) -> tuple[Picture, list[Axes]]:
    """Return a figure with a panel for each title, lettered where there are several, and its panels."""
    figure = Picture(figsize=(width, height), layout="constrained")
    panels = list(figure.subplots(rows, -(-len(titles) // rows), squeeze=False).flat)
    for left_over in panels[len(titles) :]:
        left_over.remove()
    panels = panels[: len(titles)]
    for letter, ax, title in zip("abcdefgh", panels, titles, strict=False):
        ax.set_title(title)
        if len(titles) > 1:
            ax.set_title(letter, loc="left", fontweight="bold")
    return figure, panels


def finish(
    figure: Figure,
    frame: pd.DataFrame,
    looks: Iterable[Look | Artist],
    note: str = "",
    columns: int = 0,
    every: Sequence[str] = (),
    *,
    bars: bool = True,
    by: str = "corpus",
) -> Figure:
    """Put the legend above the panels, and small print below them: how many `seeds` there are, and `note`.

    bars: whether two seeds, too few for a band, have an interval all the same.
    """
    legend(figure, looks, columns)
    n = max(frame.groupby([*every])["seed"].nunique()) if every else frame["seed"].nunique()
    of_two = "; 95 % t interval at points only" if bars else ", no interval"
    shown = " (thin lines or dots), mean" if n > 1 else ""
    shown += {1: ", no interval", 2: of_two}.get(n, " with 95 % t interval")
    return small_print(figure, f"{seeds(frame, every, by=by)}{shown}. {note}")


def seeds(frame: pd.DataFrame, every: Sequence[str] = (), *, by: str = "corpus") -> str:
    """Return how many seeds each group of the columns `every` has: "n = 5 seeds", or a number for each value of `by`."""
    counts = {}
    for value, part in frame.groupby(by, sort=False) if by in frame else [("", frame)]:
        label = CORPORA[str(value)].label if value in CORPORA else str(value)
        counts[label] = part.groupby([*every])["seed"].nunique() if every else [part["seed"].nunique()]
    return counted(counts)


def counted(counts: Mapping[str, Iterable[int]]) -> str:
    """Return numbers of seeds in words: one for all, or each with the labels that it belongs to."""
    found: dict[str, list[str]] = {}
    for label, numbers in counts.items():
        found.setdefault(from_to(numbers), []).append(label)
    if len(found) == 1:
        return f"n = {(n := next(iter(found)))} seed{'s' * (n != '1')}"
    return "n = " + ", ".join(f"{n} ({', '.join(values)})" for n, values in found.items()) + " seeds"


def from_to(counts: Iterable[int]) -> str:
    """Return the least and the largest of `counts` in words, or the one number that they all are."""
    least, most = min(kept := [*counts]), max(kept)
    return f"{most}" if least == most else f"{least} to {most}"


def legend(figure: Figure, looks: Iterable[Look | Artist], columns: int = 0) -> None:
    """Put a legend of `looks` above the panels, in one row or in `columns`."""
    handles = [look.handle() if isinstance(look, Look) else look for look in looks]
    figure.legend(handles=handles, loc="outside upper center", ncols=columns or len(handles))


def small_print(figure: Figure, words: str, *, tight: bool = False) -> Figure:
    """Write `words` below the panels, with matplotlib's own distance of lines where `tight`, and return the figure."""
    lines = textwrap.fill(words, round(22 * figure.get_figwidth()))
    spacing: dict[str, Any] = {} if tight else {"linespacing": 1.3}
    figure.supxlabel(lines, x=0.01, ha="left", color="#555555", **spacing)
    return figure


def _interval(values: Any) -> tuple[float, float]:
    interval = statistics.mean_interval(values)
    return interval.low, interval.high


@contextmanager
def _spread(ax: Axes, seeds: int) -> Iterator[None]:
    """Let what is drawn within set the limits of `ax` only from three seeds up: an interval from two is too wide to."""
    limits = ax.dataLim.frozen()
    yield
    if seeds < 3:
        ax.dataLim.set(limits)


def curve(
    ax: Axes, frame: pd.DataFrame, x: str, y: str, look: Look, *, bars: bool = False, every: tuple[int, int] | None = None
) -> None:
    """Draw each seed thin, their mean, and its interval: a band (from three seeds up), or bars where the points are few."""
    import seaborn as sns  # here, since judging needs none of it, and it takes as long to import as pandas and matplotlib

    seeds, points = frame["seed"].nunique(), frame[x].nunique()
    common: dict[str, Any] = {"data": frame, "x": x, "y": y, "ax": ax, "color": look.colour, "legend": False}
    sns.lineplot(**common, units="seed", estimator=None, linewidth=0.5, alpha=0.45)
    spread: dict[str, Any] = {"errorbar": _interval if bars or seeds > 2 else None, "err_style": "bars" if bars else "band"}
    spread["err_kws"] = {"elinewidth": 0.8, "capsize": 1.5} if bars else {"alpha": 0.15, "linewidth": 0}
    every = every or ((0, 1) if points <= 25 else (points // 16, points // 8))  # first marker, and how many points on
    shape: dict[str, Any] = {"linestyle": look.line, "marker": look.marker, "markevery": every, "markeredgewidth": 0.4}
    if look.hollow:
        shape |= {"markerfacecolor": "white", "markeredgecolor": look.colour, "markeredgewidth": 0.8}
    elif look.marker in "PX*":  # slender: seaborn's white edges would eat them
        shape |= {"markeredgecolor": look.colour, "markersize": 4.5}
    with _spread(ax, seeds):
        sns.lineplot(**common, **spread, **shape)


def point(ax: Axes, x: float, values: pd.Series, look: Look) -> None:
    """Draw a small dot per seed, and beside them their mean with its interval."""
    interval = statistics.mean_interval(values)
    beside = offset_copy(ax.transData, ax.get_figure(root=True), x=-5.5, units="points")
    ax.plot(np.full(len(values), x), values, ".", color=look.colour, markersize=3, alpha=0.6, transform=beside)
    ax.plot(x, interval.mean, markersize=4.5, **look.mark)
    if len(values) > 1:
        with _spread(ax, len(values)):
            error = [[interval.mean - interval.low], [interval.high - interval.mean]]
            ax.errorbar(x, interval.mean, error, color=look.colour, elinewidth=1, capsize=2)


def row(ax: Axes, y: float, values: pd.Series, look: Look) -> None:
    """Draw the same across, in a row of a forest plot at height `y`: the dots of the seeds are below their mean."""
    interval = statistics.mean_interval(values)
    below = offset_copy(ax.transData, ax.get_figure(root=True), y=-3, units="points")
    ax.plot(values, np.full(len(values), y), ".", color=look.colour, markersize=2.5, alpha=0.6, transform=below)
    ax.plot(interval.mean, y, markersize=3.5, zorder=3, **look.mark)
    if len(values) > 1:
        with _spread(ax, len(values)):
            ax.plot([interval.low, interval.high], [y, y], color=look.colour, linewidth=1)


def chance(ax: Axes, at: float, rows: pd.DataFrame, half: float, *, across: bool = False) -> None:
    """Draw a short line at the mean chance level, with its 95 % band where the table has one; `across`: in a row at `at`."""
    fill, line = (ax.fill_betweenx, ax.vlines) if across else (ax.fill_between, ax.hlines)
    if rows.get("chance_low", pd.Series(np.nan)).notna().all():
        low, high = rows["chance_low"].mean(), rows["chance_high"].mean()
        fill([at - half, at + half], low, high, color=GREY, alpha=0.25, linewidth=0)
    line(rows["chance"].mean(), at - half, at + half, color=GREY, linewidth=1, linestyle=DOTTED)


def level(ax: Axes, y: float) -> None:
    """Draw a dotted line across at `y`: no effect, or chance."""
    ax.axhline(y, color=GREY, linewidth=1, linestyle=DOTTED)


def categories(ax: Axes, labels: Sequence[str]) -> None:
    """Set ticks with `labels` at 0, 1, 2, ..."""
    ax.set_xticks(range(len(labels)), labels)
    ax.set_xlim(-0.6, len(labels) - 0.4)
    ax.grid(visible=False, axis="x")


def named_rows(panels: Sequence[Axes], labels: Sequence[str]) -> None:
    """Name the rows 0, 1, 2, ... of forests from above, at the first of the panels that are side by side."""
    for ax in panels:
        ax.set_yticks(range(len(labels)), labels if ax is panels[0] else [""] * len(labels))
        ax.set_ylim(len(labels) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.grid(visible=False, axis="y")


def layers(ax: Axes, first: str, last: str, count: int) -> None:
    """Set ticks "first, 1, 2, ..., last" at 0 to `count`, thinned where there are many layers."""
    stride = 1 if count <= 6 else 2 if count <= 12 else 4
    inner = range(stride, count - stride + 1, stride)
    ax.set_xticks([0, *inner, count], [first, *map(str, inner), last])
    ax.set_xlabel("layer")


def scale_axis(ax: Axes, scales: Iterable[float], ylabel: str, path: str = "input") -> None:
    """Set one tick for each of `scales`, mark the ordinary tied arm, and label both axes."""
    places = sorted(set(scales))
    ax.set_xticks(places, [f"{scale:g}" for scale in places])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.axvline(1, color=GREY, linewidth=0.6, linestyle=DOTTED)
    ax.set(xlabel=f"{path} scale (1: ordinary tied)", ylabel=ylabel)


def reference(ax: Axes, values: pd.Series, look: Look) -> None:
    """Draw a condition that has no place on the x axis as level lines: each seed, their mean, its interval."""
    interval = statistics.mean_interval(values)
    for value in values:
        ax.axhline(value, color=look.colour, linewidth=0.5, alpha=0.45)
    ax.axhline(interval.mean, color=look.colour, linestyle=look.line)
    if len(values) > 2:
        ax.axhspan(interval.low, interval.high, color=look.colour, alpha=0.12, linewidth=0)
