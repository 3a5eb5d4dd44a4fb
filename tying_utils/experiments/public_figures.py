"""Figures of the public checkpoints, or of their miniatures, each beside what the paper published.

There is one model of each kind, so the intervals are over tokens (bootstrap), not over seeds. Looks as in the other figures.
"""

from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from tying_utils.base.names import TIED, UNTIED
from tying_utils.experiments import published, style
from tying_utils.experiments.style import BLACK, BLUE, DASHED, DOTTED, GREEN, GREY, LOOKS, ORANGE, PAIRS, TWO_COLUMNS, Look
from tying_utils.experiments.tables import Tables, where

HOME, RED = "miniatures", "#cc3311"
FIGURES = style.Gallery()
_PUBLISHED = Look("published", BLACK, "d", "none", hollow=True)
_HOLLOW: dict[str, Any] = {"marker": "d", "markerfacecolor": "white", "linestyle": "none", "markersize": 4}
_SERIES = {
    r"Pythia": Look("Pythia", BLUE, "o"),
    r"OLMo-(?!2-)": Look("OLMo", BLACK, "D"),
    r"OLMo-2-": Look("OLMo 2", ORANGE, "s"),
    r"Qwen3": Look("Qwen3", GREEN, "^"),
}


def _families(table: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(table["family"]))


