"""Where a tied table lies between the poles: a second untied model's input table is 0, its output table is 1.

A raw output bias has no unit: two untied models share little of E and much of U, so even a table that was wholly an output
table would not reach a bias of 1. The second model is trained alike from another start; the first is the reference for both.
"""

import pandas as pd

from tying_utils.base.names import LOG_COUNT, SECOND_START, TIED
from tying_utils.experiments.judge import Evidence, Statistic
from tying_utils.experiments.tables import Tables, where

_KEYS = ("corpus", "d_model", "tokens_per_weight", "seed", "frequency_out")


def positions(poles: pd.DataFrame) -> pd.DataFrame:
    """Return where each arm's tied table lies, a row per arm and seed, as it is and without what token counts predict.

    poles: a table called so, of a study or of the axis of length. Columns: corpus (and d_model, tokens_per_weight where the
    table has them), seed, frequency_out, arm, input_scale, bias (corrected alignment with U minus that with E), input_pole and
    output_pole (the same of the second untied model's tables), position ((bias - input_pole) / (output_pole - input_pole)).
    The arm "log count" is a table that knows nothing but how often its tokens occur.
    """
    keys = [key for key in _KEYS if key in poles]
    wide = poles.pivot_table(index=[*keys, "arm", "input_scale", "target"], columns="source", values="corrected")
    bias = (wide["output"] - wide["input"]).rename("bias").reset_index()
    second = where(bias, arm=SECOND_START)
    found = where(bias, target="tied") if LOG_COUNT not in set(bias["arm"]) else bias[bias["target"].isin(["tied", LOG_COUNT])]
    for table in ("input", "output"):
        pole = where(second, target=table)[[*keys, "bias"]].rename(columns={"bias": f"{table}_pole"})
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
