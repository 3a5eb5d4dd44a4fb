"""The figure of the benchmarks, from their tidy tables alone; `python -m benchmarks` measures them."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from tying_utils.base import paths
from tying_utils.base.table_store import TableStore
from tying_utils.experiments import figures, style
from tying_utils.experiments.looks import BLUE, DOTTED, GREEN, GREY, ORANGE, PURPLE, Look
from tying_utils.experiments.style import TWO_COLUMNS
from tying_utils.experiments.tables import Tables, where

AXES = {
    "V": Look("V, tokens of the vocabulary", BLUE, "o"),
    "d": Look("d, width", ORANGE, "s"),
    "layers": Look("layers", GREEN, "^"),
    "tokens": Look("tokens a step", PURPLE, "D"),
}
_QUANTITIES = {"seconds": "time / time of the smallest", "memory": "memory / memory of the smallest"}
_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def store(quick: bool = False) -> TableStore:
    """Of the suite's tables, "ratios" and "growth"; `quick` runs keep theirs apart."""
    return TableStore(paths.results(_name(quick)))


def growth(tables: Tables) -> Figure:
    """How time and memory grow with each size, relative to the smallest, with their log-log slopes."""
    table = tables["growth"]
    table = table[table["device"] == table["device"].iloc[0]]  # one machine a figure: the one that was measured first
    whats, quantities = list(dict.fromkeys(table["what"])), [name for name in _QUANTITIES if name in set(table["quantity"])]
    titles = [*whats, *[""] * len(whats) * (len(quantities) - 1)]
    figure, panels = style.panels(TWO_COLUMNS, 2.3 * len(quantities) + 0.5, *titles, rows=len(quantities))
    for place, ax in enumerate(panels):
        what, quantity = whats[place % len(whats)], quantities[place // len(whats)]
        _panel(ax, where(table, what=what, quantity=quantity))
        ax.set_ylabel(_QUANTITIES[quantity] if place % len(whats) == 0 else "")
        if place >= len(panels) - len(whats):
            ax.set_xlabel("size / smallest size")
    looks = [look for name, look in AXES.items() if name in set(table["axis"])]
    style.legend(figure, [*looks, Look("in proportion", GREY, line=DOTTED)], columns=5)
    first = table[table["factor"] == 1].drop_duplicates("what").to_dict("records")
    smallest = [f"{row['what']} {', '.join(f'{axis} {row[axis]:g}' for axis in AXES if row[axis] > 0)}" for row in first]
    machine = f"{table['device'].iloc[0]}, {table['threads'].iloc[0]} threads"
    once = " (memory: once)" if "memory" in quantities else ""
    return style.small_print(
        figure,
        f"Sizes in turns, {table['rounds'].max()} rounds: median ratio to the smallest size, bars from quartile to "
        f"quartile{once}. Numbers: log-log slope over the sizes shown, with its 95 % t interval over rounds. "
        f"Smallest: {'; '.join(smallest)}. {machine}.",
    )


def _panel(ax: Axes, rows: Any) -> None:
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    handles = []
    for axis, look in AXES.items():
        own = where(rows, axis=axis)
        if own.empty:
            continue
        error = [own["ratio"] - own["low"], own["high"] - own["ratio"]]
        shape: dict[str, Any] = {"color": look.colour, "marker": look.marker, "markersize": 3.5, "linewidth": 1}
        ax.errorbar(own["factor"], own["ratio"], error, elinewidth=0.8, capsize=1.5, **shape)
        first = own.iloc[0]
        words = f"{axis} {first['slope']:.2f}"
        if first["rounds"] > 1:
            words += f" ({first['slope_low']:.2f} to {first['slope_high']:.2f})"
        handles.append(Look(words.replace("-", "−"), look.colour, look.marker).handle())
    factors = sorted(rows["factor"].unique())
    ax.plot(factors, factors, color=GREY, linestyle=DOTTED, linewidth=0.8, zorder=1)
    top = max(rows["high"].max(), factors[-1])
    ax.set_ylim(min(0.8, 0.9 * rows["low"].min()), top ** (1 + 0.17 * len(handles)) * 1.2)  # the slopes are above the curves
    ax.set_xticks(factors)
    for line in (ax.xaxis, ax.yaxis):
        line.set_major_formatter(_PLAIN)
        line.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(LogLocator(base=4 if top > 30 else 2))
    ax.legend(handles=handles, loc="upper left", fontsize=5.5, handlelength=1.4, borderaxespad=0.1)


def render(quick: bool = False) -> list[Path]:
    """Draw what was measured and save it as PDF and PNG; the paths written, none where there is no table yet."""
    held = store(quick)
    found = held.read("growth", lambda entry: True, keep=True)
    if found is None:
        return []
    with style.styled():
        figure = growth({"growth": found[0]})
    name = _name(quick)
    return figures.write(figure, paths.figures(name), "growth", {f"{name}/growth": held.checksums[f"{name}/growth"]})


def _name(quick: bool) -> str:
    return "benchmarks-quick" if quick else "benchmarks"
