"""Notebook 06: the claims in a language whose right answer is known, by the role that a table's neighbourhoods show."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, MaxNLocator

from tying_utils.base.names import TIED, TWO_ROLE, UNTIED
from tying_utils.experiments import style
from tying_utils.experiments.alignment import output_bias
from tying_utils.experiments.judge import Evidence, Statistic
from tying_utils.experiments.looks import (
    CHANCE,
    DARK,
    DOTTED,
    GREY,
    LOOKS,
    NO_EFFECT,
    PURPLE,
    ROLE_LOOKS,
    TABLES,
    Look,
    scale_looks,
)
from tying_utils.experiments.scaling import per_decade
from tying_utils.experiments.style import ONE_COLUMN, TWO_COLUMNS
from tying_utils.experiments.tables import Tables, where, with_scaling
from tying_utils.study.profiles import described

FIGURES = style.Gallery()


def purity_gap(roles: pd.DataFrame) -> pd.DataFrame:
    """Return purity in the target role minus that in the source role, a row for each arm, seed and table, as "purity_gap".

    Above 0 the table's neighbourhoods say after what a token may come (what an output table needs), below 0 what may follow
    it (what an input table needs).
    """
    keys = ["corpus", "arm", "input_scale", "output_scale", "agreement", "seed", "table"]
    wide = roles.pivot_table(index=keys, columns="role", values="purity")
    return (wide["target"] - wide["source"]).rename("purity_gap").reset_index()


def evidence(tables: Tables) -> Evidence:
    """Yield the statistics of C1, C4 and C5 in the two-role language, from the table roles."""
    independent = where(purity_gap(tables["roles"]), agreement=0.0)
    plain = where(independent, input_scale=1.0, output_scale=1.0)
    words = "purity of the {} table, target - source role"
    for table, statistic in {
        "input": Statistic("purity_gap_input", "roles", words.format("untied input"), "fraction", claimed="below"),
        "output": Statistic("purity_gap_output", "roles", words.format("untied output"), "fraction"),
        "tied": Statistic("purity_gap", "C1 roles", words.format("tied"), "fraction"),
    }.items():
        yield statistic, where(plain, table=table).set_index("seed")["purity_gap"]
    words = "the tied table's target - source purity per decade of input scale"
    slope = Statistic("purity_gap_per_decade", "C4 roles", words, "fraction per decade", claimed="below")
    yield slope, per_decade(where(independent, table="tied", output_scale=1.0), "purity_gap")
    roles = described(tables["roles"])
    unscaled = roles[roles["kind"].isin((UNTIED, TIED))]
    losses = unscaled.groupby(["arm", "tied", "agreement", "seed"], as_index=False)["over_floor"].first()
    cost = losses.pivot_table(index=["agreement", "seed"], columns="tied", values="over_floor")
    cost = (cost[True] - cost[False]).unstack("agreement")
    if len(cost.columns) > 1:
        top, unit = cost.columns.max(), "nats per token"
        words = "loss, tied - untied, nats, where the roles are independent"
        yield Statistic("loss_gap_independent", "C5 roles", words, unit), cost[0.0]
        words = f"the same where they agree ({top:g}) minus that"
        yield Statistic("loss_gap_agreeing", "C5 roles", words, unit, claimed="below"), cost[top] - cost[0.0]


@FIGURES.reads("06_language", "language", "unigrams", corpus=TWO_ROLE)
def language(tables: Tables) -> Figure:
    """Draw the two-role language: which target classes follow which source classes, and how often tokens occur."""
    figure, (left, right) = style.panels(TWO_COLUMNS, 2.9, "What follows what?", "How often does a token occur?")
    wide = tables["language"].pivot_table(index="source", columns="target", values="log_ratio")
    bound = np.quantile(np.abs(wide.to_numpy()), 0.9)  # a few pairs of classes are nearly forbidden
    image = left.imshow(wide.to_numpy(), cmap="RdGy_r", vmin=-bound, vmax=bound, aspect="equal")
    left.grid(visible=False)
    left.set(xlabel="target class of the next token", ylabel="source class of this token")
    figure.colorbar(image, ax=left, label="log of P(next) over its base rate (nats)", shrink=0.9, extend="both")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    unigrams = tables["unigrams"].sort_values("rank")
    right.set(xscale="log", yscale="log", xlabel="rank of the token (by weight)", ylabel="probability (fraction)")
    right.plot(unigrams["rank"], unigrams["unigram"], ".", color=GREY, markersize=2.5)
    right.plot(unigrams["rank"], unigrams["weight"], color=PURPLE)
    style.legend(figure, [Look("weight p (Zipf)", PURPLE), Look("stationary probability", GREY, ".", "none")])
    return figure


@FIGURES.reads("06_roles", "roles", corpus=TWO_ROLE)
def roles(tables: Tables) -> Figure:
    """Draw which role each table's neighbourhoods show: how pure they are in either."""
    rows = where(tables["roles"], agreement=0.0, input_scale=1.0, output_scale=1.0)
    figure, (ax,) = style.panels(ONE_COLUMN, 2.8, "Which role does each table show?")
    for place, table in enumerate(TABLES):
        for shift, (role, look) in zip((-0.18, 0.18), ROLE_LOOKS.items(), strict=True):
            own = where(rows, table=table, role=role)
            style.chance(ax, place + shift, own, 0.16)
            style.point(ax, place + shift, own["purity"], look)
    style.categories(ax, [look.label for look in TABLES.values()])
    ax.set(xlabel="table", ylabel="purity of 10 neighbours (fraction)", ylim=(0, None))
    looks = [replace(look, line="none") for look in ROLE_LOOKS.values()]
    return style.finish(figure, rows, [*looks, replace(CHANCE, label="chance")])


