"""The grid that ends a notebook: a row per claim in words, a column per corpus, in each cell a mark and a number."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from tying_utils.experiments.looks import CORPORA
from tying_utils.experiments.style import from_to

# Each claim in words, by the code that tables know it by.
SENTENCES = {
    "C1": "A tied table is nearer to an untied output table than to an input table",
    "C1 roles": "A tied table shows the output's role more than the input's",
    "C2": "The output path supplies more of the gradient than the input path",
    "C2b": "The output path supplies more of Adam's update, too",
    "C2 cause": "The output path's larger gradient is what causes the bias",
    "C3": "Early layers of a tied model are further from its prediction and contribute less",
    "C3 lens": "The same, read with a lens that was stopped early",
    "C4": "Scaling up the input gradient lessens the bias",
    "C4 price": "Scaling up the input gradient costs loss",
    "C4 roles": "Scaling up the input gradient turns the table to the input's role",
    "C4 sweep": "Scaling down the output gradient lessens the bias, too: the ratio counts",
    "C5": "Tying costs loss",
    "C5 check": "A larger tied model has a lower loss",
    "C5 roles": "Tying costs loss where a token's two roles differ, less where they agree",
    "C6": "An untied output table moves further from its start than the input table",
    "roles": "Each untied table shows the role that its use needs",
    "transfer": "A start that leans less learns a second text sooner and forgets less of the first",
}
MARKS = {"supported": "✓", "refuted": "✗", "equivalent": "≈", "open": "?", "not measurable": "∅", "": "·"}
_MEANINGS = {
    "supported": "the 95 % interval over seeds is on the claimed side of no effect",
    "refuted": "it is on the other side",
    "equivalent": "all of it is too near to no effect to be worth naming",
    "open": "undecided",
    "not measurable": "a larger tied model is no better than a smaller one, so the comparison says nothing of tying",
    "": "fewer than three seeds, so no verdict",
}
_TINTS = {"✓": "rgba(46, 125, 50, 0.16)", "✗": "rgba(198, 40, 40, 0.16)", "≈": "rgba(128, 128, 128, 0.22)"}
_EARLY = ("quick", "laptop")  # the profiles whose models saw a hundredth of the paper's tokens per weight
_WIDEST = 8  # columns that a reader takes in at once, those of the index among them
_CSS: Any = [
    {"selector": "caption", "props": "text-align: left; font-size: 1em; padding-bottom: 0.6em"},
    {"selector": "th.row_heading", "props": "text-align: left; font-weight: normal; white-space: normal; max-width: 22em"},
    {"selector": "td", "props": "text-align: left; min-width: 6em"},
]


def claim(code: str) -> str:
    """Return a claim's code with its sentence, as "C5: Tying costs loss"."""
    return f"{code}: {SENTENCES[code]}"


def sentence(judged: pd.DataFrame, profile: str) -> str:
    """Return in one sentence how many rows of `judged` have which verdict, and at which profile's scale."""
    counts = judged["verdict"].value_counts()
    early = ", the first hundredth of training" if profile in _EARLY else ""
    together = "all judged together" if "p_holm" in judged else "each judged alone"
    found = [f"{counts[verdict]} {verdict or 'without a verdict'}" for verdict in MARKS if verdict in counts]
    words = " and ".join(filter(None, [", ".join(found[:-1]), found[-1]]))
    return f"Of {len(judged)} comparisons at {profile} scale{early}, {together}, {words}."


def cell(row: dict[str, Any], digits: int = 3) -> str:
    """Return a judged row as its mark and its mean with the interval, or with fewer than three seeds the mean alone."""
    mean, low, high = (f"{row[name]:.{digits}f}" for name in ("estimate", "low", "high"))
    return f"{MARKS[row['verdict']]} {mean} ({low} to {high})" if row["verdict"] else f"{MARKS['']} {mean}"


def grid(
    judged: pd.DataFrame,
    profile: str,
    *,
    rows: Iterable[str] = ("claim", "statistic"),
    columns: str = "corpus",
    digits: int = 3,
) -> Styler:
    """Return rows of verdicts as a table to show: a row per combination of `rows`, a column per value of `columns`.

    A cell is the verdict's mark, the mean over seeds and its 95 % interval; the caption counts the verdicts and says what the
    marks mean. Codes in the column "claim" get their sentence, and a column says how many seeds it has. `judged` has the
    columns of `Statistic.row`. Raises ValueError for no rows, and for two rows in one cell.
    """
    keys = [*rows]
    if judged.empty or judged.duplicated([*keys, columns]).any():
        raise ValueError(f"judged: rows that differ in {', '.join([*keys, columns])} are needed, got {len(judged)} rows")
    records: Any = judged.to_dict("records")
    told = judged.assign(cell=[cell(row, digits) for row in records])
    if "claim" in keys:
        told["claim"] = told["claim"].map(claim)
    if "statistic" in keys and {"unit", "claimed"} <= {*told}:
        side = told["claimed"] + " " + told["null"].map("{:g}".format)
        told["statistic"] = told["statistic"] + " (" + told["unit"] + "; claimed: " + side + ")"
    titles = {}
    for value, part in told.groupby(columns, sort=False):
        name = CORPORA[str(value)].label if value in CORPORA else _head(value)
        titles[value] = f"{name} (n = {from_to(part['seeds'])})"
    told[columns] = told[columns].map(titles)
    table = told.set_index([*keys, columns])["cell"].unstack(columns, sort=False).fillna("")
    table.index.names, table.columns.name = [name.replace("_", " ") for name in keys], None
    marks = {MARKS[verdict]: _MEANINGS[verdict] for verdict in MARKS if (judged["verdict"] == verdict).any()}
    caption = f"{sentence(judged, profile)} " + "; ".join(f"{mark} {words}" for mark, words in marks.items()) + "."
    return table.style.format_index(_head).set_caption(caption).set_table_styles(_CSS).map(_tint)


def _tint(text: Any) -> str:
    return f"background-color: {_TINTS[text[0]]}" if text[:1] in _TINTS else ""


def table(frame: pd.DataFrame | pd.Series, caption: str = "", digits: int = 3) -> Styler:
    """Return a table to show, of at most eight columns with those of its index: numbers to `digits`, whole ones without any.

    Numbers in its heads are as short as they go, 0.13 and not 0.130000.

    Raises ValueError for a wider one.
    """
    own = frame.to_frame() if isinstance(frame, pd.Series) else frame
    if (width := own.index.nlevels + own.shape[1]) > _WIDEST:
        raise ValueError(f"frame: at most {_WIDEST} columns with those of the index can be read, got {width}; choose some")
    shown = own.style.format(precision=digits, na_rep="", thousands=",")
    for axis in (0, 1):
        shown = shown.format_index(_head, axis=axis)
    return (shown.set_caption(caption) if caption else shown).set_table_styles(_CSS)


def _head(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
