"""Tidy tables of the shape that a study gives, with plausible values."""

import functools
import itertools

import numpy as np
import pandas as pd
from synthetic_places import synthetic_places
from synthetic_sweep import synthetic_sweep

from tying_utils.base.names import AGAIN, EQUAL, PYTHON, SHARED_START, TIED, TWO_ROLE, UNTIED, scaled
from tying_utils.experiments.places import GROUPS
from tying_utils.study import profiles
from tying_utils.study.profiles import SCALES

LAYERS, STEPS = 4, 120


STARTS = (UNTIED, TIED, scaled(5), "norm-match", "untie")


SCALED = tuple(scaled(scale) for scale in SCALES if scale != 1)


@functools.cache
def synthetic(seeds: int = 3) -> dict[str, pd.DataFrame]:
    """Tidy tables of the shape that `study.Study` gives, with plausible values, the two-role language's among them."""
    rng = np.random.default_rng(0)
    scales = {scaled(scale): scale for scale in SCALES} | {UNTIED: 1.0, SHARED_START: 1.0, EQUAL: 1.0}
    rows: dict[str, list] = {}

    def add(name: str, arm: str, seed: int, **values) -> None:
        labels = {"corpus": values.pop("corpus", PYTHON), "arm": arm, "input_scale": scales[arm], "seed": seed}
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
            chances |= {"held_out": value - chance, "corrected": corrected}
            add(name, arm, seed, source=source, target=target, kind=kind, value=value, **chances)

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
                    overlap = {"k": 10, "value": near(value - 0.2), "chance": 0.005, "corrected": near(value - 0.2)}
                    add(f"{prefix}neighbors", arm, seed, source=source, target=target, **overlap)
            prefix = "scaling_" if arm in SCALED else ""
            if arm == SHARED_START:
                continue
            losses = {"validation_loss": near(4 + (arm != UNTIED) * (0.2 + 0.1 * abs(log))), "parameters": 1_000_000}
            add(f"{prefix}losses", arm, seed, training_loss=losses["validation_loss"] - 0.1, **losses)
            layer = np.arange(LAYERS + 1)
            curve = (1.0 if arm == UNTIED else 1.7 - 0.6 * log) * (1 - layer / LAYERS) ** 1.5
            for kind, indexing, high in (("tuned", "matched", 0), ("tuned", "published", 2), ("logit", "matched", 1)):
                bits = np.abs(curve + high * (layer > 0) * (kind == "tuned" or layer < LAYERS) + near(0, 0.03))
                add(f"{prefix}lens", arm, seed, lens=kind, indexing=indexing, layer=layer, kl_bits=bits)
            if not prefix:
                for steps in (50, 100, 400):
                    bits = near(1 + (arm == TIED) * 40 / steps) - layer / LAYERS
                    add("lens_budget", arm, seed, steps=steps, layer=layer, kl_bits=bits)
                parts = [(-1, "embedding", 0.2)] + [(i, c, 0.1) for i in range(LAYERS) for c in ("attention", "mlp")]
                for block, component, share in [*parts, (-1, "bias", 0.0)]:
                    values = {"share": near(share, 0.005), "attribution": near(block + 1, 0.1)}
                    add("residual", arm, seed, layer=block, component=component, label=component, norm=1.0, **values)
            step = np.arange(1, STEPS + 1)
            norms = {"input_norm": 0.3 * np.exp(rng.normal(0, 0.1, STEPS)) * (1 + step / STEPS)}
            norms |= {"output_norm": 0.6 * np.exp(rng.normal(0, 0.1, STEPS)), "published_input_norm": norms["input_norm"] / 3}
            shares = {
                "output_share": norms["output_norm"] / (norms["input_norm"] + norms["output_norm"]),
                "output_update_share": 0.4 + 0.05 * rng.standard_normal(STEPS),
                "published_output_share": norms["output_norm"] / (norms["published_input_norm"] + norms["output_norm"]),
            }
            add(f"{prefix}gradients", arm, seed, step=step, **norms, **shares, loss=7 - step / 50)
            if prefix:
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
        for width, cost in ((32, 0.3), (128, 0.1)):
            for arm, layers, gap in ((UNTIED, 4, 0.0), (TIED, 4, cost), (EQUAL, 5, cost / 2)):
                tables = width * 2048 * (1 + (arm == UNTIED))
                weights = {"parameters": layers * 16 * width**2 + tables, "table_parameters": tables}
                add("sizes", arm, seed, d_model=width, n_layers=layers, validation_loss=near(4 + gap), **weights)
        for arm in (UNTIED, TIED, *SCALED):
            for table in ("input", "output") if arm == UNTIED else ("tied",):
                for agreement in (0.0, 1.0) if arm in (UNTIED, TIED) else (0.0,):
                    lean = {"input": -0.4, "output": 0.4, "tied": 0.2 - 0.1 * np.log10(scales[arm])}[table]
                    over = near(0.2 + 0.1 * (arm != UNTIED) * (1 - agreement))
                    for role, sign in (("source", -1), ("target", 1)):
                        values = {"purity": near(0.45 + sign * lean / 2), "chance": 0.06, "over_floor": over}
                        values |= {"output_scale": 1.0, "agreement": agreement, "tied": arm != UNTIED}
                        name = arm if agreement == 0 else f"{arm}, agreement 1"
                        scales[name] = scales[arm]
                        add("roles", name, seed, corpus=TWO_ROLE, table=table, role=role, **values)
        for arm in STARTS:
            scales.setdefault(arm, 1.0)
            for to, corpus, question in (("wikitext-2", PYTHON, "category"), ("new source roles", TWO_ROLE, "source role")):
                step = np.arange(0, 101, 10)
                values = {"to": to, "loss": 4 + (2 + near(0, 0.1)) * np.exp(-step / (30 if arm == UNTIED else 40))}
                values |= {"floor": 3.5 if corpus == TWO_ROLE else np.nan, "bytes_per_token": 2.5}
                add("transfer_losses", arm, seed, corpus=corpus, step=step, **values)
                add("transfer_forgetting", arm, seed, corpus=corpus, to=to, before=near(3.5), after=near(4.0))
                for table in ("input", "output") if arm in (UNTIED, "untie") else ("tied",):
                    chances = {"chance": 0.2, "chance_low": 0.18, "chance_high": 0.22}
                    probed = {"table": table, "question": question, "value": near(0.6), "corrected": near(0.5)}
                    add("transfer_probe", arm, seed, corpus=corpus, **probed, **chances)
    for source in range(4):
        add("language", UNTIED, 0, corpus=TWO_ROLE, source=source, target=np.arange(4), log_ratio=rng.normal(size=4))
    rank = np.arange(1, 65)
    add("unigrams", UNTIED, 0, corpus=TWO_ROLE, rank=rank, weight=1 / rank, unigram=1 / rank)
    for group in GROUPS:
        rows |= {name: [table] for name, table in synthetic_places(group, tuple(range(seeds)), spread=0.01).items()}
    for corpus in (PYTHON, TWO_ROLE):
        for name, table in synthetic_sweep(corpus, tuple(range(seeds))).tables.items():
            rows.setdefault(name, []).append(table)
    for name, table in synthetic_remedies(seeds).items():
        rows[name] = [table]
    return {name: pd.concat(parts, ignore_index=True) for name, parts in rows.items()}