@FIGURES.reads("08_alignment", "alignment", "neighbors", "spectral", corpus=HOME)
def alignment(tables: Tables) -> Figure:
    """Draw Tables 1 and 5 and the spectral distances of three families: each pair of tables beside chance and the published."""
    own = {kind: where(tables["alignment"], kind=kind) for kind in ("orthogonal", "linear")}
    own |= {"KNN@10": tables["neighbors"], "spectral": tables["spectral"]}
    labels = ("orthogonal map, cosine", "linear map, cosine", "KNN@10 overlap", "spectral distance")
    names, kinds = _families(tables["neighbors"]), list(zip(own, labels, strict=True))
    figure, panels = style.panels(TWO_COLUMNS, 1.75 * len(names) + 0.7, *[""] * 4 * len(names), rows=len(names))
    for place, ax in enumerate(panels):
        family, (kind, label) = names[place // 4], kinds[place % 4]
        rows = where(own[kind], family=family)
        for x, (pair, look) in enumerate(PAIRS.items()):
            _score(ax, x, where(rows, source=pair[0], target=pair[1]), look)
        style.categories(ax, [look.label for look in PAIRS.values()])
        ax.set_title("", loc="left")
        ax.set_title(f"{family}" if place % 4 == 0 else "", loc="left", fontweight="bold")
        ax.set(xlabel="pair of tables", ylabel=label, ylim=(0, None) if kind == "spectral" else (-0.05, 1))
    style.legend(figure, [Look("measured", BLACK, "o", "none"), Look("held out", BLACK, "x", "none"), _PUBLISHED, style.CHANCE])
    return style.small_print(
        figure,
        "E: untied input table, U: untied output table, W: tied table. Bars: 95 % bootstrap interval over tokens. Dotted: "
        "chance of the tables measured, with its 95 % range. A low spectral distance is near. No orthogonal map joins tables "
        "of unlike width. " + _whose(tables),
    )


def _score(ax: Axes, x: float, rows: pd.DataFrame, look: Look) -> None:
    """Draw one pair: its value with its interval, held out, chance, and what was published."""
    if rows.empty:
        ax.text(x, 0.45, "n/a", ha="center", color=GREY)
        return
    row = rows.iloc[0]
    style.chance(ax, x, rows, 0.35)
    if "low" in row:
        ax.errorbar(x, row["value"], [[row["value"] - row["low"]], [row["high"] - row["value"]]], color=look.colour, capsize=2)
    ax.plot(x, row["value"], color=look.colour, marker=look.marker, markersize=4.5)
    if "held_out" in row:
        ax.plot(x - 0.22, row["held_out"], color=look.colour, marker="x", markersize=4)
    if pd.notna(row["published"]):
        ax.plot(x + 0.22, row["published"], color=look.colour, **_HOLLOW)


def _whose(tables: Any, beside: str = ", published for the public models") -> str:
    """Say in words which models were measured."""
    models = getattr(getattr(tables, "profile", None), "corpus", HOME)
    return f"Measured on miniatures{beside}." if models == HOME else "Measured on the public models."


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
        ax.set(xlabel="cosine after the linear map", ylabel="density", ylim=(0, None))
    looks = [style.W_WITH["input"], style.W_WITH["output"]]
    style.legend(figure, [*(replace(look, marker="") for look in looks), Look("mean", BLACK, line=DASHED), _PUBLISHED])
    return style.small_print(figure, "Published: the mean, for OLMo. " + _whose(tables))


@FIGURES.reads("08_norms", "norms", corpus=HOME)
def norms(tables: Tables) -> Figure:
    """Draw Figure 5 of three families: row norms by how often the token occurs, with their rank correlation."""
    table = tables["norms"]
    figure, panels = style.panels(TWO_COLUMNS, 2.4, *_families(table))
    for ax, family in zip(panels, _families(table), strict=True):
        words = []
        for name, look in style.TABLES.items():
            rows = where(table, family=family, table=name)
            ax.plot(rows["log10_count"], rows["norm_mean"], color=look.colour, marker=look.marker, linestyle=look.line)
            low, high = rows["norm_mean"] - rows["norm_std"], rows["norm_mean"] + rows["norm_std"]
            ax.fill_between(rows["log10_count"], low, high, color=look.colour, alpha=0.12, linewidth=0)
            words.append(f"{look.label[-1]} {rows['spearman'].iloc[0]:+.2f}".replace("-", "−"))
        ax.set(xlabel="log10(count + 1) in the text", ylabel="row norm (L2)", ylim=(0, None))
        corner: dict[str, Any] = {"transform": ax.transAxes, "ha": "right", "va": "top", "fontsize": 6}
        ax.text(0.97, 0.97, "rank correlation\n" + "\n".join(words), **corner)
    style.legend(figure, style.TABLES.values())
    return style.small_print(figure, "Bands: standard deviation over the tokens of a bin. " + _whose(tables, ""))


@FIGURES.reads("08_evolution", "evolution", corpus=HOME)
def evolution(tables: Tables) -> Figure:
    """Draw Figures 3, 8 and 9: how far each table moves from its start and from the checkpoint before, unsound ones marked."""
    table = tables["evolution"]
    models = list(dict.fromkeys(table["model"]))
    figure, panels = style.panels(TWO_COLUMNS, 4.2, *models, *[""] * len(models), rows=2)
    paper = published.evolution()
    for place, ax in enumerate(panels):
        model, column = models[place % len(models)], ("to_start", "to_previous")[place // len(models)]
        own, printed = where(table, model=model), where(paper, model=model)
        for name in ("input", "output"):
            look = LOOKS[name]
            plain: dict[str, Any] = {"linestyle": look.line, "marker": look.marker, "markersize": 3}
            for rows, shape in ((own, plain), (printed, {**_HOLLOW, "linestyle": DOTTED, "markersize": 3})):
                rows = where(rows, table=name)
                ax.plot(rows["step"] / rows["step"].max(), rows[column], color=look.colour, **shape)
            faulty = where(own, table=name).dropna(subset="problem")
            for step in faulty["step"]:
                top = ax.get_xaxis_transform()
                ax.plot(step / own["step"].max(), 0.97, "x", color=RED, markersize=5, transform=top, scaley=False)
        start = column == "to_start"
        ax.set(xlabel="share of the steps followed", ylabel="cosine to the start" if start else "cosine to the one before")
    faulty_look = Look("left out: not what it says", RED, "x", "none")
    style.legend(figure, [LOOKS["input"], LOOKS["output"], replace(_PUBLISHED, line=DOTTED), faulty_look])
    steps = ", ".join(f"{model} {where(table, model=model)['step'].max():,}" for model in models)
    left = table.dropna(subset="problem").drop_duplicates(["model", "step"])
    out = "; ".join(f"{row['model']} step {row['step']}: {row['problem']}" for row in left.to_dict("records")) or "none"
    return style.small_print(figure, f"Steps followed: {steps}. Left out: {out}. {_whose(tables)}")


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
    plain = [Look(f"{name}, read right", LOOKS[name].colour, LOOKS[name].marker) for name in (UNTIED, TIED)]
    style.legend(figure, [*plain, Look("one layer off, as published", BLACK, line=DASHED), _PUBLISHED])
    return style.small_print(figure, _whose(tables))


@FIGURES.reads("08_shares", "shares", corpus=HOME)
def shares(tables: Tables) -> Figure:
    """Draw Tables 3 and 4: the fraction of all parameters in token tables, by size, if a model is untied and if it is tied."""
    table = tables["shares"]
    figure, (ax,) = style.panels(style.ONE_COLUMN, 2.7, "")
    ax.set_xscale("log")
    for name, look in _SERIES.items():
        rows = table[table["model"].str.match(name)]
        rows = rows.assign(trunk=rows["parameters"] - rows["table"] * (2 - rows["tied"])).sort_values("trunk")
        for column, line, face in (("share_untied", "-", look.colour), ("share_tied", DOTTED, "white")):
            shape: dict[str, Any] = {"linestyle": line, "marker": look.marker, "markerfacecolor": face, "markersize": 3.5}
            ax.plot(rows["trunk"], rows[column], color=look.colour, **shape)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set(xlabel="parameters without the token tables", ylabel="share in token tables", ylim=(0, None))
    figure.legend(handles=[look.handle() for look in _SERIES.values()], loc="outside upper center", ncols=4)
    return style.small_print(figure, "Filled: untied. Hollow, dotted: tied. Counted from configurations.")
