"""Tables of Markdown, and numbers as they are written in them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pandas as pd

from tying_utils.base.names import LABELS
from tying_utils.measures import statistics


def table(header: str, rows: Iterable[Iterable[Any]]) -> str:
    """Return a Markdown table. `header` has " | " between its columns; a cell that is the id of a corpus shows its name."""
    titles = header.split(" | ")
    lines = ([LABELS.get(cell, str(cell)) for cell in row] for row in (titles, ["---"] * len(titles), *rows))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def spread(frame: pd.DataFrame, keys: list[str], across: str, cell: Callable[[Any], str]) -> Iterator[tuple[Any, ...]]:
    """Yield a row for each combination of `keys`: these, then for each value of `across` the cell of its last row, or ""."""
    for values, part in frame.groupby(keys, sort=False):
        cells = {row[across]: cell(row) for row in part.to_dict("records")}
        yield (*values, *(cells.get(column, "") for column in frame[across].unique()))


def span(middle: float, low: float, high: float, form: str = ".3f") -> str:
    """Return "middle (low to high)", each number in the format `form`."""
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def mean(values: pd.Series, form: str = ".2f") -> str:
    """Return the mean of one value per seed with its 95 % t interval."""
    interval = statistics.mean_interval(values.to_numpy())
    one = interval.n == 1
    return f"{interval.mean:{form}} (one seed)" if one else span(interval.mean, interval.low, interval.high, form)


def judged(row: Any) -> str:
    """Return a row of verdicts as "**verdict** mean (low to high)", or the mean alone where there are too few seeds for one."""
    if not row["verdict"]:
        return f"{row['estimate']:.3f}"
    return f"**{row['verdict']}** {span(row['estimate'], row['low'], row['high'])}"