def _long(values: dict) -> bool:
    return any(isinstance(value, np.ndarray) for value in values.values())


def synthetic_remedies(seeds: int) -> dict[str, pd.DataFrame]:
    """The remedies' tables of the laptop profile, with plausible values."""
    rng = np.random.default_rng(0)
    rows: dict[str, list] = {}
    for corpus in (PYTHON, TWO_ROLE):
        profile = profiles.get("laptop", corpus)
        enlarged = [arm.name for arm in profile.enlarged]
        arms = [*(arm.name for arm in profile.remedied), *enlarged]
        leans = dict(zip(arms, rng.uniform(-0.5, 0.5, len(arms)), strict=True))
        for arm, seed in itertools.product(arms, range(seeds)):
            large, lean = arm in enlarged, leans[arm] + rng.normal(0, 0.02)
            one_table = arm not in (UNTIED, AGAIN, "untie", "factorised", "table-rates")
            labels = {"corpus": corpus, "arm": arm, "seed": seed}
            size = {
                "parameters": 1_000_000 if large or not one_table else 800_000,
                "floor": 2.0 if corpus == TWO_ROLE else np.nan,
            }
            rows.setdefault("remedy_losses", []).append(
                {**labels, **size, "validation_loss": 4 + abs(lean) + rng.normal(0, 0.02)}
            )
            for sign, source, role in ((-1, "input", "source"), (1, "output", "target")):
                if corpus == TWO_ROLE:
                    values = {"table": "tied" if one_table else "input", "role": role, "purity": 0.5 + sign * lean / 2}
                    rows.setdefault("remedy_roles", []).append(labels | values)
                else:
                    values = {"source": source, "target": "tied", "corrected": 0.5 + sign * lean / 2}
                    rows.setdefault("remedy_alignment", []).append(labels | values)
            if not large:
                kinds = {"lens": "tuned", "indexing": "matched"}
                rows.setdefault("remedy_lens", []).extend(
                    labels | kinds | {"layer": n, "kl_bits": 4 - n + lean} for n in range(5)
                )
                rows.setdefault("remedy_steps", []).extend([labels | {"ratio": 1 + 0.1 * abs(lean)}] * (seed == 0))
    return {name: pd.DataFrame(part) for name, part in rows.items()}
