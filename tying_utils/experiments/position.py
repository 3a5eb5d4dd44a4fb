"""Where a tied table lies between the poles: a second untied model's input table is 0, its output table is 1.

A raw output bias has no unit: two untied models share little of E and much of U, so even a table that was wholly an output
table would not reach a bias of 1. The second model is trained alike from another start; the first is the reference for both.
"""

from dataclasses import replace

import pandas as pd
from matplotlib.figure import Figure

from tying_utils.base.names import LOG_COUNT, SECOND_START, TIED
from tying_utils.experiments import style
from tying_utils.experiments.judge import Evidence, Statistic
from tying_utils.experiments.looks import DOTTED, GREY, LOOKS, NO_EFFECT, PURPLE, Look
from tying_utils.experiments.style import ONE_COLUMN
from tying_utils.experiments.tables import Tables, output_minus_input, where

FIGURES = style.Gallery()
_POLES = {
    "input": replace(LOOKS["input"], label="input table E′", line="none"),
    "output": replace(LOOKS["output"], label="output table U′", line="none"),
}
# The rows of the figure from above: the arm, whether what token counts predict is taken out, and what the row is called.
_ROWS = {
    (TIED, False): Look("W", LOOKS[TIED].colour, LOOKS[TIED].marker),
    (TIED, True): Look("W, token\nfrequency out", PURPLE, "v"),
    (LOG_COUNT, False): Look("log counts\nalone", GREY, "P"),
}
_KEYS = ("corpus", "d_model", "tokens_per_weight", "seed", "frequency_out")


def positions(poles: pd.DataFrame, second: str = SECOND_START) -> pd.DataFrame:
    """Return where each arm's input-use table lies, a row per arm and seed, as it is and without what token counts predict.

    poles: a table called so, of a study or of the axis of length; second: the arm whose two tables are the poles. Columns:
    corpus (and d_model, tokens_per_weight where the table has them), seed, frequency_out, arm, input_scale, bias (corrected
    alignment with U minus that with E), input_pole and output_pole (the same of the second untied model's tables), position
    ((bias - input_pole) / (output_pole - input_pole)).
    The arm "log count" is a table that knows nothing but how often its tokens occur.
    """
    keys = [key for key in _KEYS if key in poles]
    bias = output_minus_input(poles, [*keys, "arm", "input_scale", "target"], "corrected", "bias")
    of_poles, others = where(bias, arm=second), bias[bias["arm"] != second]
    found = others[others["target"].isin(["tied", "input", LOG_COUNT])]
    for table in ("input", "output"):
        pole = where(of_poles, target=table)[[*keys, "bias"]].rename(columns={"bias": f"{table}_pole"})
        found = found.merge(pole, on=keys)
    return found.assign(position=(found["bias"] - found["input_pole"]) / (found["output_pole"] - found["input_pole"]))


def evidence(tables: Tables) -> Evidence:
    """Yield the statistics of C1 that have a unit, from the table poles."""
    found = where(positions(tables["poles"]), arm=TIED)
    unit = "way from an input table (0) to an output table (1)"
    for name, frequency_out, words in (
        ("position", False, "position of W between the poles"),
        ("position_without_frequency", True, "position of W between the poles, token frequency taken out"),
    ):
        statistic = Statistic(name, "C1", words, unit, null=0.5, smallest=0.1)
        yield statistic, where(found, frequency_out=frequency_out).set_index("seed")["position"]


@FIGURES.reads("01_position", "poles")
def number_line(tables: Tables) -> Figure:
    """Draw where W lies between the tables of a second untied model, and how far token counts alone would take it."""
    found = positions(tables["poles"])
    figure, (ax,) = style.panels(ONE_COLUMN, 2.3, "Is W more E or more U?")
    for y, ((arm, frequency_out), look) in enumerate(_ROWS.items()):
        own = where(found, arm=arm, frequency_out=frequency_out)
        style.row(ax, y, own["position"], look)
    for x, look in enumerate(_POLES.values()):
        ax.axvline(x, color=look.colour, linewidth=1)
        ax.plot(x, -0.6, color=look.colour, marker=look.marker, clip_on=False)
    ax.axvline(0.5, color=GREY, linewidth=1, linestyle=DOTTED)
    ax.set_yticks(range(len(_ROWS)), [look.label for look in _ROWS.values()])
    low, high = min(0, found["position"].min()), max(1, found["position"].max())  # dots set no limits
    ax.set(xlabel="way from E′ (0) to U′ (1) (fraction)", xlim=(low - 0.08, high + 0.08), ylim=(len(_ROWS) - 0.4, -0.6))
    ax.grid(visible=False, axis="y")
    poles = where(found, arm=TIED, frequency_out=False)[["input_pole", "output_pole"]].mean()
    note = f"Output bias of E′: {poles['input_pole']:.2f}, of U′: {poles['output_pole']:.2f} (corrected alignment)."
    return style.finish(figure, found, [*_POLES.values(), replace(NO_EFFECT, label="half way")], note.replace("-", "−"))
