"""What the committed tables of a real model say: its output share beside chance text, and along the window."""

import pandas as pd

from tying_utils.measures.statistics import mean_interval


def whole(shares: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `study.real.Real`'s table "shares" that are of whole windows: one for each text and batch."""
    return shares[(shares["first"] == 0) & (shares["last"] == shares["last"].max())]


def by_text(shares: pd.DataFrame) -> pd.DataFrame:
    """Return mean, low and high (95 %, Student t over batches) of output share, cosine and loss on each text, a row each."""
    rows = [
        {"text": text, "measure": measure, **vars(mean_interval(part[measure])), "tokens": part["tokens"].sum()}
        for text, part in whole(shares).groupby("text", sort=False)
        for measure in ("output_share", "cosine", "loss")
    ]
    return pd.DataFrame(rows).rename(columns={"n": "batches"}).set_index(["text", "measure"])


def by_position(shares: pd.DataFrame) -> pd.DataFrame:
    """Return the mean output share over batches at each group of positions: a row for each, a column for each text."""
    parts = shares.drop(whole(shares).index)
    return parts.pivot_table(index=["first", "last"], columns="text", values="output_share", sort=False)
