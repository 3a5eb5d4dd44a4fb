"""The figures of the claims at other architectures, widths and vocabularies (`effects`); looks as in the other figures."""

import textwrap
from collections.abc import Iterable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from tying_utils.experiments import drawing
from tying_utils.experiments.claims import Tables
from tying_utils.experiments.drawing import BLACK, BLUE, DASHED, DOTTED, GREY, ORANGE, PURPLE, TWO_COLUMNS, Look
from tying_utils.experiments.effects import EFFECTS, effects

FIGURES = drawing.Gallery()
_LOOKS = ((BLUE, "o", "-"), (BLACK, "D", DASHED), (ORANGE, "s", DOTTED), (PURPLE, "^", "-"))
_BOTH = ("output_bias", "early_share", "early_update_share", "lens_gap", "bias_change", "price", "equal_shape")
_TRENDS = _BOTH[:6]


def _needs(group: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{group}_{name}" for name in ("alignment", "share", "lens", "losses", *names))


def _words(name: str, width: int) -> str:
    return textwrap.fill(EFFECTS[name].words, width)


def _forest(frame: pd.DataFrame, names: Iterable[str], by: str, looks: dict[Any, Look], height: float) -> Figure:
    """A panel an effect and a row a place, its marks by the column `by`; a line stands where there is no effect."""
    names, places = [*names], list(dict.fromkeys(frame["place"]))
    figure, panels = drawing.panels(TWO_COLUMNS, height, *(EFFECTS[name].claim for name in names), rows=2)
    series = [key for key in looks if key in set(frame[by])]
    for at, (ax, name) in enumerate(zip(panels, names, strict=True)):
        for (place, key), rows in frame.dropna(subset=name).groupby(["place", by], sort=False):
            beside = 0.4 * (series.index(key) / (len(series) - 1) - 0.5) if by == "corpus" and len(series) > 1 else 0
            drawing.row(ax, -places.index(str(place)) - beside, rows[name], looks[key])
        ax.axvline(EFFECTS[name].null, color=GREY, linewidth=1, linestyle=DOTTED)
        ax.set(xlabel=_words(name, 26), ylim=(0.3 - len(places), 0.6), yticks=[-row for row in range(len(places))])
        ax.set_yticklabels(places if at % 4 == 0 else [])
        ax.tick_params(axis="y", length=0)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.margins(x=0.1)
    note = "Dotted: no effect (of a share: one half). Trained on equal numbers of tokens."
    return drawing.finish(figure, frame, [looks[key] for key in series], note)


def _vocabularies(frame: pd.DataFrame, line: bool = True) -> dict[int, Look]:
    kinds = zip(sorted(frame["vocab_size"].unique()), _LOOKS, strict=False)
    return {v: Look(f"V {v}", colour, marker, kind if line else "none") for v, (colour, marker, kind) in kinds}


@FIGURES.reads("10_architectures", *_needs("architecture", "roles"), corpus=None)
def architectures(tables: Tables) -> Figure:
    """C1 to C5 for five architectures on two corpora: each effect with its seeds and 95 % interval."""
    frame = effects(tables, "architecture")
    return _forest(frame, ("output_bias", "purity_gap", *_BOTH[1:]), "corpus", drawing.CORPORA, 4.6)


@FIGURES.reads("10_grid", *_needs("grid"))
def grid(tables: Tables) -> Figure:
    """C1 to C5 for OLMo over widths and vocabularies: each effect with its seeds and 95 % interval."""
    frame = effects(tables, "grid")
    looks = _vocabularies(frame, line=False)
    return _forest(frame, (*_BOTH, "equal_parameters"), "vocab_size", looks, 1.6 + 0.32 * frame["place"].nunique())


def _widths(ax: Axes, frame: pd.DataFrame) -> None:
    ax.set_xscale("log")
    places = sorted(frame["d_model"].unique())
    ax.set_xticks(places, [str(place) for place in places])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("width d")


@FIGURES.reads("10_sizes", *_needs("grid"))
def sizes(tables: Tables) -> Figure:
    """C1 to C4 against the width of the model, a line a vocabulary."""
    frame = effects(tables, "grid")
    looks = _vocabularies(frame)
    figure, panels = drawing.panels(TWO_COLUMNS, 4.6, *(EFFECTS[name].claim for name in _TRENDS), rows=2)
    for ax, name in zip(panels, _TRENDS, strict=True):
        for at, (vocabulary, look) in enumerate(looks.items()):
            rows = drawing.where(frame, vocab_size=vocabulary)
            beside = rows["d_model"] * 1.03 ** (at - (len(looks) - 1) / 2)  # so that the bars stand apart
            drawing.curve(ax, rows.assign(width=beside), "width", name, look, bars=True)
        drawing.level(ax, EFFECTS[name].null)
        _widths(ax, frame)
        ax.set_ylabel(_words(name, 28))
    return drawing.finish(figure, frame, looks.values(), "Dotted: no effect (of a share: one half).")


@FIGURES.reads("10_loss_gap", *_needs("grid"))
def loss_gap(tables: Tables) -> Figure:
    """Loss, tied less untied, by the untied tables' share of all parameters, at equal shape and at equal parameters."""
    frame = effects(tables, "grid")
    looks = _vocabularies(frame)
    figure, panels = drawing.panels(TWO_COLUMNS, 2.8, "Equal shape", "Equal parameters")
    for ax, name in zip(panels, ("equal_shape", "equal_parameters"), strict=True):
        for vocabulary, look in looks.items():
            rows = drawing.where(frame, vocab_size=vocabulary).dropna(subset=name)
            drawing.curve(ax, rows, "share", name, look, bars=True)
        drawing.level(ax, 0)
        ax.set(xlabel="share of parameters in the untied tables (fraction)", xlim=(0, 1))
        ax.set_ylabel("loss, tied − untied (nats per token)")
    note = "A line a vocabulary, from wide (left) to narrow models (right). Above the dotted line the tied model is worse."
    return drawing.finish(figure, frame, looks.values(), note)
