"""What models that a card has trained say of the claims, from the tables that `tying-utils gpu --read` writes."""

from typing import Any

import pandas as pd

from tying_utils.base import paths
from tying_utils.base.names import TIED, UNTIED, scaled
from tying_utils.base.table_store import TableStore
from tying_utils.experiments import alignment, length
from tying_utils.experiments.advice import LOOKS
from tying_utils.experiments.tables import where
from tying_utils.study.axis import Lengths

TABLES = ("losses", "share", "alignment", "lens")
# Of the statistics of the axis of length those that a card may answer, in the order of their claims.
_ASKED = ("output_bias", "early_share", "late_share", "share_gap", "lens_gap", "scaled_bias", "scaled_loss", "equal_shape")
_X5 = scaled(5)


def found() -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """Return the machine of the last check of a card that was read, and its tables by name; nothing where there was none."""
    store = TableStore(paths.results("gpu"))
    read = {name: store.read(name, lambda entry: True, keep=True) for name in ("checks", "rates", *TABLES)}
    machine = (store.manifest or {}).get("machine", {})
    return machine, {name: part[0] for name, part in read.items() if part}


def condition(machine: dict[str, Any], tables: dict[str, pd.DataFrame]) -> str:
    """Return in words what was trained, for how long and in what."""
    size, one = where(tables["rates"], task="size").set_index("what")["value"], tables["losses"].iloc[0]
    text = LOOKS[one["corpus"]].label if one["corpus"] in LOOKS else one["corpus"]
    words = f"{text}, d {one['d_model']}, {one['n_layers']} layers"
    words += (
        f", {size['weights'] / 1e6:.1f} million weights in the untied model, {one['tokens_per_weight']:.2g} tokens per weight"
    )
    return f"{words} in batches of {size['tokens_per_step']:,.0f}, {machine['dtype'].partition(':')[0]}"


def verdicts(tables: dict[str, pd.DataFrame], lengths: Lengths) -> pd.DataFrame:
    """Judge the claims by the `tables` of a card, all rows together; empty where there is nothing to judge.

    Columns: place ("on a card") and those of `length.together`. The statistics are those of the axis of length, whose tables
    `lengths` holds; one whose tables are not there, as the lens where it is not installed, is left out. Raises ValueError where
    there is something to judge and `lengths` is empty.
    """
    if not ({*TABLES} - {"lens"} <= {*tables} and (by_seed := _by_seed(tables))):
        return pd.DataFrame()
    known = length.values(lengths).drop_duplicates("id").set_index("id")["statistic"]
    rows = [known[name].row(values) for name, values in by_seed.items() if name in known]
    return length.together(pd.DataFrame(rows)).assign(place="on a card")


def _by_seed(tables: dict[str, pd.DataFrame]) -> dict[str, pd.Series]:
    def wide(table: pd.DataFrame, column: str) -> pd.DataFrame:
        return table.pivot(index="seed", columns="arm", values=column).reindex(columns=[UNTIED, TIED, _X5])

    bias = wide(alignment.output_bias(tables["alignment"]), "output_bias")
    early, late = (wide(where(tables["share"], tenth=tenth), "output_share") for tenth in (1, 10))
    loss = wide(tables["losses"], "validation_loss")
    found = {
        "output_bias": bias[TIED],
        "early_share": early[TIED],
        "share_gap": early[TIED] - early[UNTIED],
        "late_share": late[TIED],
        "scaled_bias": bias[_X5] - bias[TIED],
        "scaled_loss": loss[_X5] - loss[TIED],
        "equal_shape": loss[TIED] - loss[UNTIED],
    }
    if "lens" in tables:
        kl = wide(where(tables["lens"], layer=0), "kl_bits")
        found["lens_gap"] = kl[TIED] - kl[UNTIED]
    return {name: values for name, values in ((name, found[name].dropna()) for name in _ASKED if name in found) if len(values)}
