"""The parts of the suite, and where their tables go."""

import os
import time
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import alignment, checkpoints, figures, growth, lens, neighbors, share, training, turns
from tying_utils.pages import report

# Part of every table's record: raise it when a part would measure something else.
FORMAT = 1


def measure(part: str, quick: bool) -> str:
    """Measure a part of the suite, write its rows into its table, and return them as lines of text."""
    began, load = time.monotonic(), os.getloadavg()[0]
    measured = rows(part, quick)
    keep("growth" if part == "growth" else "ratios", measured, time.monotonic() - began, quick, load_before=round(load, 2))
    return "".join(f"\n  {line}" for line in _lines(measured)) + "\n"


def keep(name: str, measured: pd.DataFrame, seconds: float, quick: bool = False, **made: Any) -> Path:
    """Write rows into the table `name` in place of those of their parts on their device, and return its file.

    `made` is noted of these parts in the manifest, beside the day and the `seconds`.
    """
    store, device, own = figures.store(quick), str(measured["device"].iloc[0]), ["growth"]
    if name == "ratios":
        own = list(measured["part"].unique())
    table, parts = measured, {}
    if kept := store.read(name, lambda entry: entry["format"] == FORMAT, keep=False):
        old, parts = kept[0], (store.manifest or {})["tables"][name]["parts"]
        others = old[(old["device"] != device) | (False if name == "growth" else ~old["part"].isin(own))]
        table = pd.concat([others, measured], ignore_index=True) if len(others) else measured
    made = {"date": time.strftime("%Y-%m-%d"), "seconds": round(seconds, 1), **made}
    entry = {"format": FORMAT, "parts": {**parts, **{f"{part} on {device}": made for part in own}}}
    store.write(name, table, entry, device=device, seconds=seconds)
    return store.folder / f"{name}.csv"


def rows(part: str, quick: bool) -> pd.DataFrame:
    """The tidy rows of a part, not written anywhere."""
    if part == "growth":
        return growth.table(quick)
    measured: list[dict[str, Any]]
    if part in ("checkpoints", "lens"):
        measured = {"checkpoints": checkpoints, "lens": lens}[part].rows(quick)
    else:
        module = {"alignment": alignment, "neighbors": neighbors, "share": share}.get(part, training)
        contests = [contest for contest in module.contests(quick) if contest.part == part]
        measured = [row for contest in contests for row in turns.held(contest)]
    return pd.DataFrame(measured, columns=list(turns.COLUMNS))


def publish(quick: bool) -> None:
    """Draw the figure of growth, if it has been measured, and (not of a quick run) write the documents' tables anew."""
    for path in figures.render(quick):
        print(path)
    if not quick:
        report.refresh_documents(report.PROFILE)


def _lines(table: pd.DataFrame) -> list[str]:
    if "slope" in table:
        ends = table.drop_duplicates(["what", "axis", "quantity"])
        return [
            f"{row['what']}, {row['quantity']} with {row['axis']}: slope {row['slope']:.2f}" for row in ends.to_dict("records")
        ]
    return [
        f"{row['what']}, V {row['V']:.0f}, d {row['d']:.0f}, {row['quantity']}: {row['ours']} / {row['other']} "
        f"{row['ratio']:.3g} ({row['low']:.3g} to {row['high']:.3g}), {row['rounds']} rounds. {row['note']}".rstrip()
        for row in table.to_dict("records")
    ]
