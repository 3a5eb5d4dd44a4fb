"""Notebook 00: all claims in short."""

from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from tying_utils.base.names import TIED, UNTIED
from tying_utils.experiments import claims, gradients, style
from tying_utils.experiments.alignment import output_bias
from tying_utils.experiments.grid import MARKS
from tying_utils.experiments.judge import Side
from tying_utils.experiments.looks import CORPORA, DARK, DOTTED, GREY, LOOKS, NO_EFFECT, PURPLE
from tying_utils.experiments.style import TWO_COLUMNS
from tying_utils.experiments.tables import Tables, where, with_scaling
from tying_utils.experiments.tuned_lens import lens_curves

FIGURES = style.Gallery()
_SHADE = "#ece7f0"


# What each of `claims.HEADLINES` says in words, and what is measured of it with its unit.
CLAIMED = {
    "output_bias": (
        "C1  The tied table is nearer to the output\ntable U than to the input table E",
        "output bias of W (corrected alignment)",
    ),
    "early_share": (
        "C2  Early in training the output path has\nthe larger gradient",
        "output share of the gradient norm (fraction)",
    ),
    "early_update_share": ("C2b  … and the larger part of Adam's update", "output share of the update norm (fraction)"),
    "lens_gap": (
        "C3  Early layers of a tied model are further\nfrom its prediction",
        "lens KL at the input, tied − untied (bits per token)",
    ),
    "bias_per_decade": (
        "C4  A larger input scale reduces the bias",
        "output bias per decade of scale (corrected alignment)",
    ),
    "loss_per_decade": ("C4  … and costs loss", "loss per decade of scale (nats per token)"),
    "equal_shape": ("C5  A tied model of equal shape has more loss", "loss, tied − untied (nats per token)"),
    "equal_parameters": ("C5  … and so has one of equal parameters", "loss, tied − untied (nats per token)"),
}
# Colour and weight of each verdict; without one (too few seeds) a row has no mark either.
_VERDICTS = {
    "supported": (DARK, "bold"),
    "refuted": ("#cc3311", "bold"),
    "equivalent": (PURPLE, "normal"),
    "open": (GREY, "normal"),
    "not measurable": (GREY, "normal"),
}


@FIGURES.reads("00_overview", "alignment", "gradients", "lens", "scaling_alignment")
def overview(tables: Tables) -> Figure:
    """Draw the claims in short: alignment, gradients, lens, input scale."""
    titles = "Is W nearer to E or to U?", "Which path's gradient is larger?"
    titles += "How far is each layer from the output?", "Does a larger input scale turn W?"
    figure, (a, b, c, d) = style.panels(TWO_COLUMNS, 4.7, *titles, rows=2)
    kinds = ("orthogonal", "linear")
    for place, kind in enumerate(kinds):
        for shift, source in ((-0.18, "input"), (0.18, "output")):
            rows = where(tables["alignment"], arm=TIED, kind=kind, source=source)
            style.point(a, place + shift, rows["corrected"], LOOKS[source])
    style.categories(a, [f"{kind} map" for kind in kinds])
    a.set(xlabel="how W is compared", ylabel="alignment (cosine, chance-corrected)")
    gradients.draw_share(b, where(tables["gradients"], arm=TIED), "output_share", LOOKS[TIED])
    lens_curves(c, tables["lens"], (UNTIED, TIED))
    d.set_xscale("log")
    bias = output_bias(where(with_scaling(tables, "alignment"), kind="orthogonal"))
    style.curve(d, bias, "input_scale", "output_bias", LOOKS[TIED], bars=True)
    style.scale_axis(d, bias["input_scale"], "output bias (corrected alignment)")
    style.level(a, 0)
    style.level(d, 0)
    note = f"b: rolling mean of {gradients.WINDOW} steps. d: alignment of W with U minus that with E, orthogonal map."
    looks = [*(LOOKS[name] for name in ("input", "output", TIED, UNTIED)), replace(NO_EFFECT, label="chance, or no effect")]
    return style.finish(figure, tables["alignment"], looks, note)


@FIGURES.reads(
    "00_verdicts",
    *("alignment", "neighbors", "gradients", "lens", "lens_budget", "residual", "losses"),
    *("scaling_alignment", "scaling_lens", "scaling_losses", "sizes"),
    corpus=None,
)
def verdicts(tables: Tables) -> Figure:
    """Draw every claim in words with its estimate, 95 % interval and verdict on each corpus, the claimed side shaded."""
    table = claims.verdicts(tables, ("C1", "C2", "C3", "C4", "C5"))
    corpora = [corpus for corpus in CORPORA if corpus in set(table["corpus"])]
    height = (0.36 + 0.13 * max(2, len(corpora))) * len(CLAIMED) + 0.5
    figure = style.Picture(figsize=(TWO_COLUMNS, height), layout="constrained")
    words, panels = figure.subplots(len(CLAIMED), 2, width_ratios=(1, 1.25)).T
    for beside, ax, (name, (sentence, axis)) in zip(words, panels, CLAIMED.items(), strict=True):
        beside.set_axis_off()
        beside.text(0, 0.5, sentence, va="center", transform=beside.transAxes)
        rows = where(table, id=name)
        for place, corpus in enumerate(corpora):
            for row in where(rows, corpus=corpus).to_dict("records"):
                look = CORPORA[corpus]
                if row["seeds"] > 2:  # an interval of two would set the scale alone
                    ax.plot([row["low"], row["high"]], [place, place], color=look.colour, linewidth=1.2)
                ax.plot(row["estimate"], place, markersize=4.5, zorder=3, **look.mark)
                if row["verdict"]:
                    colour, weight = _VERDICTS[row["verdict"]]
                    said = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": 7, "color": colour}
                    ax.text(1.02, place, f"{MARKS[row['verdict']]} {row['verdict']}", fontweight=weight, **said)
        _claimed_side(ax, rows["null"].iloc[0], rows["claimed"].iloc[0])
        ax.set(xlabel=axis, ylim=(len(corpora) - 0.4, -0.6), yticks=[])
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.grid(visible=False, axis="y")
    shade = Patch(color=_SHADE, label="claimed side")
    style.legend(figure, [*(CORPORA[corpus] for corpus in corpora), NO_EFFECT, shade])
    own = table[table["id"].isin(CLAIMED)]
    seeds = style.counted({CORPORA[corpus].label: where(own, corpus=corpus)["seeds"] for corpus in corpora})
    words = f"{seeds}: mean, with its 95 % t interval from three seeds up. No effect of a share: one half."
    return style.small_print(figure, words, tight=True)


def _claimed_side(ax: Axes, null: float, side: Side) -> None:
    """Shade the side of `null` that a claim names, and draw the line of no effect, with room on both sides."""
    low, high = ax.dataLim.intervalx
    low, high = min(low, null), max(high, null)
    room = 0.12 * (high - low)
    ax.set_xlim(low - room, high + room)
    edge = ax.get_xlim()[side == "above"]
    ax.axvspan(null, edge, color=_SHADE, linewidth=0, zorder=0)
    ax.axvline(null, color=GREY, linewidth=1, linestyle=DOTTED)
