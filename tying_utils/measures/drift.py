"""How far a table moves while it trains (arXiv 2603.26663, Figures 3, 8 and 9)."""

from collections.abc import Mapping

import pandas as pd
from torch import Tensor

from tying_utils.base.checks import steps as checked_steps
from tying_utils.base.checks import table as checked_table
from tying_utils.base.precision import plain

from .alignment import row_cosines


@plain()
def drift(tables: Mapping[int, Tensor]) -> pd.DataFrame:
    """Return the mean row cosine of each checkpoint's table with the first one and with the one before it; nothing is centred.

    tables: optimizer step -> (V, d), any floating dtype, in any order; at most three are held at a time, so a mapping
    that reads from disk on access will do. Columns: step, to_start, to_previous, a row per step in rising order. Both
    cosines of the first step are 1, as published; a zero row has cosine 0. Raises ValueError for fewer than 2 tables,
    and for a step whose table has another shape than the first.
    """
    first, *later = checked_steps("tables", tables)
    start = previous = checked_table("tables", tables[first])
    rows = [(first, 1.0, 1.0)]
    for step in later:
        table = checked_table("tables", tables[step])
        if table.shape != start.shape:
            raise ValueError(
                f"tables: every step needs the shape of step {first}, {tuple(start.shape)}, "
                f"got {tuple(table.shape)} at step {step}"
            )
        to_start = float(row_cosines(table, start).mean())
        rows.append((step, to_start, to_start if previous is start else float(row_cosines(table, previous).mean())))
        previous = table
    return pd.DataFrame(rows, columns=["step", "to_start", "to_previous"])
