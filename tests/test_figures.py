"""Figures from synthetic tidy tables: drawn, labelled, saved whole, and tied to the tables that they show."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from tying_utils import figures, files, paths, profiles
from tying_utils.profiles import SCALED, SHARED_START, TIED, UNTIED

matplotlib.use("Agg")
LAYERS, STEPS = 4, 120


def synthetic(seeds: int = 3) -> dict[str, pd.DataFrame]:
    """Tidy tables of the shape that `study.Study` gives, with plausible values."""
    rng = np.random.default_rng(0)
    scales = {profiles.scaled(scale): scale for scale in profiles.SCALES} | {UNTIED: 1.0, SHARED_START: 1.0}
    rows: dict[str, list] = {}

    def add(name: str, arm: str, seed: int, **values) -> None:
        labels = {"arm": arm, "input_scale": scales[arm], "seed": seed}
        rows.setdefault(name, []).append(pd.DataFrame(labels | values, index=None if _long(values) else [0]))

    def near(value: float, spread: float = 0.008) -> float:
        return value + spread * rng.standard_normal()

    def alignment(name: str, arm: str, seed: int, source: str, target: str, orthogonal: float) -> None:
        for kind, value, chance in (
            ("identity", 0.01, 0),
            ("orthogonal", orthogonal, 0.21),
            ("linear", 1.2 * orthogonal, 0.25),
        ):
            value = near(value)
            chances = {"chance": chance, "chance_low": chance - 0.004, "chance_high": chance + 0.004}
            corrected = (value - chance) / (1 - chance)
            add(name, arm, seed, source=source, target=target, kind=kind, value=value, **chances, corrected=corrected)

    for seed in range(seeds):
        for arm in (UNTIED, TIED, *SCALED, SHARED_START):
            log = np.log10(scales[arm])
            names = [""] * (arm in (UNTIED, TIED)) + ["scaling_"] * (arm in (UNTIED, *SCALED))
            names += ["control_"] * (arm in (UNTIED, SHARED_START))
            pairs = [("input", "output", 0.3)]
            if arm != UNTIED:
                start = 0.2 if arm == SHARED_START else 0.0
                pairs = [("input", "tied", 0.28 + 0.02 * log + start), ("output", "tied", 0.6 - 0.15 * log)]
            for prefix in names:
                for source, target, value in pairs:
                    alignment(f"{prefix}alignment", arm, seed, source, target, value)
                    overlap = {"k": 10, "value": near(value - 0.2), "chance": 0.005}
                    add(f"{prefix}neighbors", arm, seed, source=source, target=target, **overlap)
            scaled = "scaling_" if arm in SCALED else ""
            if arm == SHARED_START:
                continue
            losses = {"validation_loss": near(4 + (arm != UNTIED) * (0.2 + 0.1 * abs(log))), "parameters": 1_000_000}
            add(f"{scaled}losses", arm, seed, training_loss=losses["validation_loss"] - 0.1, **losses)
            layer = np.arange(LAYERS + 1)
            curve = (1.0 if arm == UNTIED else 1.7 - 0.6 * log) * (1 - layer / LAYERS) ** 1.5
            for kind, indexing, high in (("tuned", "matched", 0), ("tuned", "published", 2), ("logit", "matched", 1)):
                bits = np.abs(curve + high * (layer > 0) * (kind == "tuned" or layer < LAYERS) + near(0, 0.03))
                add(f"{scaled}lens", arm, seed, lens=kind, indexing=indexing, layer=layer, kl_bits=bits)
            step = np.arange(1, STEPS + 1)
            norms = {"input_norm": 0.3 * np.exp(rng.normal(0, 0.1, STEPS)) * (1 + step / STEPS)}
            norms |= {"output_norm": 0.6 * np.exp(rng.normal(0, 0.1, STEPS)), "published_input_norm": norms["input_norm"] / 3}
            shares = {
                "output_share": norms["output_norm"] / (norms["input_norm"] + norms["output_norm"]),
                "output_update_share": 0.4 + 0.05 * rng.standard_normal(STEPS),
                "published_output_share": norms["output_norm"] / (norms["published_input_norm"] + norms["output_norm"]),
            }
            add(f"{scaled}gradients", arm, seed, step=step, **norms, **shares, loss=7 - step / 50)
            if scaled:
                continue
            for source, target, value in pairs:
                cosine = np.linspace(-0.2375, 0.9875, 50)
                density = np.exp(-(((cosine - value) / 0.15) ** 2)) * 3 * (1 + near(0, 0.03))
                add("cosines", arm, seed, source=source, target=target, cosine=cosine, density=density)
            for table in ("input", "output") if arm == UNTIED else ("tied",):
                kept = np.unique([0, *np.round(STEPS ** np.linspace(0, 1, 12)).astype(int)])
                speed = {"input": 30, "output": 15, "tied": 12}[table] * (1 + near(0, 0.02))
                start = np.exp(-kept / speed)
                previous = np.append(1.0, start[1:] / start[:-1])
                add("drift", arm, seed, table=table, step=kept, to_start=start, to_previous=previous)
                count = np.linspace(0.2, 5.4, 12)
                norm = {"input": 0.6, "output": 1.5, "tied": 1.6}[table] + 0.1 * count * (1 + near(0, 0.1))
                spread = {"norm_std": 0.1 + 0.02 * count, "tokens": 100, "spearman": near(0.6)}
                add("frequency", arm, seed, table=table, log10_count=count, norm_mean=norm, **spread)
    return {name: pd.concat(parts, ignore_index=True) for name, parts in rows.items()}


def _long(values: dict) -> bool:
    return any(isinstance(value, np.ndarray) for value in values.values())
