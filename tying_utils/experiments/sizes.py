"""Notebook 00, claim C5: tables hold a smaller share of a larger model, and a tied model loses to an untied one."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from tying_utils.base.names import TIED, UNTIED
from tying_utils.experiments import style
from tying_utils.experiments.judge import Evidence, Statistic, at_equal_parameters
from tying_utils.experiments.looks import DARK, DASHED, NO_EFFECT, PURPLE, Look
from tying_utils.experiments.style import ONE_COLUMN
from tying_utils.experiments.tables import Tables, slopes, where
from tying_utils.study.profiles import described

FIGURES = style.Gallery()


def loss_gaps(sizes: pd.DataFrame) -> pd.DataFrame:
    """Return the validation loss of the tied model minus that of the untied one, nats per token, by size and seed.

    A row for each corpus, d_model, n_layers (of the untied model) and seed: parameters (untied), share (of the untied model's
    parameters that its two tables hold), equal_shape (the tied model has the same layers), equal_parameters (it has more, and
    as many weights), larger_tied (that tied model's loss minus that of the tied model of equal shape), parameters_ratio (of
    that tied model to the untied one).
    """
    rows = []
    for (corpus, seed), part in described(sizes).groupby(["corpus", "seed"], sort=False):
        enlarged = where(part, kind=TIED, enlarged=True)
        for untied in where(part, kind=UNTIED).to_dict("records"):
            shape = {name: untied[name] for name in ("d_model", "n_layers")}
            tied = where(part, kind=TIED, enlarged=False, **shape).iloc[0]
            equal = enlarged.loc[(enlarged["parameters"] - untied["parameters"]).abs().idxmin()]
            rows.append(
                {
                    "corpus": corpus,
                    **shape,
                    "seed": seed,
                    "parameters": untied["parameters"],
                    "share": untied["table_parameters"] / untied["parameters"],
                    "equal_shape": tied["validation_loss"] - untied["validation_loss"],
                    "equal_parameters": equal["validation_loss"] - untied["validation_loss"],
                    "larger_tied": equal["validation_loss"] - tied["validation_loss"],
                    "parameters_ratio": equal["parameters"] / untied["parameters"],
                }
            )
    return pd.DataFrame(rows)


def evidence(tables: Tables) -> Evidence:
    """Yield the statistics of C5, from the table sizes."""
    gaps, unit = loss_gaps(tables["sizes"]), "nats per token"
    # The profile's own size is the first one.
    own = where(gaps, **{name: gaps[name].iloc[0] for name in ("d_model", "n_layers")}).set_index("seed")
    loss = "validation loss, tied - untied"
    yield Statistic("equal_shape", "C5", f"{loss}, equal shape, nats", unit), own["equal_shape"]
    larger = Statistic("equal_parameters", "C5", f"{loss}, equal parameters, nats", unit)
    yield at_equal_parameters(larger, own["larger_tied"]), own["equal_parameters"]
    if gaps["parameters"].nunique() > 1:
        words = "the untied tables' share of all parameters, per decade of parameters"
        for column, words in (("equal_shape", "equal shape"), ("equal_parameters", "equal parameters")):
            words = f"loss gap at {words}, per decade of parameters"
            slope = Statistic(f"{column}_per_decade", "C5", words, "nats per token per decade")
            yield slope, slopes(gaps, column, gaps["parameters"])


@FIGURES.reads("00_sizes", "sizes")
def sizes(tables: Tables) -> Figure:
    """Draw C5: the validation loss, tied minus untied, by size, at equal shape and at equal parameters."""
    gaps = loss_gaps(tables["sizes"]).sort_values("parameters")
    figure, (ax,) = style.panels(ONE_COLUMN, 2.8, "What does the tie cost, by size?")
    looks = {"equal_shape": Look("equal shape", DARK, "o"), "equal_parameters": Look("equal parameters", PURPLE, "v", DASHED)}
    ax.set_xscale("log")
    for column, look in looks.items():
        style.curve(ax, gaps, "parameters", column, look, bars=True)
    style.level(ax, 0)
    sizes = sorted(gaps["parameters"].unique())
    ax.set_xticks(sizes, [f"{count / 1e6:.2g}" for count in sizes])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="parameters of the untied model (millions)", ylabel="loss, tied − untied (nats per token)")
    return style.finish(figure, gaps, [*looks.values(), NO_EFFECT], "Above 0 the tied model is worse.")
