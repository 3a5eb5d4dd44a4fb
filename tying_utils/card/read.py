"""A folder that a check of a card has written, as tidy tables in data/results/gpu and rows of the benchmarks' table."""

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from tying_utils.base import paths
from tying_utils.base.table_store import TableStore
from tying_utils.card import plan, summary
from tying_utils.card.plan import Record
from tying_utils.pages import report

# Part of every table's record: raise it when a check would measure something else.
FORMAT = 1
TABLES = ("losses", "share", "alignment", "lens")  # of the claims
_SIZE = ("d", "layers", "weights", "steps", "tokens_per_step")
_COLUMNS = ["part", "task", "outcome", "difference", "tolerance", "seconds", "reason"]


def read(first: Path, *more: Path) -> list[Path]:
    """Write the tables of the checks in these folders, and what benchmarks/README.md shows of them; return the files written.

    Of what several have done the first counts. Raises ValueError where a folder holds no results, none that names its machine,
    or those of a trial without a card, and where two are of different cards or sizes of model.
    """
    records = _sound(first)
    for folder in more:
        records = _joined(records, _sound(folder), folder)
    machine = _task(records, "facts", "machine")
    store, written = TableStore(paths.results("gpu")), []
    card, seconds = machine["card"], sum(record["seconds"] for record in records)
    facts = {name: value for name, value in machine.items() if name not in ("part", "task", "outcome", "seconds")}
    tables = {"checks": pd.DataFrame(records).reindex(columns=_COLUMNS), "rates": _rates(records)}
    tables |= {name: summary.tables(records, name) for name in TABLES}
    there = [name for name, table in tables.items() if len(table)]
    for name, table in tables.items():
        path = store.folder / f"{name}.csv"
        if name not in there:  # what an earlier check of another card has left
            path.unlink(missing_ok=True)
            continue
        written.append(path)
        own, update = table.assign(device=card), partial(_of, facts=facts, there=there)
        store.write(name, own, {"format": FORMAT}, device=card, seconds=seconds, update=update)
    # Rows of another device would take the place of those that were measured there.
    rows = [row for record in records for row in record.get("rows", []) if row.get("device") == card]
    if rows:
        from benchmarks import suite, turns

        rows = [row for row in rows if set(row) == set(turns.COLUMNS)]
    if rows:
        written.append(suite.keep("ratios", pd.DataFrame(rows), seconds))
    report.refresh_documents(report.PROFILE)
    return written


def _task(records: list[Record], part: str, task: str) -> Record:
    return next((record for record in records if (record["part"], record["task"]) == (part, task)), {})


def _sound(folder: Path) -> list[Record]:
    """Return the records in `folder`, of a card and as a check writes them; see `read`."""
    records = plan.read(folder)
    machine = _task(records, "facts", "machine")
    named = all(isinstance(machine.get(name), str) for name in ("card", "torch", "python"))
    if machine.get("outcome") != plan.MEASURED or not named or "cores" not in machine:
        raise ValueError(f"FOLDER: {folder} does not say which machine it was; run `tying-utils gpu` again")
    if "capability" not in machine:
        raise ValueError(f"FOLDER: {folder} is of a trial without a card, at sizes that show nothing")
    try:
        summary.lines(records)
        if any("tables" in record for record in records):
            {name: float(_task(records, "claims", "size")[name]) for name in _SIZE}
            str(machine["dtype"])
        if len(losses := summary.tables(records, "losses")):
            losses[["arm", "seed", "d_model", "n_layers", "tokens_per_weight", "validation_loss"]].astype({"seed": int})
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"FOLDER: {folder} holds records that no check writes ({type(error).__name__}: {error})") from error
    return records


def _joined(records: list[Record], more: list[Record], folder: Path) -> list[Record]:
    """Return `records` with what `more` has done and they have not. Raises ValueError where that does not go together."""
    alike = {
        ("facts", "machine"): ("card",),
        ("claims", "text"): ("name", "sha256"),
        ("claims", "size"): _SIZE,
    }
    lost = plan.LEFT_OUT, plan.RAISED
    done, new = ({(r["part"], r["task"]): r for r in some if r["outcome"] not in lost} for some in (records, more))
    for task in [task for task in alike if task in done and task in new]:
        one, other = ({name: record.get(name) for name in alike[task]} for record in (done[task], new[task]))
        if one != other:
            raise ValueError(
                f"FOLDER: {folder} has {other}, the first {one}; together go one card, one text and one size (`--like`)"
            )
    added = {task: record for task, record in new.items() if task not in done}
    return [record for record in records if (record["part"], record["task"]) not in added] + [*added.values()]


def _of(manifest: dict[str, Any], facts: dict[str, Any], there: list[str]) -> None:
    """Have the manifest name the tables that are `there` alone, and their machine and versions: not those of who reads."""
    manifest["tables"] = {name: entry for name, entry in manifest["tables"].items() if name in there}
    manifest["machine"] = facts
    manifest["packages"] = {name: facts.get(name, "unknown") for name in manifest["packages"]}
    for entry in manifest["tables"].values():
        entry["made"] |= {"python": facts["python"], "cores": facts["cores"]}


def _rates(records: list[Record]) -> pd.DataFrame:
    """Return what was measured as numbers alone, a row each: rates, what has no ratio of its own, and the models' size."""
    rows = []
    for record in records:
        of_part = record["part"] in ("facts", "fast") and record["task"] != "machine"
        if record["outcome"] == plan.MEASURED and (of_part or record["task"] == "size"):
            labels = {"part": record["part"], "task": record["task"]}
            numbers = {name: value for name, value in record.items() if isinstance(value, int | float) and name != "seconds"}
            rows += [{**labels, "what": name, "value": value} for name, value in numbers.items()]
    return pd.DataFrame(rows)
