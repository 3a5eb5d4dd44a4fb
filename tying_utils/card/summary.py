"""What a card was found to be, in at most 25 lines."""

from collections.abc import Iterator, Sequence

import pandas as pd

from tying_utils.card.plan import BROKEN, HELD, LEFT_OUT, MEASURED, RAISED, Record, line

LINES = 24  # and one that says where the rest is


def lines(records: Sequence[Record]) -> list[str]:
    """Return the summary of `records`, whatever of them there is."""
    found = [*_machine(records), *_correct(records), *_fast(records), *_claims(records), *_missing(records)]
    return [text if len(text) <= 200 else text[:197] + "..." for text in found[:LINES]]


def failed(records: Sequence[Record]) -> list[Record]:
    """Return the checks that were broken and the tasks that raised."""
    return [record for record in records if record["outcome"] in (BROKEN, RAISED)]


def tables(records: Sequence[Record], name: str) -> pd.DataFrame:
    """Return the rows of the claims' table called `name`, in the order in which they were found; empty where there are none."""
    return pd.DataFrame([row for record in records for row in record.get("tables", {}).get(name, [])])


def _measured(records: Sequence[Record], part: str, task: str = "") -> dict[str, Record]:
    """Return the measurements of a part by task, where the name begins with `task`."""
    return {
        record["task"]: record
        for record in records
        if record["part"] == part and record["outcome"] == MEASURED and record["task"].startswith(task)
    }


def _machine(records: Sequence[Record]) -> Iterator[str]:
    for found in _measured(records, "facts", "machine").values():
        memory = f", {found['memory_bytes'] / 1e9:.0f} GB" if "memory_bytes" in found else ""
        capability = f", capability {found['capability']}, driver {found['driver']}" if "capability" in found else ""
        yield f"card: {found['card']}{capability}{memory}; torch {found['torch']}, Python {found['python']}"
        runs = [record["training"] for record in records if "training" in record]
        yield f"training: {max([found['dtype'], *runs], key=len)}"
    rates = _measured(records, "facts", "matrix rate")
    shown = [f"{name.removeprefix('matrix rate, ')} {found['flops_per_s'] / 1e12:.3g} TFLOP/s" for name, found in rates.items()]
    shown += [f"copies {found['bytes_per_s'] / 1e9:.3g} GB/s" for found in _measured(records, "facts", "copy rate").values()]
    if shown:
        yield f"rates: {', '.join(shown)}"


def _correct(records: Sequence[Record]) -> Iterator[str]:
    checks = [record for record in records if record["part"] == "correct"]
    counts = {outcome: sum(record["outcome"] == outcome for record in checks) for outcome in (HELD, BROKEN, RAISED, LEFT_OUT)}
    if checks:
        yield f"correct: {', '.join(f'{count} {outcome}' for outcome, count in counts.items())} of {len(checks)} checks"
    wrong = failed(records)
    for record in wrong[:5]:
        yield f"  {line(record)}"
    if len(wrong) > 5:
        yield f"  and {len(wrong) - 5} more that failed, all in results.jsonl"


def _fast(records: Sequence[Record]) -> Iterator[str]:
    for record in _measured(records, "fast").values():
        rows = [row for row in record.get("rows", []) if row["quantity"] == "seconds"]
        if rows and "matrix products" in rows[0]["other"] and "tokens_per_s" in record:
            fraction, tokens = 1 / rows[0]["ratio"], record["tokens_per_s"]
            yield f"fast: {rows[0]['ours']}: {tokens:,.0f} tokens/s, {fraction:.0%} of the matrix rate ({_size(rows[0])})"
        elif rows:
            ratios = ", ".join(f"{row['ratio']:.3f} of {row['other']}" for row in rows)
            yield f"fast: {rows[0]['ours']} takes {ratios} ({_size(rows[0])})"
        elif "alignment_seconds" in record:
            yield (
                f"fast: alignment with {record['permutations']} permutations takes {record['alignment_seconds']:.1f} s, "
                f"{record['ratio']:.2f} of its matrix products (V {record['V']:,}, d {record['d']:,})"
            )
        elif "lens_seconds" in record:
            size = f"V {record['V']:,}, d {record['d']}"
            yield f"fast: a lens of {record['steps']} steps takes {record['lens_seconds']:.1f} s ({size})"


def _size(row: Record) -> str:
    return ", ".join(f"{name} {row[name]:,.0f}" for name in ("V", "d", "layers", "tokens") if row[name] == row[name])


def _claims(records: Sequence[Record]) -> Iterator[str]:
    for found in _measured(records, "claims", "size").values():
        words = f"{found['weights'] / 1e6:.1f} M weights, {found['tokens_per_weight']:.2g} tokens per weight"
        yield f"claims: {words} ({found['steps']} steps of {found['tokens_per_step']:,} tokens)"
    losses, alignment = tables(records, "losses"), tables(records, "alignment")
    if len(losses):
        parts = [f"{arm} {own['validation_loss'].mean():.3f} ({len(own)})" for arm, own in losses.groupby("arm", sort=False)]
        yield f"claims: validation loss, nats (seeds): {', '.join(parts)}"
    means = {}
    if len(alignment):
        wide = alignment[alignment["target"] == "tied"].pivot_table(index=["arm", "seed"], columns="source", values="corrected")
        bias = (wide["output"] - wide["input"]).groupby("arm").mean()
        means["output bias, corrected"] = bias.reindex(alignment["arm"].unique())
    if len(share := tables(records, "share")):
        first = share[share["tenth"] == 1]
        means["output share, first tenth"] = first.groupby("arm", sort=False)["output_share"].mean()
    if len(lens := tables(records, "lens")):
        at_input = lens[lens["layer"] == 0]
        means["lens KL at the input, bits"] = at_input.groupby("arm", sort=False)["kl_bits"].mean()
    for words, by_arm in means.items():
        yield f"claims: {words}: {', '.join(f'{arm} {value:.3f}' for arm, value in by_arm.items())}"


def _missing(records: Sequence[Record]) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for record in records:
        if record["outcome"] == LEFT_OUT:
            kind = "no time" if record["reason"].startswith("no time") else record["reason"]
            reasons.setdefault(kind, []).append(f"{record['part']}: {record['task']}")
    for reason, names in [*reasons.items()][:4]:
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        yield f"left out ({reason}): {'; '.join(names[:2])}{more}"
