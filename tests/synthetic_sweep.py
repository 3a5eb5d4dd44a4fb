"""A sweep over scales with plausible values."""

import functools

import numpy as np
import pandas as pd

from tying_utils.base.names import TWO_ROLE, UNTIED, crossed
from tying_utils.study.sweep import Sweep

INPUT, OUTPUT, SEEDS, STEPS, LAYERS = (0.1, 1.0, 10.0), (0.3, 1.0), (0, 1, 2), (0, 1, 10, 40), 2


@functools.cache
def synthetic_sweep(corpus: str = TWO_ROLE, seeds: tuple[int, ...] = SEEDS) -> Sweep:
    """A sweep whose values say where they come from: see the formulas."""
    tables: dict[str, list[dict]] = {}
    for a in INPUT:
        for b in OUTPUT:
            ratio = np.log10(a / b)
            for seed in seeds:
                labels = {"corpus": corpus, "arm": crossed(a, b), "input_scale": a, "output_scale": b, "seed": seed}
                for at, step in enumerate(STEPS):
                    for source, sign in (("input", 1), ("output", -1)):
                        value = 0.3 + 0.05 * sign * ratio * at + 0.01 * seed + 0.1 * (sign < 0)
                        row = {
                            **labels,
                            "step": step,
                            "source": source,
                            "target": "tied",
                            "value": value,
                            "corrected": value - 0.1,
                        }
                        row |= {"chance": 0.1, "chance_low": 0.09, "chance_high": 0.11}
                        tables.setdefault("sweep_alignment", []).append(row)
                for step in STEPS[1:]:
                    share = 0.6 - 0.1 * ratio + 0.01 * seed
                    row = {**labels, "step": step, "output_share": share, "output_update_share": share / 2}
                    tables.setdefault("sweep_share", []).append(row)
    for a, b in (None, None), *((a, b) for a in INPUT for b in OUTPUT):
        arm = UNTIED if a is None or b is None else crossed(a, b)
        for seed in seeds:
            labels = {"corpus": corpus, "arm": arm, "input_scale": a or 1.0, "output_scale": b or 1.0, "seed": seed}
            cost = 0.0 if a is None or b is None else 0.2 + 0.1 * abs(np.log10(a / b))
            floor = 2.0 if corpus == TWO_ROLE else np.nan
            losses = {"validation_loss": 3.0 + cost + 0.01 * seed, "floor": floor}
            tables.setdefault("sweep_losses", []).append(labels | losses)
            for kind, indexing in (("tuned", "matched"), ("tuned", "published"), ("logit", "matched")):
                for layer in range(LAYERS + 1):
                    kl = (1 + cost) * (1 - layer / LAYERS) + (kind == "logit") + 2 * (indexing == "published")
                    lens = {"lens": kind, "indexing": indexing, "layer": layer, "kl_bits": kl}
                    tables.setdefault("sweep_lens", []).append(labels | lens)
            for table in ("input", "output") if arm == UNTIED else ("tied",):
                lean = 0.0 if a is None or b is None else 0.15 * np.log10(a / b)
                for role, sign in (("source", 1), ("target", -1)):
                    row = labels | {"table": table, "role": role, "purity": 0.4 + sign * lean, "chance": 0.06}
                    tables.setdefault("sweep_roles", []).append(row | {"tied": arm != UNTIED, "agreement": 0.0})
    if corpus != TWO_ROLE:
        del tables["sweep_roles"]
    # In any order: a table says where its rows belong.
    frames = {name: pd.DataFrame(rows).sample(frac=1, random_state=0) for name, rows in tables.items()}
    return Sweep("laptop", corpus, frames)
