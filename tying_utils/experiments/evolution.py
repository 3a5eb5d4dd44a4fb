"""Notebook 05, claim C6: an untied model's output table moves further from its start than its input table."""

from dataclasses import replace

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tying_utils.base.names import UNTIED
from tying_utils.experiments import style
from tying_utils.experiments.judge import Evidence, Statistic
from tying_utils.experiments.looks import GREY, TABLES
from tying_utils.experiments.style import TWO_COLUMNS
from tying_utils.experiments.tables import Tables, where

FIGURES = style.Gallery()


def evidence(tables: Tables) -> Evidence:
    """Yield the statistics of C6, from the table drift."""
    drift = where(tables["drift"], arm=UNTIED)
    last = drift["step"].max()
    early = drift["step"][drift["step"] <= last / 10].max()
    for name, when, step, published in (
        ("drift_gap_early", "a tenth of training", early, "0.9906 - 0.9583 = 0.032 at 2,000 steps"),
        ("drift_gap", "training", last, "0.8654 - 0.5609 = 0.305 at 20,000 steps"),
    ):
        wide = where(drift, step=step).pivot_table(index="seed", columns="table", values="to_start")
        words = f"cosine to the start after {when}, input - output table"
        yield Statistic(name, "C6", words, "mean row cosine", published=published), wide["input"] - wide["output"]


@FIGURES.reads("05_drift", "drift")
def drift(tables: Tables) -> Figure:
    """Draw Figures 3, 8 and 9: how far each table moves from its start, and since it was last kept."""
    table = tables["drift"]
    # Tables are kept at log-spaced steps and at round ones too: a gap that is short for its place would look like rest.
    gap = table.groupby(["arm", "seed", "table"])["step"].diff()
    shown = {"to_start": table, "to_previous": table[gap >= table["step"] / 5]}
    figure, panels = style.panels(TWO_COLUMNS, 2.6, "How like its start is each table?", "How like itself as kept before?")
    for ax, (column, rows) in zip(panels, shown.items(), strict=True):
        ax.set_xscale("symlog", linthresh=1, linscale=0.4)  # linear from step 0 to 1
        for first, (name, look) in enumerate(TABLES.items()):
            # W and U move alike: with markers by turns the lower curve still shows.
            style.curve(ax, where(rows, table=name), "step", column, look, every=(first % 2, 2))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set(xlabel="step (optimizer)", ylabel="mean row cosine", xlim=(-0.15, None))
    return style.finish(figure, table, TABLES.values(), "b: intervals of at least a fifth of the step.", bars=False)


@FIGURES.reads("05_frequency", "frequency")
def frequency(tables: Tables) -> Figure:
    """Draw Figure 5: row norms by how often the token occurs in the training text."""
    figure, panels = style.panels(TWO_COLUMNS, 2.6, *(look.label for look in TABLES.values()))
    looks = []
    for ax, (name, look) in zip(panels, TABLES.items(), strict=True):
        own = where(tables["frequency"], table=name)
        tokens = own.groupby("log10_count")[["norm_mean", "norm_std"]].mean()
        low, high = tokens["norm_mean"] - tokens["norm_std"], tokens["norm_mean"] + tokens["norm_std"]
        ax.fill_between(tokens.index, low, high, color=look.colour, alpha=0.18, linewidth=0)
        style.curve(ax, own, "log10_count", "norm_mean", look, bars=True)
        ax.set(xlabel="log10(count + 1) of the token", ylabel="row norm (L2)", ylim=(0, None))
        rho = own.groupby("seed")["spearman"].first().mean()
        looks.append(replace(look, label=f"{look.label}: Spearman ρ = {rho:.2f}".replace("-", "−")))
    band = Patch(color=GREY, alpha=0.3, linewidth=0, label="one standard deviation of the tokens in a bin")
    return style.finish(figure, tables["frequency"], [*looks, band], columns=2)
