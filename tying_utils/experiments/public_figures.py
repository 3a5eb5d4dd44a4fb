"""Figures of the public checkpoints, or of their miniatures, each beside what the paper published.

There is one model of each kind, so the intervals are over tokens (bootstrap), not over seeds. Looks as in the other figures.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from tying_utils.base.names import TIED, UNTIED
from tying_utils.experiments import published, style
from tying_utils.experiments.looks import CHANCE, DARK, DASHED, DOTTED, GREY, LOOKS, PAIRS, TABLES, W_WITH, Look
from tying_utils.experiments.style import TWO_COLUMNS
from tying_utils.experiments.tables import Tables, where

HOME, RED = "miniatures", "#cc3311"
FIGURES = style.Gallery()
_PUBLISHED = Look("published", DARK, "d", "none", hollow=True)
_HOLLOW: dict[str, Any] = {"marker": "d", "markerfacecolor": "white", "linestyle": "none", "markersize": 4}
_SERIES = {
    r"Pythia": Look("Pythia", GREY, "o", "none"),
    r"OLMo-(?!2-)": Look("OLMo", GREY, "v", "none"),
    r"OLMo-2-": Look("OLMo 2", GREY, "P", "none"),
    r"Qwen3": Look("Qwen3", GREY, "s", "none", hollow=True),
}


def _families(table: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(table["family"]))


@FIGURES.reads("08_alignment", "alignment", "neighbors", "spectral", corpus=HOME)
def alignment(tables: Tables) -> Figure:
    """Draw Tables 1 and 5 and the spectral distances of three families: each pair of tables beside chance and the published."""
    own = {kind: where(tables["alignment"], kind=kind) for kind in ("orthogonal", "linear")}
    own |= {"KNN@10": tables["neighbors"], "spectral": tables["spectral"]}
    titles = {
        "orthogonal": ("Orthogonal map", "mean row cosine"),
        "linear": ("Linear map", "mean row cosine"),
        "KNN@10": ("Ten neighbours", "overlap (fraction)"),
        "spectral": ("Spectral distance (low is near)", "distance (relative spectral norm)"),
    }
    families = _families(tables["neighbors"])
    names = [name for family in families for name in (family, *(look.label.replace("\n", " ") for look in PAIRS.values()))]
    height = 0.36 * len(names) + 1.4
    figure, panels = style.panels(TWO_COLUMNS, height, *(title for title, _ in titles.values()), rows=2)
    for ax, (kind, (_, label)) in zip(panels, titles.items(), strict=True):
        for place, name in enumerate(names):
            if name in families:  # the heading of the pairs that follow
                rows = where(own[kind], family=name)
                for below, (pair, look) in enumerate(PAIRS.items(), 1):
                    _score(ax, place + below, where(rows, source=pair[0], target=pair[1]), look)
        ax.set(xlabel=label, xlim=(0, None) if kind == "spectral" else (-0.05, 1))
    for row in (panels[:2], panels[2:]):
        style.named_rows(row, names)
        for label in row[0].get_yticklabels():
            if label.get_text() in families:
                label.set_fontweight("bold")
    _miniature(panels, tables)
    looks = [Look("measured", DARK, "o", "none"), Look("held out", DARK, "x", "none"), _PUBLISHED, CHANCE]
    style.legend(figure, looks)
    words = "Bars: 95 % bootstrap interval over tokens. No orthogonal map joins tables of unlike width. "
    return style.small_print(figure, words + _whose(tables))


def _score(ax: Axes, y: float, rows: pd.DataFrame, look: Look) -> None:
    """Draw one pair in a row: its value with its interval, held out, chance, and what was published."""
    if rows.empty:
        ax.text(0.02, y, "none", transform=ax.get_yaxis_transform(), va="center", fontsize=6, color=GREY)
        return
    row = rows.iloc[0]
    style.chance(ax, y, rows, 0.4, across=True)
    if "low" in row:
        ax.plot([row["low"], row["high"]], [y, y], color=look.colour, linewidth=1)
    ax.plot(row["value"], y, markersize=3.5, **look.mark)
    if "held_out" in row:
        ax.plot(row["held_out"], y + 0.3, color=look.colour, marker="x", markersize=3)
    if pd.notna(row["published"]):
        ax.plot(row["published"], y - 0.25, color=look.colour, **_HOLLOW)


def _miniature(panels: Sequence[Axes], tables: Any) -> None:
    """Write MINIATURE across each panel where miniatures were measured, so that no copy of it passes for the public models."""
    if _of(tables) == HOME:
        for ax in panels:
            words: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 13, "fontweight": "bold", "color": "#dcdcdc"}
            ax.text(0.5, 0.5, "MINIATURE", transform=ax.transAxes, rotation=20, zorder=0.5, **words)


def _of(tables: Any) -> str:
    return getattr(getattr(tables, "profile", None), "corpus", HOME)


def _whose(tables: Any, beside: str = ", published for the public models") -> str:
    """Say in words which models were measured."""
    return f"Measured on miniatures{beside}." if _of(tables) == HOME else "Measured on the public models."


@FIGURES.reads("08_cosines", "cosines", "alignment", corpus=HOME)
def cosines(tables: Tables) -> Figure:
    """Draw Figure 1 of three families: per-token cosines of the tied table with the linear images of E and of U."""
    table = tables["cosines"]
    figure, panels = style.panels(TWO_COLUMNS, 2.3, *_families(table))
    for ax, family in zip(panels, _families(table), strict=True):
        for source in ("input", "output"):
            rows, look = where(table, family=family, source=source), LOOKS[source]
            ax.plot(rows["cosine"], rows["density"], color=look.colour, linestyle=look.line)
            fits = where(tables["alignment"], family=family, source=source, target="tied", kind="linear")
            ax.axvline(fits["value"].item(), color=look.colour, linewidth=0.8, linestyle=DASHED)
            paper = published.load()["figure_1"][f"mean linear cosine, untied {source} -> tied"]
            if family == "OLMo":
                ax.plot(paper, 0, color=look.colour, clip_on=False, **_HOLLOW)
        ax.set(xlabel="cosine after the linear map", ylabel="density (per unit of cosine)", ylim=(0, None))
    _miniature(panels, tables)
    looks = [W_WITH["input"], W_WITH["output"]]
    mean, paper = Look("mean", DARK, line=DASHED), replace(_PUBLISHED, label="published mean (OLMo-1B)")
    style.legend(figure, [*(replace(look, marker="") for look in looks), mean, paper])
    return style.small_print(figure, _whose(tables))


@FIGURES.reads("08_norms", "norms", corpus=HOME)
def norms(tables: Tables) -> Figure:
    """Draw Figure 5 of three families: row norms by how often the token occurs, with their rank correlation."""
    table = tables["norms"]
    figure, panels = style.panels(TWO_COLUMNS, 2.4, *_families(table))
    for ax, family in zip(panels, _families(table), strict=True):
        words = []
        for name, look in TABLES.items():
            rows = where(table, family=family, table=name)
            ax.plot(rows["log10_count"], rows["norm_mean"], color=look.colour, marker=look.marker, linestyle=look.line)
            low, high = rows["norm_mean"] - rows["norm_std"], rows["norm_mean"] + rows["norm_std"]
            ax.fill_between(rows["log10_count"], low, high, color=look.colour, alpha=0.12, linewidth=0)
            words.append(f"{look.label} {rows['spearman'].iloc[0]:+.2f}".replace("-", "−"))
        ax.set(xlabel="log10(count + 1) in the text", ylabel="row norm (L2)", ylim=(0, None))
        corner: dict[str, Any] = {"transform": ax.transAxes, "ha": "right", "va": "top", "fontsize": 6}
        ax.text(0.97, 0.97, "rank correlation\n" + "\n".join(words), **corner)
    _miniature(panels, tables)
    band = Patch(color=GREY, alpha=0.3, linewidth=0, label="one standard deviation of the tokens in a bin")
    style.legend(figure, [*TABLES.values(), band])
    return style.small_print(figure, _whose(tables, ""))


@FIGURES.reads("08_evolution", "evolution", corpus=HOME)
def evolution(tables: Tables) -> Figure:
    """Draw Figures 3, 8 and 9: how far each table moves from its start, with the checkpoints that are not what they say."""
    table, paper = tables["evolution"], published.evolution()
    models = list(dict.fromkeys(table["model"]))
    figure, panels = style.panels(TWO_COLUMNS, 2.6, *models)
    for model, ax in zip(models, panels, strict=True):
        own, printed = where(table, model=model), where(paper, model=model)
        for name in ("input", "output"):
            look = LOOKS[name]
            plain: dict[str, Any] = {"linestyle": look.line, "marker": look.marker, "markersize": 3}
            for rows, shape in ((own, plain), (printed, {**_HOLLOW, "linestyle": DOTTED, "markersize": 3})):
                rows = where(rows, table=name)
                ax.plot(rows["step"] / rows["step"].max(), rows["to_start"], color=look.colour, **shape)
            faulty = where(own, table=name).dropna(subset="problem")
            for step in faulty["step"]:
                top = ax.get_xaxis_transform()
                ax.plot(step / own["step"].max(), 0.97, "x", color=RED, markersize=5, transform=top, scaley=False)
        ax.set(xlabel="steps followed (fraction)", ylabel="mean row cosine to the start")
    _miniature(panels, tables)
    faulty_look = Look("left out: not what it says", RED, "x", "none")
    style.legend(figure, [LOOKS["input"], LOOKS["output"], replace(_PUBLISHED, line=DOTTED), faulty_look])
    steps = ", ".join(f"{model} {where(table, model=model)['step'].max():,}" for model in models)
    left = table.dropna(subset="problem").drop_duplicates(["model", "step"])
    out = "; ".join(f"{row['model']} step {row['step']}: {row['problem']}" for row in left.to_dict("records")) or "none"
    # The way from the start adds up early steps: from one checkpoint to the next another table may move further.
    moved = table[table["step"] > 0].pivot_table(index=["model", "step"], columns="table", values="to_previous").dropna()
    further = (moved["output"] < moved["input"]).groupby(level="model", sort=False).agg(["sum", "size"])
    often = ", ".join(f"{row['sum']} of {row['size']}" for row in further.to_dict("records"))
    words = f"Steps followed: {steps}. The output table moves further than the input table in {often} of the intervals between "
    return style.small_print(figure, f"{words}checkpoints. Left out: {out}. {_whose(tables)}")


@FIGURES.reads("08_lens", "lens", corpus=HOME)
def lens(tables: Tables) -> Figure:
    """Draw Figures 2, 6 and 7: how far each layer is from the model's own prediction, read right and as published."""
    table = tables["lens"]
    figure, panels = style.panels(TWO_COLUMNS, 2.4, *_families(table), "OLMo, published")
    for ax, family in zip(panels, _families(table), strict=False):
        for tied, look in ((False, LOOKS[UNTIED]), (True, LOOKS[TIED])):
            rows = where(table, family=family, tied=tied)
            right: dict[str, Any] = {"linestyle": "-", "marker": look.marker, "linewidth": 1}
            for indexing, shape in (("matched", right), ("published", {"linestyle": DASHED, "linewidth": 0.7})):
                curve = where(rows, indexing=indexing)
                ax.plot(curve["layer"] / curve["layer"].max(), curve["kl_bits"], color=look.colour, **shape)
    for tied, look in ((False, LOOKS[UNTIED]), (True, LOOKS[TIED])):
        printed = where(published.lens(), tied=tied)
        panels[-1].plot(printed["layer"] / 16, printed["kl_bits"], color=look.colour, **{**_HOLLOW, "markersize": 3})
    for ax in panels:
        ax.set(xlabel="depth (1: output)", ylabel="lens KL (bits per token)", ylim=(0, None))
    _miniature(panels[:-1], tables)
    plain = [Look(f"{name}, read right", LOOKS[name].colour, LOOKS[name].marker) for name in (UNTIED, TIED)]
    style.legend(figure, [*plain, Look("one layer off, as published", DARK, line=DASHED), _PUBLISHED])
    return style.small_print(figure, _whose(tables))


@FIGURES.reads("08_shares", "shares", corpus=HOME)
def shares(tables: Tables) -> Figure:
    """Draw Tables 3 and 4: the fraction of all parameters in token tables, by size, if a model is untied and if it is tied."""
    table = tables["shares"]
    figure, (ax,) = style.panels(style.ONE_COLUMN, 3.0, "How much of a model is its tables?")
    ax.set_xscale("log")
    for name, series in _SERIES.items():
        rows = table[table["model"].str.match(name)]
        rows = rows.assign(trunk=rows["parameters"] - rows["table"] * (2 - rows["tied"])).sort_values("trunk")
        for column, arm in (("share_untied", UNTIED), ("share_tied", TIED)):
            look = replace(series, colour=LOOKS[arm].colour)
            ax.plot(rows["trunk"], rows[column], linestyle=LOOKS[arm].line, markersize=4, **look.mark)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set(xlabel="parameters without the token tables", ylabel="share in token tables (%)", ylim=(0, None))
    style.legend(figure, [*_SERIES.values(), *(replace(LOOKS[arm], marker="") for arm in (UNTIED, TIED))], columns=3)
    return style.small_print(figure, "Counted from the configurations of the public models.")
