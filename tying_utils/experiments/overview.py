"""Notebook 00: all claims in short."""

from matplotlib.figure import Figure

from tying_utils.base.names import TIED, UNTIED
from tying_utils.experiments import claims, gradients, style
from tying_utils.experiments.alignment import output_bias
from tying_utils.experiments.style import CORPORA, DOTTED, GREY, LOOKS, TWO_COLUMNS
from tying_utils.experiments.tables import Tables, where, with_scaling
from tying_utils.experiments.tuned_lens import lens_curves

FIGURES = style.Gallery()


@FIGURES.reads("00_overview", "alignment", "gradients", "lens", "scaling_alignment")
def overview(tables: Tables) -> Figure:
    """Draw the four claims in short: alignment, gradients, lens, input scale."""
    titles = "Alignment of W with E and U", "Output path's share of the gradient", "Tuned lens by layer", "Output bias of W"
    figure, (a, b, c, d) = style.panels(TWO_COLUMNS, 4.7, *titles, rows=2)
    kinds = ("orthogonal", "linear")
    for place, kind in enumerate(kinds):
        for shift, source in ((-0.18, "input"), (0.18, "output")):
            rows = where(tables["alignment"], arm=TIED, kind=kind, source=source)
            style.point(a, place + shift, rows["corrected"], LOOKS[source])
    style.categories(a, [f"{kind} map" for kind in kinds])
    a.set(xlabel="how W is compared", ylabel="alignment, chance-corrected")
    gradients.draw_share(b, where(tables["gradients"], arm=TIED), "output_share", LOOKS[TIED])
    lens_curves(c, tables["lens"], (UNTIED, TIED))
    d.set_xscale("log")
    bias = output_bias(where(with_scaling(tables, "alignment"), kind="orthogonal"))
    style.curve(d, bias, "input_scale", "output_bias", LOOKS[TIED], bars=True)
    style.scale_axis(d, bias["input_scale"], "alignment with U − with E")
    style.level(a, 0)
    style.level(d, 0)
    note = f"b: rolling mean of {gradients.WINDOW} steps. d: orthogonal map, chance-corrected. "
    note += "Dotted: chance (a), equal norms (b), no bias and the ordinary tied arm (d)."
    looks = [LOOKS[name] for name in ("input", "output", TIED, UNTIED)]
    return style.finish(figure, tables["alignment"], looks, note)


@FIGURES.reads(
    "00_verdicts",
    *("alignment", "neighbors", "gradients", "lens", "lens_budget", "residual", "losses"),
    *("scaling_alignment", "scaling_lens", "scaling_losses", "sizes"),
    corpus=None,
)
def verdicts(tables: Tables) -> Figure:
    """Draw every claim on every corpus: estimate, 95 % interval over seeds, and the value that would be no effect."""
    table = claims.verdicts(tables, ("C1", "C2", "C3", "C4", "C5"))
    corpora = [corpus for corpus in CORPORA if corpus in set(table["corpus"])]
    figure, panels = style.panels(TWO_COLUMNS, 3.4, *claims.HEADLINES.values(), rows=2)
    for ax, statistic in zip(panels, claims.HEADLINES, strict=True):
        rows = where(table, id=statistic)
        for place, corpus in enumerate(corpora):
            for row in where(rows, corpus=corpus).to_dict("records"):
                look = CORPORA[corpus]
                ax.plot(row["estimate"], -place, marker=look.marker, color=look.colour, markersize=4.5)
                if row["seeds"] > 1:
                    ax.plot([row["low"], row["high"]], [-place, -place], color=look.colour, linewidth=1.2)
                ax.annotate(row["verdict"], (row["estimate"], -place + 0.17), ha="center", fontsize=6)
        ax.axvline(rows["null"].iloc[0], color=GREY, linewidth=1, linestyle=DOTTED)
        ax.set(ylim=(0.6 - len(corpora), 0.6), yticks=[])
        ax.margins(x=0.25)
        ax.grid(visible=False, axis="y")
    style.legend(figure, [CORPORA[corpus] for corpus in corpora])
    words = f"Mean and 95 % t interval over n = {table['seeds'].max()} seeds. Dotted: no effect (of a share: one half). "
    words += "C3, C5: tied less untied. Losses in nats, bits and nats a token."
    return style.small_print(figure, words, tight=True)
