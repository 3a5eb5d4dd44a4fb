"""Whether a series of checkpoints is what its names say, looked at before any change over training is drawn.

Public series are known to fail it: EleutherAI/pythia issues 83 (step 0 equals step 1), 195, 205 and 206 (early revisions that
serve the final weights); pythia-160m's step 0 is of another initialisation than the steps after it.
"""

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from tying_utils.base.checks import steps as checked_steps
from tying_utils.base.checks import table as checked_table

from .alignment import ordinary, row_cosines

EQUAL, FINAL, EARLY = "equal to step {}", "equal to the final table", "nearer to the end than a later step"
FOREIGN = "unrelated to {}: of another initialisation or run"


def suspects(tables: Mapping[int, Tensor], final: Tensor | None = None) -> pd.DataFrame:
    """Say what is wrong with each checkpoint of a series of tables: a row per step, in order; columns step and problem.

    tables: optimizer step -> (V, d), any floating dtype, read one or two at a time, so a mapping that reads from disk will do.
    final: the table at the end of training, where it is known and not in `tables`.

    `problem` is "" or says, of the step that it is at, that

    - it is equal byte for byte to an earlier step's table: one of them is another's, or training had not begun; of the two,
      the later one is named, but where one of them is also equal to `final` the earlier is;
    - it is equal to `final`, though it is not the last step;
    - it is nearer to the table of the last step (or `final`) than a later sound one is, by more than .05 of mean row cosine:
      cosines to the end rise while a table trains;
    - it is unrelated to the next sound step: its centred rows are as near to other tokens' there as to their own, within .05 of
      mean cosine (or 4 standard errors, of few rows). The end is taken for sound. What a table begins with does not fade that
      far: after all 143,000 steps of Pythia-1B the mean cosine to the start is .2 (output) and .3 (input).

    Raises ValueError for fewer than 2 tables and for one of another shape than the first.
    """
    steps = checked_steps("tables", tables)
    last = checked_table("tables", tables[steps[-1]]) if final is None else checked_table("final", final)
    seen: dict[float, list[int]] = {}
    problems = dict.fromkeys(steps, "")
    nearness, related = {}, dict[int, bool]()
    for step in steps:
        table = checked_table("tables", tables[step])
        if table.shape != last.shape:
            raise ValueError(f"tables: every step needs the shape {tuple(last.shape)}, got {tuple(table.shape)} at step {step}")
        nearness[step] = float(row_cosines(table, last).mean())
        related[step] = _related(table, last)
        if final is not None and step != steps[-1] and same_bytes(table, last):
            problems[step] = FINAL
            continue
        # Equal tables have equal sums: only those whose sums agree are compared whole.
        key = float(table.sum(dtype=torch.float64))
        for other in seen.get(key, []):
            if same_bytes(table, tables[other]):
                early = final is None and step == steps[-1] and other != steps[-1]
                problems[other if early else step] = EQUAL.format(step if early else other)
                break
        seen.setdefault(key, []).append(step)
    nearest_yet, anchor, named = float("inf"), last, "the final table"
    for step in reversed([step for step in steps if not problems[step]]):
        if nearness[step] > nearest_yet + 0.05:
            problems[step] = EARLY
            continue
        if not related[step]:  # to the end: only such a table is read twice
            table, anchor = tables[step], tables[anchor] if isinstance(anchor, int) else anchor
            if not _related(table, anchor):
                problems[step] = FOREIGN.format(named)
                continue
            anchor = table
        else:
            anchor = step
        nearest_yet, named = min(nearest_yet, nearness[step]), f"step {step}"
    return pd.DataFrame({"step": steps, "problem": [problems[step] for step in steps]})


def _related(a: Tensor, b: Tensor) -> bool:
    """Return whether centred rows of `a` are nearer to the same rows of `b` than to those before; true of a table of zeros."""
    given = a.any(1) & b.any(1)
    if not given.any():
        return True
    # Centred: what all rows share makes those of any two tokens alike.
    one, two = ((table := ordinary(each)[given].float()) - table.mean(0) for each in (a, b))
    nearer = row_cosines(one, two) - row_cosines(one, two.roll(1, 0))
    return float(nearer.mean()) > max(0.05, 4 * float(nearer.std(correction=0)) / len(nearer) ** 0.5)


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Return whether two tables hold the same bytes: of one shape and dtype, and nan equal to the same nan."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
