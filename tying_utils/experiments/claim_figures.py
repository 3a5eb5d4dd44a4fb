"""The figures of the claims, from a study's tidy tables; nothing here trains or measures.

Every figure shows each seed as a thin line or a small dot, their mean, and the 95 % t interval of that mean. A table or an
arm has one colour, marker and line in all figures (`LOOKS`), told apart in grey as well.
"""

import textwrap
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from tying_utils.base.names import SHARED_START, TIED, TWO_ROLE, UNTIED
from tying_utils.experiments import claims, drawing, published
from tying_utils.experiments.claims import Tables
from tying_utils.experiments.drawing import BLACK, BLUE, CORPORA, DASHED, DOTTED, GREY, LOOKS, ONE_COLUMN, TWO_COLUMNS, Look
from tying_utils.measures import statistics
from tying_utils.study.sweep import Sweep

WINDOW = 20  # steps of the rolling mean
FIGURES = drawing.Gallery()


# What figures share


def _share(ax: Axes, tied: pd.DataFrame, column: str, look: Look) -> None:
    drawing.curve(ax, _rolled(tied, column), "step", column, look)
    drawing.level(ax, 0.5)
    ax.set(xlabel="step (optimizer)", ylabel="output share of the norm", ylim=(0, 1))


def _rolled(frame: pd.DataFrame, *columns: str, points: int = 300) -> pd.DataFrame:
    """Rolling means by seed, thinned to about `points` steps, the last among them."""
    parts = []
    for _, rows in frame.sort_values("step").groupby("seed"):
        means = {column: statistics.rolling_mean(rows[column], WINDOW) for column in columns}
        parts.append(rows[["seed", "step"]].assign(**means).iloc[:: -max(1, len(rows) // points)])
    return pd.concat(parts, ignore_index=True)


# The figures


@FIGURES.reads("00_overview", "alignment", "gradients", "lens", "scaling_alignment")
def overview(tables: Tables) -> Figure:
    """The four claims in short: alignment, gradients, lens, input scale."""
    titles = "Alignment of W with E and U", "Output path's share of the gradient", "Tuned lens by layer", "Output bias of W"
    figure, (a, b, c, d) = drawing.panels(TWO_COLUMNS, 4.7, *titles, rows=2)
    kinds = ("orthogonal", "linear")
    for place, kind in enumerate(kinds):
        for shift, source in ((-0.18, "input"), (0.18, "output")):
            rows = drawing.where(tables["alignment"], arm=TIED, kind=kind, source=source)
            drawing.point(a, place + shift, rows["corrected"], LOOKS[source])
    drawing.categories(a, [f"{kind} map" for kind in kinds])
    a.set(xlabel="how W is compared", ylabel="alignment, chance-corrected")
    _share(b, drawing.where(tables["gradients"], arm=TIED), "output_share", LOOKS[TIED])
    drawing.lens_curves(c, tables["lens"], (UNTIED, TIED))
    d.set_xscale("log")
    bias = claims.output_bias(drawing.where(claims.with_scaling(tables, "alignment"), kind="orthogonal"))
    drawing.curve(d, bias, "input_scale", "output_bias", LOOKS[TIED], bars=True)
    drawing.scale_axis(d, bias["input_scale"], "alignment with U − with E")
    drawing.level(a, 0)
    drawing.level(d, 0)
    note = f"b: rolling mean of {WINDOW} steps. d: orthogonal map, chance-corrected. Dotted: chance (a), equal norms (b), "
    looks = [LOOKS[name] for name in ("input", "output", TIED, UNTIED)]
    return drawing.finish(figure, tables["alignment"], looks, note + "no bias and the ordinary tied arm (d).")


@FIGURES.reads("01_alignment", "alignment", "neighbors")
def alignment(tables: Tables) -> Figure:
    """Tables 1 and 5: how near the tables lie, each pair beside its chance and the published value."""
    rows = pd.concat([tables["alignment"], tables["neighbors"].assign(kind="KNN@10")], ignore_index=True)
    table_5 = published.knn().rename(columns={"a": "source", "b": "target"}).assign(kind="KNN@10")
    paper = drawing.where(pd.concat([published.alignment(), table_5]), models="OLMo").replace(regex="^untied ", value="")
    known = {(row["kind"], frozenset((row["source"], row["target"]))): row["value"] for row in paper.to_dict("records")}
    kinds = {"identity": "Identity", "orthogonal": "Orthogonal map", "linear": "Linear map", "KNN@10": "Neighbours"}
    figure, panels = drawing.panels(TWO_COLUMNS, 2.6, *kinds.values())
    hollow: dict[str, Any] = {"marker": "d", "markerfacecolor": "white", "linestyle": "none"}
    for ax, kind in zip(panels, kinds, strict=True):
        for place, ((source, target), look) in enumerate(drawing.PAIRS.items()):
            own = drawing.where(rows, kind=kind, source=source, target=target)
            drawing.chance(ax, place, own, 0.35)
            drawing.point(ax, place, own["value"], look)
            ax.plot(place + 0.25, known[kind, frozenset((source, target))], color=look.colour, **hollow)
        drawing.categories(ax, [look.label for look in drawing.PAIRS.values()])
        ax.set(xlabel="pair of tables", ylabel="mean row cosine")
    panels[-1].set_ylabel("KNN@10 overlap (fraction)")
    low = min(ax.get_ylim()[0] for ax in panels)
    for ax in panels:
        ax.set_ylim(min(low, -0.05), 1)
    looks = [
        Look("measured here", BLACK, "o", "none"),
        Look("published (OLMo-1B)", BLACK, "d", "none", hollow=True),
        drawing.CHANCE,
    ]
    return drawing.finish(figure, rows, looks, "E: untied input table, U: untied output table, W: tied table.")


@FIGURES.reads("01_cosines", "cosines")
def cosines(tables: Tables) -> Figure:
    """Figure 1: per-token cosines of the tied table with the linear images of E and of U."""
    figure, (ax,) = drawing.panels(ONE_COLUMN, 2.5, "")
    looks = {name: replace(LOOKS[name], label=f"{LOOKS[name].label} → W") for name in ("input", "output")}
    for source, look in looks.items():
        drawing.curve(ax, drawing.where(tables["cosines"], arm=TIED, source=source), "cosine", "density", look)
    ax.set(xlabel="cosine similarity after a linear map, per token", ylabel="density (per unit of cosine)")
    ax.set(xlim=(-0.25, 1), ylim=(0, None))
    return drawing.finish(figure, tables["cosines"], looks.values())


@FIGURES.reads("01_control", "alignment", "control_alignment")
def control(tables: Tables) -> Figure:
    """What a start that both arms share adds to the alignment of W with E."""
    figure, (ax,) = drawing.panels(ONE_COLUMN, 2.6, "")
    rows = drawing.where(pd.concat([tables["alignment"], tables["control_alignment"]]), kind="orthogonal")
    for place, arm in enumerate((TIED, SHARED_START)):
        for shift, source in ((-0.2, "input"), (0.2, "output")):
            own = drawing.where(rows, arm=arm, source=source)
            drawing.chance(ax, place + shift, own, 0.17)
            drawing.point(ax, place + shift, own["value"], LOOKS[source])
    drawing.categories(ax, ["independent starts", "shared start"])
    ax.set(xlabel="how the tied and untied arm start", ylabel="mean row cosine (orthogonal)", ylim=(0, 1))
    return drawing.finish(
        figure, rows, [*(replace(look, line="none") for look in drawing.W_WITH.values()), drawing.CHANCE], columns=2
    )


@FIGURES.reads("02_gradients", "gradients")
def gradients(tables: Tables) -> Figure:
    """Figure 4: both path gradients of the tied table, like with like and as published, and the Adam update."""
    tied = drawing.where(tables["gradients"], arm=TIED)
    figure, (left, middle, right) = drawing.panels(TWO_COLUMNS, 2.6, "Path gradients", "Gradient", "Adam update")
    looks = {
        "input_norm": replace(LOOKS["input"], label="input path"),
        "output_norm": replace(LOOKS["output"], label="output path"),
        "published_input_norm": Look("input path as published", BLUE, "o", DASHED, hollow=True),
        "output_share": replace(LOOKS[TIED], label="output share"),
        "published_output_share": Look("share as published", GREY, "D", DASHED, hollow=True),
    }
    norms = [column for column in looks if column.endswith("norm")]
    left.set_yscale("log")
    for column in norms:
        drawing.curve(left, _rolled(tied, column), "step", column, looks[column])
    left.set(xlabel="step (optimizer)", ylabel="gradient norm (Frobenius)")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter(NullFormatter())
    for column in ("published_output_share", "output_share"):
        _share(middle, tied, column, looks[column])
    _share(right, tied, "output_update_share", looks["output_share"])
    note = f"Tied arm, rolling mean of {WINDOW} steps. a: geometric mean of the seeds. b, c: dotted, equal norms. "
    note += "As published: the input norm is of the activation gradient, the output norm of the weight gradient."
    return drawing.finish(figure, tied, looks.values(), note)


@FIGURES.reads("03_lens", "lens")
def lens(tables: Tables) -> Figure:
    """Figure 2: what each layer lacks of the model's own prediction, with matched lenses and one layer off."""
    table, arms = tables["lens"], (UNTIED, TIED)
    figure, (left, middle, right) = drawing.panels(TWO_COLUMNS, 2.6, "Tuned lens", "One layer off, as published", "Logit lens")
    drawing.lens_curves(left, table, arms)
    drawing.lens_curves(middle, table, arms, indexing="published")
    drawing.lens_curves(right, table, arms, kind="logit")
    note = "b: translator k − 1 on layer k, and one on the last, whose KL must be 0. The vertical scales differ."
    return drawing.finish(figure, table, [LOOKS[arm] for arm in arms], note)


@FIGURES.reads("03_lens_budget", "lens_budget", "lens")
def lens_budget(tables: Tables) -> Figure:
    """The KL at the input by how long the lens was trained from the identity; the converged lens as level lines."""
    table = drawing.where(tables["lens_budget"], layer=0)
    figure, (ax,) = drawing.panels(ONE_COLUMN, 2.8, "")
    ax.set_xscale("log")
    for arm in (UNTIED, TIED):
        drawing.curve(ax, drawing.where(table, arm=arm), "steps", "kl_bits", LOOKS[arm], bars=True)
        converged = drawing.where(tables["lens"], arm=arm, lens="tuned", indexing="matched", layer=0)
        drawing.reference(ax, converged["kl_bits"], replace(LOOKS[arm], line=DOTTED))
    steps = sorted(table["steps"].unique())
    ax.set_xticks(steps, [str(step) for step in steps])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="steps that the lens was trained for", ylabel="lens KL at the input (bits per token)", ylim=(0, None))
    return drawing.finish(figure, table, [LOOKS[UNTIED], LOOKS[TIED]], "Lenses from the identity; dotted: converged lenses.")


@FIGURES.reads("03_residual", "residual")
def residual(tables: Tables) -> Figure:
    """What the embedding and each layer add to the residual stream, and to the logit of the right next token."""
    table = tables["residual"][tables["residual"]["component"] != "bias"]
    layers = table.groupby(["arm", "seed", "layer"], as_index=False)[["share", "attribution"]].sum()
    layers["place"] = layers["layer"] + 1
    figure, panels = drawing.panels(TWO_COLUMNS, 2.6, "Part of the residual stream", "Direct logit attribution")
    for ax, column in zip(panels, ("share", "attribution"), strict=True):
        for arm in (UNTIED, TIED):
            drawing.curve(ax, drawing.where(layers, arm=arm), "place", column, LOOKS[arm], bars=True)
        drawing.layers(ax, "embedding", str(layers["place"].max()), layers["place"].max())
    panels[0].set(ylabel="share of the summed norms", ylim=(0, None))
    panels[1].set(ylabel="to the right next token (logits)")
    drawing.level(panels[1], 0)
    return drawing.finish(figure, table, [LOOKS[UNTIED], LOOKS[TIED]], "A layer: attention and MLP together.")


@FIGURES.reads("04_scaling", "alignment", "scaling_alignment", "lens", "scaling_lens", "losses", "scaling_losses")
def scaling(tables: Tables) -> Figure:
    """Tables 2 and 6: alignment, early layers and loss against the factor on the input path's gradient."""
    figure, (left, middle, right) = drawing.panels(TWO_COLUMNS, 2.6, "Alignment of W", "Lens at the input", "Validation loss")
    alignment = claims.with_scaling(tables, "alignment")
    drawing.alignment_by_scale(left, alignment)
    lens = drawing.where(claims.with_scaling(tables, "lens"), lens="tuned", indexing="matched", layer=0)
    drawing.by_scale(middle, lens, "kl_bits", "lens KL (bits per token)")
    drawing.by_scale(right, claims.with_scaling(tables, "losses"), "validation_loss", "loss (nats per token)")
    looks = [*drawing.W_WITH.values(), LOOKS[TIED], replace(LOOKS[UNTIED], marker="")]
    return drawing.finish(figure, alignment, looks, "a: orthogonal map, dotted: chance. b: tuned lens.")


@FIGURES.reads("04_lens", "lens", "scaling_lens")
def scaled_lens(tables: Tables) -> Figure:
    """Lens curves by input scale, and the untied one."""
    table = claims.with_scaling(tables, "lens")
    arms = table.sort_values("input_scale")["arm"].unique()
    arms = [UNTIED, *(arm for arm in arms if arm != UNTIED)]
    figure, (ax,) = drawing.panels(ONE_COLUMN, 3.0, "")
    drawing.lens_curves(ax, table, arms)
    looks = drawing.scale_looks(table) | {TIED: replace(LOOKS[TIED], label="input ×1 (tied)")}
    return drawing.finish(figure, table, [looks[arm] for arm in arms], columns=3)


@FIGURES.reads("05_drift", "drift")
def drift(tables: Tables) -> Figure:
    """Figures 3, 8 and 9: how far each table moves from its start, and since it was last kept."""
    table = tables["drift"]
    # Tables are kept at log-spaced steps and at round ones too: a gap that is short for its place would look like rest.
    gap = table.groupby(["arm", "seed", "table"])["step"].diff()
    shown = {"to_start": table, "to_previous": table[gap >= table["step"] / 5]}
    figure, panels = drawing.panels(TWO_COLUMNS, 2.6, "With the table of step 0", "With the table kept before")
    for ax, (column, rows) in zip(panels, shown.items(), strict=True):
        ax.set_xscale("symlog", linthresh=1, linscale=0.4)  # linear from step 0 to 1
        for first, (name, look) in enumerate(drawing.TABLES.items()):
            # W and U move alike: with markers by turns the lower curve still shows.
            drawing.curve(ax, drawing.where(rows, table=name), "step", column, look, every=(first % 2, 2))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set(xlabel="step (optimizer)", ylabel="mean row cosine", xlim=(-0.15, None))
    return drawing.finish(figure, table, drawing.TABLES.values(), "b: intervals of at least a fifth of the step.")


@FIGURES.reads("05_frequency", "frequency")
def frequency(tables: Tables) -> Figure:
    """Figure 5: row norms by how often the token occurs in the training text."""
    figure, panels = drawing.panels(TWO_COLUMNS, 2.6, *(look.label for look in drawing.TABLES.values()))
    looks = []
    for ax, (name, look) in zip(panels, drawing.TABLES.items(), strict=True):
        own = drawing.where(tables["frequency"], table=name)
        tokens = own.groupby("log10_count")[["norm_mean", "norm_std"]].mean()
        low, high = tokens["norm_mean"] - tokens["norm_std"], tokens["norm_mean"] + tokens["norm_std"]
        ax.fill_between(tokens.index, low, high, color=look.colour, alpha=0.18, linewidth=0)
        drawing.curve(ax, own, "log10_count", "norm_mean", look, bars=True)
        ax.set(xlabel="log10(count + 1) of the token", ylabel="row norm (L2)", ylim=(0, None))
        rho = own.groupby("seed")["spearman"].first().mean()
        looks.append(replace(look, label=f"Spearman ρ = {rho:.2f}".replace("-", "−")))
    return drawing.finish(figure, tables["frequency"], looks, "Wide band: one standard deviation of the tokens in a bin.")


@FIGURES.reads("06_language", "language", "unigrams", corpus=TWO_ROLE)
def language(tables: Tables) -> Figure:
    """The two-role language: which target classes follow which source classes, and how often tokens occur."""
    figure, (left, right) = drawing.panels(TWO_COLUMNS, 2.9, "What follows what", "How often")
    wide = tables["language"].pivot_table(index="source", columns="target", values="log_ratio")
    bound = np.quantile(np.abs(wide.to_numpy()), 0.9)  # a few pairs of classes are all but forbidden
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
    looks = [Look("weight p (Zipf)", BLACK), Look("stationary probability", GREY, ".", "none")]
    figure.legend(handles=[look.handle() for look in looks], loc="outside upper center", ncols=2)
    return figure


@FIGURES.reads("06_roles", "roles", corpus=TWO_ROLE)
def roles(tables: Tables) -> Figure:
    """Which role each table's neighbourhoods show: how pure they are in either."""
    rows = drawing.where(tables["roles"], agreement=0.0, input_scale=1.0, output_scale=1.0)
    figure, (ax,) = drawing.panels(ONE_COLUMN, 2.6, "")
    for place, table in enumerate(drawing.TABLES):
        for shift, (role, look) in zip((-0.18, 0.18), drawing.ROLE_LOOKS.items(), strict=True):
            own = drawing.where(rows, table=table, role=role)
            drawing.chance(ax, place + shift, own, 0.16)
            drawing.point(ax, place + shift, own["purity"], look)
    drawing.categories(ax, [look.label for look in drawing.TABLES.values()])
    ax.set(xlabel="table", ylabel="purity of 10 neighbours (fraction)", ylim=(0, None))
    looks = [replace(look, line="none") for look in drawing.ROLE_LOOKS.values()]
    return drawing.finish(figure, rows, [*looks, replace(drawing.CHANCE, label="chance")])


@FIGURES.reads("06_scaling", "roles", corpus=TWO_ROLE)
def role_scaling(tables: Tables) -> Figure:
    """Which role the tied table shows, and its loss above the language's own, by the scale of either path's gradient."""
    rows = drawing.where(tables["roles"], agreement=0.0)
    titles = "Input path scaled", "Loss", "Output path scaled", "Loss"
    figure, panels = drawing.panels(TWO_COLUMNS, 4.9, *titles, rows=2)
    for path, other, (left, right) in (("input", "output", panels[:2]), ("output", "input", panels[2:])):
        tied = drawing.where(rows, table="tied", **{f"{other}_scale": 1.0})
        for ax in (left, right):
            ax.set_xscale("log")
        for role, look in drawing.ROLE_LOOKS.items():
            drawing.curve(left, drawing.where(tied, role=role), f"{path}_scale", "purity", look, bars=True)
        drawing.level(left, tied["chance"].mean())
        drawing.scale_axis(left, tied[f"{path}_scale"], "purity of 10 neighbours (fraction)", path)
        left.set_ylim(0, None)
        untied = drawing.where(rows, table="input", role="source", arm=UNTIED)
        drawing.reference(right, untied["over_floor"], LOOKS[UNTIED])
        drawing.curve(right, drawing.where(tied, role="source"), f"{path}_scale", "over_floor", LOOKS[TIED], bars=True)
        drawing.scale_axis(right, tied[f"{path}_scale"], "loss over the floor (nats per token)", path)
        right.set_ylim(0, None)
    looks = [*drawing.ROLE_LOOKS.values(), LOOKS[TIED], replace(LOOKS[UNTIED], marker="")]
    return drawing.finish(
        figure, rows, looks, "Dotted: chance, and the ordinary tied arm. Floor: the language's own loss on the same text."
    )


@FIGURES.reads("06_measures", "alignment", "scaling_alignment", "roles", corpus=TWO_ROLE)
def measures(tables: Tables) -> Figure:
    """Output bias towards an untied pair against the purity gap, which needs no other model."""
    bias = claims.output_bias(drawing.where(claims.with_scaling(tables, "alignment"), kind="orthogonal"))
    gaps = claims.purity_gap(drawing.where(tables["roles"], table="tied", agreement=0.0, output_scale=1.0))
    both = bias.merge(gaps, on=["arm", "input_scale", "seed"])
    figure, (ax,) = drawing.panels(ONE_COLUMN, 2.9, "")
    looks = drawing.scale_looks(both) | {TIED: replace(LOOKS[TIED], label="input ×1 (tied)")}
    arms = list(both.sort_values("input_scale")["arm"].unique())
    for arm in arms:
        own, look = drawing.where(both, arm=arm), looks[arm]
        ax.plot(own["purity_gap"], own["output_bias"], ".", color=look.colour, markersize=3, alpha=0.6)
        ax.plot(own["purity_gap"].mean(), own["output_bias"].mean(), color=look.colour, marker=look.marker, markersize=5)
    drawing.level(ax, 0)
    ax.axvline(0, color=GREY, linewidth=1, linestyle=DOTTED)
    ax.set(xlabel="purity, target − source role (fraction)", ylabel="output bias (orthogonal, corrected)")
    rho = np.mean([part["output_bias"].corr(part["purity_gap"], method="spearman") for _, part in both.groupby("seed")])
    note = f"Large: means. Spearman ρ over scales, mean of the seeds: {rho:.2f}.".replace("-", "−")
    return drawing.finish(figure, both, [replace(looks[arm], line="none") for arm in arms], note, columns=3)


@FIGURES.reads("06_agreement", "roles", corpus=TWO_ROLE)
def agreement(tables: Tables) -> Figure:
    """Which role the tied table shows, and the loss, tied and untied, by how far the two roles of a token agree."""
    rows = drawing.where(tables["roles"], input_scale=1.0, output_scale=1.0)
    figure, (left, right) = drawing.panels(TWO_COLUMNS, 2.7, "Tied table", "Loss over the floor")
    tied = drawing.where(rows, table="tied")
    for role, look in drawing.ROLE_LOOKS.items():
        drawing.curve(left, drawing.where(tied, role=role), "agreement", "purity", look, bars=True)
    drawing.level(left, tied["chance"].mean())
    left.set(ylabel="purity of 10 neighbours (fraction)", ylim=(0, None))
    for value, arm in ((False, UNTIED), (True, TIED)):
        own = rows[(rows["tied"] == value) & (rows["role"] == "source") & (rows["table"] != "output")]
        drawing.curve(right, own, "agreement", "over_floor", LOOKS[arm], bars=True)
    right.set(ylabel="loss over the floor (nats per token)", ylim=(0, None))
    for ax in (left, right):
        places = sorted(rows["agreement"].unique())
        ax.set_xticks(places, [f"{place:g}" for place in places])
        ax.set_xlabel("tokens whose two roles agree (fraction)")
    return drawing.finish(figure, rows, [*drawing.ROLE_LOOKS.values(), LOOKS[UNTIED], LOOKS[TIED]], "Dotted: chance.")


@FIGURES.reads("00_sizes", "sizes")
def sizes(tables: Tables) -> Figure:
    """C5: what share of all parameters the tables take, and the loss, tied less untied, by size."""
    gaps = claims.loss_gaps(tables["sizes"]).sort_values("parameters")
    figure, (left, right) = drawing.panels(TWO_COLUMNS, 2.7, "Tables' share of parameters", "Loss, tied less untied")
    one = gaps.groupby("parameters")["share"].first()
    left.set_xscale("log")
    left.plot(one.index, one, color=BLACK, marker="o", markersize=4)
    left.plot(*published.shape_share(), color=BLACK, marker="d", markerfacecolor="white", linestyle="none")
    left.set(xlabel="parameters of the untied model", ylabel="share of both tables (fraction)", ylim=(0, 1))
    looks = {"equal_shape": Look("equal shape", BLACK, "D"), "equal_parameters": Look("equal parameters", BLUE, "o", DASHED)}
    right.set_xscale("log")
    for column, look in looks.items():
        drawing.curve(right, gaps, "parameters", column, look, bars=True)
    drawing.level(right, 0)
    right.set_xticks(one.index, [f"{count / 1e6:.2g}" for count in one.index])
    right.xaxis.set_minor_locator(NullLocator())
    right.set(xlabel="parameters of the untied model (millions)", ylabel="loss, tied − untied (nats per token)")
    hollow = Look("OLMo-1B, by its shape", BLACK, "d", "none", hollow=True)
    return drawing.finish(figure, gaps, [hollow, *looks.values()], "b: above the dotted line the tied model is worse.")


@FIGURES.reads(
    "00_verdicts",
    *("alignment", "neighbors", "gradients", "lens", "lens_budget", "residual", "losses"),
    *("scaling_alignment", "scaling_lens", "scaling_losses", "sizes"),
    corpus=None,
)
def verdicts(tables: Tables) -> Figure:
    """Every claim on every corpus: estimate, 95 % interval over seeds, and the value that would be no effect."""
    table = claims.verdicts(tables, ("C1", "C2", "C3", "C4", "C5"))
    corpora = [corpus for corpus in CORPORA if corpus in set(table["corpus"])]
    figure, panels = drawing.panels(TWO_COLUMNS, 3.4, *claims.HEADLINES.values(), rows=2)
    for ax, statistic in zip(panels, claims.HEADLINES, strict=True):
        for place, corpus in enumerate(corpora):
            for row in drawing.where(table, statistic=statistic, corpus=corpus).to_dict("records"):
                look = CORPORA[corpus]
                ax.plot(row["estimate"], -place, marker=look.marker, color=look.colour, markersize=4.5)
                if row["seeds"] > 1:
                    ax.plot([row["low"], row["high"]], [-place, -place], color=look.colour, linewidth=1.2)
                ax.annotate(row["verdict"], (row["estimate"], -place + 0.17), ha="center", fontsize=6)
        ax.axvline(0.5 if "share" in statistic else 0, color=GREY, linewidth=1, linestyle=DOTTED)
        ax.set(ylim=(0.6 - len(corpora), 0.6), yticks=[])
        ax.margins(x=0.25)
        ax.grid(visible=False, axis="y")
    figure.legend(handles=[CORPORA[corpus].handle() for corpus in corpora], loc="outside upper center", ncols=len(corpora))
    words = f"Mean and 95 % t interval over n = {table['seeds'].max()} seeds. Dotted: no effect (of a share: one half). "
    words += "C3, C5: tied less untied. Losses in nats, bits and nats a token."
    figure.supxlabel(textwrap.fill(words, round(22 * figure.get_figwidth())), x=0.01, ha="left", color="#555555")
    return figure


@FIGURES.reads("07_map", "sweep_alignment", "sweep_losses", "sweep_share", "sweep_roles", corpus=None)
def sweep_map(tables: Tables) -> Figure:
    """Output bias and loss over the grid of both scales, with the line where the table leans to neither side."""
    corpora = list(tables["sweep_losses"]["corpus"].unique())
    titles = [f"{words}, {CORPORA[corpus].label}" for corpus in corpora for words in ("Output bias", "Loss")]
    figure, panels = drawing.panels(TWO_COLUMNS, 0.3 + 2.5 * len(corpora), *titles, rows=len(corpora))
    lines = {"bias": Look("output bias 0", BLACK), "roles": Look("both roles equally pure", drawing.PURPLE, line=DASHED)}
    for corpus, left, right in zip(corpora, panels[::2], panels[1::2], strict=True):
        swept = Sweep("", corpus, {name: drawing.where(tables[name], corpus=corpus) for name in FIGURES["07_map"].needs})
        bias = _grid(swept, lambda pair, s=swept: s.bias(pair)[:, -1])
        loss = _grid(swept, swept.loss)
        most = np.abs(bias).max()
        _heat(left, swept, bias, "RdBu_r", (-most, most), "output bias (orthogonal, corrected)")
        words = "loss over the floor" if swept.has_floor else "validation loss"
        _heat(right, swept, loss, "cividis_r", (loss.min(), loss.max()), f"{words} (nats per token)")
        levels = {"bias": bias}
        if swept.has_roles:
            levels["roles"] = _grid(swept, lambda pair, s=swept: s.purity(pair, "target") - s.purity(pair, "source"))
        for ax in (left, right):
            for name, values in levels.items():
                if values.min() < 0 < values.max():
                    ax.contour(values, levels=[0], colors=lines[name].colour, linestyles=[lines[name].line], linewidths=1.5)
    figure.legend(handles=[look.handle() for look in lines.values()], loc="outside upper center", ncols=2)
    words = (
        f"Cells: means of n = {tables['sweep_losses']['seed'].nunique()} seeds. Towards the lower right the input path weighs "
    )
    words += "more; along a rising diagonal the ratio of the scales stays. Where there is no line, the grid does not cross it."
    figure.supxlabel(textwrap.fill(words, round(22 * figure.get_figwidth())), x=0.01, ha="left", color="#555555")
    return figure


def _grid(swept: Sweep, values: Callable[[tuple[float, float]], np.ndarray]) -> np.ndarray:
    """Means over seeds, a row an output scale and a column an input scale."""
    return np.array([[values((a, b)).mean() for a in swept.input_scales] for b in swept.output_scales])


def _heat(ax: Axes, swept: Sweep, values: np.ndarray, colours: str, limits: tuple[float, float], label: str) -> None:
    """A heat map whose cells say their value too."""
    image = ax.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], origin="lower", aspect="auto")
    ax.get_figure(root=True).colorbar(image, ax=ax, label=label)  # type: ignore[union-attr]
    for (row, column), value in np.ndenumerate(values):
        red, green, blue, _ = image.to_rgba(value)  # type: ignore[misc]
        ink = "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.45 else "black"
        rim = [withStroke(linewidth=1.2, foreground=image.to_rgba(value))]  # against the lines
        words = f"{value:.2f}".replace("-", "−")
        ax.text(column, row, words, ha="center", va="center", fontsize=5, color=ink, path_effects=rim, zorder=5)
    ax.grid(visible=False)
    ax.set_xticks(range(len(swept.input_scales)), [f"{scale:g}" for scale in swept.input_scales])
    ax.set_yticks(range(len(swept.output_scales)), [f"{scale:g}" for scale in swept.output_scales])
    ax.set(xlabel="input scale", ylabel="output scale")
