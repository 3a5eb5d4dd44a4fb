"""Scores of models on tasks by document, and their paired differences: what `downstream.evaluate` gives, tabulated.

The values are those that lm-eval prints; added are the pairing, and standard errors of perplexities.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

COLUMNS = {
    "model": "its name in `sources`",
    "task": "as asked for; of a group whose parts do not count evenly, the part",
    "part": "the task itself, or a part of it (BLiMP has 67)",
    "metric": "lm-eval's name, with its filter where it has one: acc, acc_norm, word_perplexity, bits_per_byte ...",
    "document": "number in its part, from 0",
    "digest": "of the document: 16 hexadecimal digits of its sha256",
    "value": "score: 1 or 0 for right or wrong; of perplexities and bits a byte the log-likelihood in nats",
    "weight": "what a perplexity is taken over: words or bytes of the document; 1 elsewhere",
}
# By metric, f and its slope: the score of a part is f(sum of values / sum of weights). All others are plain means.
_Curve = Callable[[Any], Any]
_PERPLEXITY: tuple[_Curve, _Curve] = (lambda rate: np.exp(-rate), lambda rate: -np.exp(-rate))
WEIGHTED: dict[str, tuple[_Curve, _Curve]] = {
    "word_perplexity": _PERPLEXITY,
    "byte_perplexity": _PERPLEXITY,
    "bits_per_byte": (lambda rate: -rate / math.log(2), lambda rate: -1 / math.log(2) + 0 * rate),
}
_CURVES = {**WEIGHTED, "perplexity": _PERPLEXITY}


def table(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the score of each model on each task: a row per model, task and metric of `evaluate`'s `scores`.

    value is what lm-eval prints: the mean over documents; of perplexities exp(-log-likelihood / words or bytes), over all
    documents together; of a task in parts the plain mean of its parts. standard_error tells what other documents would do: of
    a mean s / sqrt(n), of perplexities to first order in each document, of parts the root of the sum of squares over their
    number; NaN where a part has one document. Raises ValueError for a table of other columns.
    """
    keys = ["model", "task", "metric"]
    rows = []
    for key, one in _checked(scores).groupby(keys, sort=False):
        value, moved = moved_by_documents(one)
        rows.append((*key, value, _standard_error(moved), len(moved)))
    return pd.DataFrame(rows, columns=[*keys, "value", "standard_error", "documents"])


def differences(scores: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Return the score of `second` minus that of `first`, a row per task and metric of both, paired over their documents.

    What makes a document hard is common to both models and drops out, so the standard error is that of the differences by
    document and mostly smaller than that of either model; low and high are its 95 % interval (Student t). Perplexities and bits
    per byte are better when they are lower.

    Raises ValueError for a table of other columns, a name that is no model of it, or documents that differ, as where the two
    were evaluated with unlike limits.
    """
    there = list(dict.fromkeys(_checked(scores)["model"]))
    for argument, name in (("first", first), ("second", second)):
        if name not in there:
            raise ValueError(f"{argument}: {name!r} is no model of scores; choose one of {', '.join(map(repr, there))}")
    mine, theirs = (
        dict(iter(scores[scores["model"] == name].groupby(["task", "metric"], sort=False))) for name in (first, second)
    )
    rows = []
    for key in (key for key in mine if key in theirs):
        one, two = (set(zip(part["part"], part["document"], part["digest"], strict=True)) for part in (mine[key], theirs[key]))
        if one != two:
            raise ValueError(
                f"scores: {first!r} and {second!r} answered unlike documents of {key[0]!r}, {len(one - two)} and "
                f"{len(two - one)} of them alone; evaluate both with one limit"
            )
        (value, moved), (other, other_moved) = moved_by_documents(mine[key]), moved_by_documents(theirs[key])
        change = other_moved - moved
        error = _standard_error(change)
        freedom = len(change) - change.index.get_level_values("part").nunique()
        half = float(stdtrit(freedom, 0.975)) * error if freedom else math.nan
        rows.append((*key, other - value, error, other - value - half, other - value + half, len(change)))
    return pd.DataFrame(rows, columns=["task", "metric", "difference", "standard_error", "low", "high", "documents"])


def moved_by_documents(one: pd.DataFrame) -> tuple[float, pd.Series]:
    """Return the score of one model, task and metric, and how far each document moves it, to first order, by document."""
    value, slope = _CURVES.get(one["metric"].iloc[0].partition(",")[0], (lambda rate: rate, lambda rate: 1 + 0 * rate))
    sums = one.groupby("part", sort=False)[["value", "weight"]].sum()
    rates = sums["value"] / sums["weight"]
    rate, total = one["part"].map(rates), one["part"].map(sums["weight"])
    moved = slope(rate) * (one["value"] - rate * one["weight"]) / total / len(sums)
    return float(value(rates).mean()), moved.set_axis(pd.MultiIndex.from_frame(one[["part", "document"]]))


def _standard_error(moved: pd.Series) -> float:
    """Return the standard error of a score that documents move by `moved`, independently, each part with its own mean."""
    parts = (moved**2).groupby(level="part").agg(["sum", "count"])
    more = (parts["count"] - 1).where(parts["count"] > 1)  # one document says nothing of others: NaN
    return float(np.sqrt((parts["sum"] * parts["count"] / more).sum(skipna=False)))


def _checked(scores: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in COLUMNS if name not in getattr(scores, "columns", ())]
    if missing or not len(scores):
        raise ValueError(
            f"scores: the rows of evaluate are needed, got {'none' if not missing else 'no column ' + ', '.join(missing)}"
        )
    if not np.isfinite(scores[["value", "weight"]].to_numpy(float)).all():
        raise ValueError(
            "scores: finite values and weights are needed, got NaN or infinity; drop those documents of every model"
        )
    if (twice := scores.duplicated(["model", "task", "part", "metric", "document"])).any():
        raise ValueError(
            f"scores: each document once is needed, got {int(twice.sum())} rows again; drop them or rename the model"
        )
    return scores
