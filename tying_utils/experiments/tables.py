"""The tidy tables that experiments read, and the rows of them that several experiments ask for."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd

from tying_utils.base.names import TIED, UNTIED
from tying_utils.measures import statistics


class Tables(Protocol):
    """Tidy tables by name: a `study.Study`, a `study.Results`, or a plain dict of DataFrames."""

    def __getitem__(self, name: str, /) -> pd.DataFrame: ...

    def __contains__(self, name: object, /) -> bool: ...


class OfCorpus:
    """The rows of one corpus in every table."""

    def __init__(self, tables: Tables, corpus: str) -> None:
        self.tables, self.corpus = tables, corpus

    def __getitem__(self, name: str) -> pd.DataFrame:
        return where(self.tables[name], corpus=self.corpus)

    def __contains__(self, name: object) -> bool:
        return name in self.tables


def where(frame: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """Return the rows of `frame` whose columns hold `values`."""
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame


def with_scaling(results: Tables, name: str) -> pd.DataFrame:
    """Return the table called `name` with its scaled arms; the untied pair, which may be in both, once."""
    return pd.concat([results[name], results[f"scaling_{name}"]], ignore_index=True).drop_duplicates()


def tuned(lens: pd.DataFrame, layer: int | None = None, indexing: str = "matched") -> pd.DataFrame:
    """Return the rows of the tuned lens: of `layer`, 0 the input, or of all layers.

    `indexing`: "matched", each translator read on the layer that it was trained on, or "published", one layer off.
    """
    rows = where(lens, lens="tuned", indexing=indexing)
    return rows if layer is None else where(rows, layer=layer)


def tied_less_untied(table: pd.DataFrame, column: str) -> pd.Series:
    """Return by seed the mean of `column` over the tied arm's rows minus that over the untied arm's."""
    means = table.groupby(["arm", "seed"])[column].mean()
    return means[TIED] - means[UNTIED]


def output_minus_input(table: pd.DataFrame, keys: Sequence[str], column: str, name: str) -> pd.DataFrame:
    """Return `column` of the rows whose source is the output table minus that of the input table, by `keys`, called `name`."""
    wide = table.pivot_table(index=[*keys], columns="source", values=column)
    return (wide["output"] - wide["input"]).rename(name).reset_index()


def slopes(table: pd.DataFrame, column: str, across: pd.Series) -> pd.Series:
    """Return by seed the least-squares slope of `column` against log10 of `across`, a value for each row of `table`."""
    table = table.assign(decades=np.log10(across.to_numpy()))
    return pd.Series({seed: statistics.slope(rows["decades"], rows[column]) for seed, rows in table.groupby("seed")})
