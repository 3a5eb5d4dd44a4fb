"""Notebook 06: the claims in a language whose right answer is known, by the role that a table's neighbourhoods show."""

from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tying_utils.base.names import TIED, TWO_ROLE, UNTIED
from tying_utils.experiments import style
from tying_utils.experiments.alignment import output_bias
from tying_utils.experiments.judge import Evidence, Statistic
from tying_utils.experiments.scaling import per_decade
from tying_utils.experiments.style import BLACK, DOTTED, GREY, LOOKS, ONE_COLUMN, ROLE_LOOKS, TABLES, TWO_COLUMNS, Look
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
        words = f"the same where they agree ({top:g}) less that"
        yield Statistic("loss_gap_agreeing", "C5 roles", words, unit, claimed="below"), cost[top] - cost[0.0]


@FIGURES.reads("06_language", "language", "unigrams", corpus=TWO_ROLE)
def language(tables: Tables) -> Figure:
    """Draw the two-role language: which target classes follow which source classes, and how often tokens occur."""
    figure, (left, right) = style.panels(TWO_COLUMNS, 2.9, "What follows what", "How often")
    wide = tables["language"].pivot_table(index="source", columns="target", values="log_ratio")
    bound = np.quantile(np.abs(wide.to_numpy()), 0.9)  # a few pairs of classes are nearly forbidden
    image = left.imshow(wide.to_numpy(), cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="equal")
    left.grid(visible=False)
    left.set(xlabel="target class of the next token", ylabel="source class of this token")
    figure.colorbar(image, ax=left, label="log of P(next) over its base rate (nats)", shrink=0.9, extend="both")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    unigrams = tables["unigrams"].sort_values("rank")
    right.set(xscale="log", yscale="log", xlabel="rank of the token (by weight)", ylabel="probability")
    right.plot(unigrams["rank"], unigrams["unigram"], ".", color=GREY, markersize=2.5)
    right.plot(unigrams["rank"], unigrams["weight"], color=BLACK)
    style.legend(figure, [Look("weight p (Zipf)", BLACK), Look("stationary probability", GREY, ".", "none")])
    return figure


@FIGURES.reads("06_roles", "roles", corpus=TWO_ROLE)
def roles(tables: Tables) -> Figure:
    """Draw which role each table's neighbourhoods show: how pure they are in either."""
    rows = where(tables["roles"], agreement=0.0, input_scale=1.0, output_scale=1.0)
    figure, (ax,) = style.panels(ONE_COLUMN, 2.6, "")
    for place, table in enumerate(TABLES):
        for shift, (role, look) in zip((-0.18, 0.18), ROLE_LOOKS.items(), strict=True):
            own = where(rows, table=table, role=role)
            style.chance(ax, place + shift, own, 0.16)
            style.point(ax, place + shift, own["purity"], look)
    style.categories(ax, [look.label for look in TABLES.values()])
    ax.set(xlabel="table", ylabel="purity of 10 neighbours (fraction)", ylim=(0, None))
    looks = [replace(look, line="none") for look in ROLE_LOOKS.values()]
    return style.finish(figure, rows, [*looks, replace(style.CHANCE, label="chance")])


@FIGURES.reads("06_scaling", "roles", corpus=TWO_ROLE)
def role_scaling(tables: Tables) -> Figure:
    """Draw which role the tied table shows, and its loss above the language's own, by the scale of either path's gradient."""
    rows = where(tables["roles"], agreement=0.0)
    titles = "Input path scaled", "Loss", "Output path scaled", "Loss"
    figure, panels = style.panels(TWO_COLUMNS, 4.9, *titles, rows=2)
    for path, other, (left, right) in (("input", "output", panels[:2]), ("output", "input", panels[2:])):
        tied = where(rows, table="tied", **{f"{other}_scale": 1.0})
        for ax in (left, right):
            ax.set_xscale("log")
        for role, look in ROLE_LOOKS.items():
            style.curve(left, where(tied, role=role), f"{path}_scale", "purity", look, bars=True)
        style.level(left, tied["chance"].mean())
        style.scale_axis(left, tied[f"{path}_scale"], "purity of 10 neighbours (fraction)", path)
        left.set_ylim(0, None)
        untied = where(rows, table="input", role="source", arm=UNTIED)
        style.reference(right, untied["over_floor"], LOOKS[UNTIED])
        style.curve(right, where(tied, role="source"), f"{path}_scale", "over_floor", LOOKS[TIED], bars=True)
        style.scale_axis(right, tied[f"{path}_scale"], "loss over the floor (nats per token)", path)
        right.set_ylim(0, None)
    looks = [*ROLE_LOOKS.values(), LOOKS[TIED], replace(LOOKS[UNTIED], marker="")]
    return style.finish(
        figure, rows, looks, "Dotted: chance, and the ordinary tied arm. Floor: the language's own loss on the same text."
    )


@FIGURES.reads("06_measures", "alignment", "scaling_alignment", "roles", corpus=TWO_ROLE)
def measures(tables: Tables) -> Figure:
    """Draw output bias towards an untied pair against the purity gap, which needs no other model."""
    bias = output_bias(where(with_scaling(tables, "alignment"), kind="orthogonal"))
    gaps = purity_gap(where(tables["roles"], table="tied", agreement=0.0, output_scale=1.0))
    both = bias.merge(gaps, on=["arm", "input_scale", "seed"])
    figure, (ax,) = style.panels(ONE_COLUMN, 2.9, "")
    looks = style.scale_looks(both) | {TIED: replace(LOOKS[TIED], label="input ×1 (tied)")}
    arms = list(both.sort_values("input_scale")["arm"].unique())
    for arm in arms:
        own, look = where(both, arm=arm), looks[arm]
        ax.plot(own["purity_gap"], own["output_bias"], ".", color=look.colour, markersize=3, alpha=0.6)
        ax.plot(own["purity_gap"].mean(), own["output_bias"].mean(), color=look.colour, marker=look.marker, markersize=5)
    style.level(ax, 0)
    ax.axvline(0, color=GREY, linewidth=1, linestyle=DOTTED)
    ax.set(xlabel="purity, target − source role (fraction)", ylabel="output bias (orthogonal, corrected)")
    rho = np.mean([part["output_bias"].corr(part["purity_gap"], method="spearman") for _, part in both.groupby("seed")])
    note = f"Large: means. Spearman ρ over scales, mean of the seeds: {rho:.2f}.".replace("-", "−")
    return style.finish(figure, both, [replace(looks[arm], line="none") for arm in arms], note, columns=3)


@FIGURES.reads("06_agreement", "roles", corpus=TWO_ROLE)
def agreement(tables: Tables) -> Figure:
    """Draw which role the tied table shows, and the loss, tied and untied, by how far the two roles of a token agree."""
    rows = where(tables["roles"], input_scale=1.0, output_scale=1.0)
    figure, (left, right) = style.panels(TWO_COLUMNS, 2.7, "Tied table", "Loss over the floor")
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
    return style.finish(figure, rows, [*ROLE_LOOKS.values(), LOOKS[UNTIED], LOOKS[TIED]], "Dotted: chance.")
