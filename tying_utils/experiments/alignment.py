"""Notebook 01, claim C1: the tied table is nearer to the untied output table than to the untied input table."""

from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tying_utils.base.names import SHARED_START, TIED
from tying_utils.experiments import position, published, style
from tying_utils.experiments.judge import Evidence, Statistic
from tying_utils.experiments.looks import CHANCE, DARK, LOOKS, PAIRS, W_WITH, Look
from tying_utils.experiments.style import ONE_COLUMN, TWO_COLUMNS
from tying_utils.experiments.tables import Tables, output_minus_input, where

FIGURES = style.Gallery()
# Fits with the start of their statistics' ids, and what the paper found without the correction for chance, and with it.
_FITS = {
    "orthogonal": ("output_bias", "0.669 - 0.420 = 0.249", "0.300"),
    "linear": ("output_bias_linear", "0.719 - 0.525 = 0.194", "0.243"),
}


def output_bias(alignment: pd.DataFrame, column: str = "corrected") -> pd.DataFrame:
    """Return the output bias of each tied table: alignment with the untied output table minus that with the input table.

    `alignment` has a row for each arm and seed, or family of public models, source and (optionally) kind; the result one for
    each arm and seed, or family, and kind, with the column "output_bias". Above 0 the table is nearer to U than to E.
    """
    tied = where(alignment, target="tied")
    keys = [key for key in ("corpus", "family", "arm", "input_scale", "output_scale", "seed", "kind") if key in tied.columns]
    return output_minus_input(tied, keys, column, "output_bias")


def evidence(tables: Tables) -> Evidence:
    """Yield the statistics of C1, from the tables poles, where there is one, alignment and neighbors."""
    if "poles" in tables:
        yield from position.evidence(tables)
    for kind, (name, uncorrected, corrected) in _FITS.items():
        rows, words = where(tables["alignment"], arm=TIED, kind=kind), f"output bias, {kind}"
        label, paper = f"{words}, chance-corrected", f"{uncorrected}, uncorrected; {corrected} corrected"
        yield Statistic(name, "C1", label, "corrected alignment", published=paper), _by_seed(output_bias(rows))
        label, paper = f"{words}, held-out tokens", f"{uncorrected}, in-sample"
        held_out = Statistic(f"{name}_held_out", "C1", label, "mean row cosine", published=paper)
        yield held_out, _by_seed(output_bias(rows, "held_out"))
    words, paper = "output bias, KNN@10, chance-corrected", "0.733 - 0.496 = 0.237"
    overlap = Statistic("output_bias_knn", "C1", words, "corrected overlap", published=paper)
    yield overlap, _by_seed(output_bias(where(tables["neighbors"], arm=TIED)))


def _by_seed(bias: pd.DataFrame) -> pd.Series:
    return bias.set_index("seed")["output_bias"]


@FIGURES.reads("01_alignment", "alignment", "neighbors")
def alignment(tables: Tables) -> Figure:
    """Draw Tables 1 and 5: how near the tables lie, each pair beside its chance and the published value."""
    rows = pd.concat([tables["alignment"], tables["neighbors"].assign(kind="KNN@10")], ignore_index=True)
    table_5 = published.knn().rename(columns={"a": "source", "b": "target"}).assign(kind="KNN@10")
    paper = where(pd.concat([published.alignment(), table_5]), models="OLMo").replace(regex="^untied ", value="")
    known = {(row["kind"], frozenset((row["source"], row["target"]))): row["value"] for row in paper.to_dict("records")}
    kinds = {"identity": "Identity", "orthogonal": "Orthogonal map", "linear": "Linear map", "KNN@10": "Ten neighbours"}
    figure, panels = style.panels(TWO_COLUMNS, 2.3, *kinds.values())
    hollow: dict[str, Any] = {"marker": "d", "markerfacecolor": "white", "linestyle": "none", "markersize": 4}
    for ax, kind in zip(panels, kinds, strict=True):
        for place, ((source, target), look) in enumerate(PAIRS.items()):
            own = where(rows, kind=kind, source=source, target=target)
            style.chance(ax, place, own, 0.35, across=True)
            style.row(ax, place, own["value"], look)
            ax.plot(known[kind, frozenset((source, target))], place - 0.25, color=look.colour, **hollow)
        ax.set(xlabel="mean row cosine")
    panels[-1].set_xlabel("overlap (fraction)")
    style.named_rows(panels, [look.label for look in PAIRS.values()])
    low = min(ax.get_xlim()[0] for ax in panels)
    for ax in panels:
        ax.set_xlim(min(low, -0.05), 1)
    here, paper = Look("measured here", DARK, "o", "none"), Look("published (OLMo-1B)", DARK, "d", "none", hollow=True)
    return style.finish(figure, rows, [here, paper, CHANCE])


@FIGURES.reads("01_cosines", "cosines")
def cosines(tables: Tables) -> Figure:
    """Draw Figure 1: per-token cosines of the tied table with the linear images of E and of U."""
    figure, (ax,) = style.panels(ONE_COLUMN, 2.7, "W beside the images of E and U, by token")
    looks = {name: replace(LOOKS[name], label=f"{LOOKS[name].label} → W") for name in ("input", "output")}
    for source, look in looks.items():
        style.curve(ax, where(tables["cosines"], arm=TIED, source=source), "cosine", "density", look)
    ax.set(xlabel="cosine similarity after a linear map, per token", ylabel="density (per unit of cosine)")
    ax.set(xlim=(-0.25, 1), ylim=(0, None))
    return style.finish(figure, tables["cosines"], looks.values(), bars=False)


@FIGURES.reads("01_control", "alignment", "control_alignment")
def control(tables: Tables) -> Figure:
    """Draw what a start that both arms share adds to the alignment of W with E."""
    figure, (ax,) = style.panels(ONE_COLUMN, 2.8, "What does a shared start add?")
    rows = where(pd.concat([tables["alignment"], tables["control_alignment"]]), kind="orthogonal")
    for place, arm in enumerate((TIED, SHARED_START)):
        for shift, source in ((-0.2, "input"), (0.2, "output")):
            own = where(rows, arm=arm, source=source)
            style.chance(ax, place + shift, own, 0.17)
            style.point(ax, place + shift, own["value"], LOOKS[source])
    style.categories(ax, ["independent starts", "shared start"])
    ax.set(xlabel="how the tied and untied arm start", ylabel="mean row cosine (orthogonal)", ylim=(0, 1))
    return style.finish(figure, rows, [*(replace(look, line="none") for look in W_WITH.values()), CHANCE], columns=2)