@FIGURES.reads("06_scaling", "roles", corpus=TWO_ROLE)
def role_scaling(tables: Tables) -> Figure:
    """Draw which role the tied table shows, and its loss above the language's own, by input scale over output scale."""
    rows = where(tables["roles"], agreement=0.0)
    rows = rows.assign(ratio=rows["input_scale"] / rows["output_scale"])
    figure, (left, right) = style.panels(TWO_COLUMNS, 3.0, "Which role does W show?", "What does it cost?")
    tied = where(rows, table="tied")
    turned = {"input": where(tied, output_scale=1.0), "output": where(tied, input_scale=1.0)}
    shapes: dict[str, dict[str, Any]] = {"input": {}, "output": {"line": DOTTED, "hollow": True}}
    for path, own in turned.items():
        if own["ratio"].nunique() == 1:  # the profile turns the other scale alone
            continue
        for role, look in ROLE_LOOKS.items():
            style.curve(left, where(own, role=role), "ratio", "purity", replace(look, **shapes[path]), bars=True)
        style.curve(right, where(own, role="source"), "ratio", "over_floor", replace(LOOKS[TIED], **shapes[path]), bars=True)
    untied = where(rows, table="input", role="source", arm=UNTIED)
    style.reference(right, untied["over_floor"], LOOKS[UNTIED])
    style.level(left, tied["chance"].mean())
    for ax, ylabel in ((left, "purity of 10 neighbours (fraction)"), (right, "loss over the floor (nats per token)")):
        ax.set_xscale("log")
        ax.axvline(1, color=GREY, linewidth=0.6, linestyle=DOTTED)
        ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        ax.set(xlabel="input scale / output scale (1: ordinary tied)", ylabel=ylabel, ylim=(0, None))
    scales = [Look(f"{path} scale turned", DARK, "o", **{"line": "-", **shapes[path]}) for path in shapes]
    looks = [*ROLE_LOOKS.values(), LOOKS[TIED], replace(LOOKS[UNTIED], marker=""), *scales, replace(NO_EFFECT, label="chance")]
    return style.finish(figure, rows, looks, "Floor: the language's own loss on the same text.", columns=4)


@FIGURES.reads("06_measures", "alignment", "scaling_alignment", "roles", corpus=TWO_ROLE)
def measures(tables: Tables) -> Figure:
    """Draw output bias towards an untied pair against the purity gap, which needs no other model."""
    bias = output_bias(where(with_scaling(tables, "alignment"), kind="orthogonal"))
    gaps = purity_gap(where(tables["roles"], table="tied", agreement=0.0, output_scale=1.0))
    both = bias.merge(gaps, on=["arm", "input_scale", "seed"])
    figure, (ax,) = style.panels(ONE_COLUMN, 3.2, "Do both measures of the lean agree?")
    looks = scale_looks(both) | {TIED: replace(LOOKS[TIED], label="input ×1 (tied)")}
    arms = list(both.sort_values("input_scale")["arm"].unique())
    for arm in arms:
        own, look = where(both, arm=arm), looks[arm]
        ax.plot(own["purity_gap"], own["output_bias"], ".", color=look.colour, markersize=3, alpha=0.6)
        ax.plot(own["purity_gap"].mean(), own["output_bias"].mean(), color=look.colour, marker=look.marker, markersize=5)
    style.level(ax, 0)
    ax.axvline(0, color=GREY, linewidth=1, linestyle=DOTTED)
    ax.set(xlabel="purity, target − source role (fraction)", ylabel="output bias (corrected alignment)")
    rho = np.mean([part["output_bias"].corr(part["purity_gap"], method="spearman") for _, part in both.groupby("seed")])
    style.legend(figure, [replace(looks[arm], line="none") for arm in arms], columns=3)
    words = f"{style.seeds(both)} (dots) and their means. Spearman ρ over scales, mean of the seeds: {rho:.2f}."
    return style.small_print(figure, words.replace("-", "−"))


@FIGURES.reads("06_agreement", "roles", corpus=TWO_ROLE)
def agreement(tables: Tables) -> Figure:
    """Draw which role the tied table shows, and the loss, tied and untied, by how far the two roles of a token agree."""
    rows = where(tables["roles"], input_scale=1.0, output_scale=1.0)
    figure, (left, right) = style.panels(TWO_COLUMNS, 2.7, "Which role does W show?", "What does the tie cost?")
    tied = where(rows, table="tied")
    for role, look in ROLE_LOOKS.items():
        style.curve(left, where(tied, role=role), "agreement", "purity", look, bars=True)
    style.level(left, tied["chance"].mean())
    left.set(ylabel="purity of 10 neighbours (fraction)", ylim=(0, None))
    for value, arm in ((False, UNTIED), (True, TIED)):
        own = rows[(rows["tied"] == value) & (rows["role"] == "source") & (rows["table"] != "output")]
        style.curve(right, own, "agreement", "over_floor", LOOKS[arm], bars=True)
    right.set(ylabel="loss over the floor (nats per token)", ylim=(0, None))
    for ax in (left, right):
        places = sorted(rows["agreement"].unique())
        ax.set_xticks(places, [f"{place:g}" for place in places])
        ax.set_xlabel("tokens whose two roles agree (fraction)")
    return style.finish(figure, rows, [*ROLE_LOOKS.values(), LOOKS[UNTIED], LOOKS[TIED], replace(NO_EFFECT, label="chance")])
