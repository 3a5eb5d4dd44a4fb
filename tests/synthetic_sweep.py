"""A sweep over scales with plausible values."""

import functools
import itertools

import numpy as np
import pandas as pd

from tying_utils.base.names import TWO_ROLE, UNTIED, crossed
from tying_utils.study.sweep import Sweep

INPUT, OUTPUT, SEEDS, STEPS, LAYERS = (0.1, 1.0, 10.0), (0.3, 1.0), (0, 1, 2), (0, 1, 10, 40), 2


@functools.cache
def synthetic_sweep(corpus: str = TWO_ROLE, seeds: tuple[int, ...] = SEEDS) -> Sweep:
    """A sweep whose values say where they come from: see the formulas."""
    tables: dict[str, list[dict]] = {}
    for pair, seed in itertools.product((None, *itertools.product(INPUT, OUTPUT)), seeds):
        a, b = pair or (1.0, 1.0)
        arm, ratio = crossed(a, b) if pair else UNTIED, np.log10(a / b)
        labels = {"corpus": corpus, "arm": arm, "input_scale": a, "output_scale": b, "seed": seed}
        if pair:
            for (at, step), (source, sign) in itertools.product(enumerate(STEPS), (("input", 1), ("output", -1))):
                value = 0.3 + 0.05 * sign * ratio * at + 0.01 * seed + 0.1 * (sign < 0)
                scores = {"value": value, "corrected": value - 0.1, "chance": 0.1, "chance_low": 0.09, "chance_high": 0.11}
                row = {**labels, "step": step, "source": source, "target": "tied", **scores}
                tables.setdefault("sweep_alignment", []).append(row)
            for step in STEPS[1:]:
                share = 0.6 - 0.1 * ratio + 0.01 * seed
                row = {**labels, "step": step, "output_share": share, "output_update_share": share / 2}
                tables.setdefault("sweep_share", []).append(row)
        cost = 0.2 + 0.1 * abs(ratio) if pair else 0.0
        losses = {"validation_loss": 3.0 + cost + 0.01 * seed, "floor": 2.0 if corpus == TWO_ROLE else np.nan}
        tables.setdefault("sweep_losses", []).append(labels | losses)
        for kind, indexing in (("tuned", "matched"), ("tuned", "published"), ("logit", "matched")):
            for layer in range(LAYERS + 1):
                kl = (1 + cost) * (1 - layer / LAYERS) + (kind == "logit") + 2 * (indexing == "published")
                lens = {"lens": kind, "indexing": indexing, "layer": layer, "kl_bits": kl}
                tables.setdefault("sweep_lens", []).append(labels | lens)
        for table in ("tied",) if pair else ("input", "output"):
            for role, sign in (("source", 1), ("target", -1)):
                row = labels | {"table": table, "role": role, "purity": 0.4 + sign * 0.15 * ratio, "chance": 0.06}
                tables.setdefault("sweep_roles", []).append(row | {"tied": pair is not None, "agreement": 0.0})
    if corpus != TWO_ROLE:
        del tables["sweep_roles"]
    # In any order: a table says where its rows belong.
    frames = {name: pd.DataFrame(rows).sample(frac=1, random_state=0) for name, rows in tables.items()}
    return Sweep("laptop", corpus, frames)
