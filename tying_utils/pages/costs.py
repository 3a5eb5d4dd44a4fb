"""What computing costs, as the blocks of benchmarks/README.md: ratios to other ways, growth with size, and what a card said."""

from typing import Any

import pandas as pd

from tying_utils.base import paths
from tying_utils.base.table_store import TableStore
from tying_utils.experiments import on_card
from tying_utils.experiments.tables import where
from tying_utils.pages import markdown


def _stored(store: TableStore, *names: str) -> dict[str, pd.DataFrame]:
    read = {name: store.read(name, lambda entry: True, keep=True) for name in names}
    return {name: found[0] for name, found in read.items() if found}


def benchmarks() -> str:
    """Return what ours costs beside other ways to the same values, as ratios, and how it grows with size."""
    writers = {"ratios": _ratios, "growth": _slopes}
    tables = _stored(TableStore(paths.results("benchmarks")), *writers)
    return "\n\n".join(writers[name](table) for name, table in tables.items()) or "Not measured yet: `make bench`."


def _ratios(table: pd.DataFrame) -> str:
    rows = []
    sizes = ["V", "d", "layers", "tokens"]
    for _, part in table.groupby(["part", "what", *sizes, "ours", "other", "device", "threads"], sort=False, dropna=False):
        one, cells = part.iloc[0], {row["quantity"]: _ratio(row) for row in part.to_dict("records")}
        what = one["what"] if pd.isna(one["note"]) else f"{one['what']} ({one['note']})"
        size = ", ".join(f"{name} {one[name]:,.0f}" for name in sizes if pd.notna(one[name]))
        shown = (cells.get(quantity, "") for quantity in ("seconds", "memory", "bytes"))
        where = f"{one['device']}, {one['threads']} threads"
        rows.append((what, size, f"{one['ours']} / {one['other']}", *shown, one["rounds"], where))
    header = "What | Size | Ours / other | Seconds, ratio (quartiles) | Peak memory | Bytes read | Rounds | On"
    return markdown.table(header, rows)


def _ratio(row: Any) -> str:
    one = row["rounds"] == 1 or row["low"] == row["high"]
    return f"{row['ratio']:#.3g}" if one else markdown.span(row["ratio"], row["low"], row["high"], "#.3g")


def _slopes(table: pd.DataFrame) -> str:
    rows = markdown.spread(table, ["what", "quantity", "device"], "axis", _slope)  # the last size of an axis is the largest
    axes = " | ".join(f"log-log slope in {axis}" for axis in table["axis"].unique())
    return markdown.table(f"What | Cost | On | {axes}", rows)


def _slope(row: Any) -> str:
    one = row["rounds"] == 1
    return f"{row['slope']:.2f}" if one else markdown.span(row["slope"], row["slope_low"], row["slope_high"], ".2f")


def card() -> str:
    """Return what was found on a card, where a check of one has been read."""
    machine, tables = on_card.found()
    if "checks" not in tables or not machine:
        return "Nothing here was run on a card yet: every number of these pages is of a CPU."
    checks, rates = tables["checks"], tables.get("rates", pd.DataFrame(columns=["what", "task", "value"]))
    words = ", ".join(f"{n} {outcome}" for outcome, n in checks.query("part == 'correct'")["outcome"].value_counts().items())
    lines = [f"- **{machine['card']}**, driver {machine.get('driver', 'none')}, torch {machine['torch']}. Checks: {words}."]
    flops = where(rates, what="flops_per_s").set_index("task")["value"] / 1e12
    if shown := [f"{str(task).removeprefix('matrix rate, ')} {rate:,.0f}" for task, rate in flops.items()]:
        lines.append(f"- Matrix products, TFLOP/s: {', '.join(shown)}.")
    if "losses" in tables:
        what = on_card.condition(machine, tables)
        lines.append(f"- What the claims say there ({what}): [RESULTS](../RESULTS.md#the-claims-on-a-card).")
    return "\n".join(lines)
