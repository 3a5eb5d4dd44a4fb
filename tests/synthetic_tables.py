"""Tidy tables of the shape that a study gives, with plausible values."""

import functools
import itertools

import numpy as np
import pandas as pd
from synthetic_places import synthetic_places
from synthetic_poles import poles
from synthetic_sweep import synthetic_sweep

from tying_utils.base.names import AGAIN, EQUAL, PYTHON, SHARED_START, TIED, TWO_ROLE, UNTIED, scaled
from tying_utils.experiments import published, shares
from tying_utils.experiments.looks import PAIRS, TABLES
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
        rows.setdefault(name, []).append(as_rows(labels | values))

    def near(value: float, spread: float = 0.008) -> float:
        return value + spread * rng.standard_normal()

    def alignment(name: str, arm: str, seed: int, source: str, target: str, orthogonal: float) -> None:
        values = {"identity": (0.01, 0), "orthogonal": (orthogonal, 0.21), "linear": (1.2 * orthogonal, 0.25)}
        for kind, (value, chance) in values.items():
            value = near(value)
            chances = {"chance": chance, "chance_low": chance - 0.004, "chance_high": chance + 0.004}
            chances |= {"held_out": value - chance, "corrected": (value - chance) / (1 - chance)}
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
                for block, component in [(-1, "embedding"), *((i, "block") for i in range(LAYERS))]:
                    for how in ("zero", "mean"):
                        lost = {"loss": 4.5, "increase": near(0.5 if arm == UNTIED else 0.4)}
                        add("ablation", arm, seed, layer=block, component=component, how=how, **lost)
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
    rows["poles"] = [poles(seeds)]
    several = [synthetic_places(group, tuple(range(seeds)), spread=0.01) for group in GROUPS]
    for corpus in (PYTHON, TWO_ROLE):
        several.append(dict(synthetic_sweep(corpus, tuple(range(seeds))).tables))
        arms = profiles.get("laptop", corpus)
        names = [arm.name for arm in (*arms.remedied, *arms.enlarged)]
        leans = dict(zip(names, np.random.default_rng(0).uniform(-0.5, 0.5, len(names)), strict=True))
        large = {UNTIED, AGAIN, "untie", "factorised", "table-rates", *(arm.name for arm in arms.enlarged)}
        remedied = {arm: (lean, 4 + abs(lean), 1_000_000 if arm in large else 800_000) for arm, lean in leans.items()}
        several.append(synthetic_remedies(remedied, corpus, seeds, spread=0.02))
    for tables in several:
        for name, table in tables.items():
            rows.setdefault(name, []).append(table)
    return {name: pd.concat(parts, ignore_index=True) for name, parts in rows.items()}


def as_rows(values: dict) -> pd.DataFrame:
    """A row of `values`, or as many as the arrays among them are long."""
    return pd.DataFrame(values, index=None if any(isinstance(value, np.ndarray) for value in values.values()) else [0])


def synthetic_remedies(
    arms: dict[str, tuple[float, float, int]], corpus: str = PYTHON, seeds: int = 3, spread: float = 0.01
) -> dict[str, pd.DataFrame]:
    """The remedies' tables where each arm has this bias, loss and number of parameters; a seed shifts all arms alike."""
    rows: dict[str, list] = {}

    def add(name: str, **values) -> None:
        rows.setdefault(f"remedy_{name}", []).append({"corpus": corpus, "arm": arm, "seed": seed, **values})

    for seed, (arm, (bias, loss, parameters)) in itertools.product(range(seeds), arms.items()):
        shift, floor = spread * (seed - 1), 3.0 if corpus == TWO_ROLE else np.nan
        add("losses", validation_loss=loss + shift, floor=floor, parameters=parameters)
        for sign, source, role in ((1, "output", "target"), (-1, "input", "source")):
            score = 0.5 + sign * (bias + shift) / 2
            if corpus == TWO_ROLE:
                add("roles", table="tied", role=role, purity=score)
                add("roles", table="output", role=role, purity=sign)  # an output table says nothing of the input
            else:
                add("alignment", source=source, target="tied", corrected=score)
        for layer in range(0 if arm.endswith(EQUAL) else 5):
            for lens, kl in (("tuned", 10 * loss - layer), ("logit", 99.0)):
                add("lens", lens=lens, indexing="matched", layer=layer, kl_bits=kl)
        if seed == 0:
            add("steps", ratio=loss / 4.5)
    return {name: pd.DataFrame(part) for name, part in rows.items()}


@functools.cache
def synthetic_public() -> dict[str, pd.DataFrame]:
    """Tidy tables of the shape that `public.Public` gives, with one checkpoint left out."""
    rng, rows = np.random.default_rng(0), {}

    def add(name: str, **values) -> None:
        rows.setdefault(name, []).append(as_rows(values))

    null = {"value": 0.5, "chance": 0.2, "chance_low": 0.19, "chance_high": 0.21}
    scores = null | {"low": 0.45, "high": 0.55}
    for family in ("OLMo", "GPT-Neo/Pythia", "Qwen3"):
        for source, target in PAIRS:
            pair, paper = {"family": family, "source": source, "target": target}, np.nan if family == "Qwen3" else 0.6
            for kind in ("linear",) if family == "Qwen3" else ("orthogonal", "linear"):
                add("alignment", **pair, **scores, kind=kind, held_out=0.4, published=paper)
            add("neighbors", **pair, **scores, published=0.6)
            add("spectral", **pair, **null, published=1.3)
            if target == "tied":
                add("cosines", **pair, cosine=np.linspace(-0.2, 1, 50), density=rng.random(50))
        for table in TABLES:
            bins = {"log10_count": np.arange(6), "norm_mean": 1 + np.arange(6) / 5, "norm_std": 0.1}
            add("norms", family=family, table=table, spearman=-0.3, **bins)
        for tied, indexing in itertools.product((False, True), ("matched", "published")):
            add("lens", family=family, tied=tied, indexing=indexing, layer=np.arange(5), kl_bits=4.0 - np.arange(5))
    for model, table in itertools.product(published.evolution()["model"].unique(), ("input", "output")):
        cosine, problem = 1 - np.arange(4) / 5, np.full(4, np.nan, object)
        if model == "Pythia-1B":
            cosine[2], problem[2] = np.nan, "equal to step 100"
        moved = {"step": 100 * np.arange(4), "to_start": cosine, "to_previous": cosine, "problem": problem}
        add("evolution", model=model, table=table, **moved)
    frames = {name: pd.concat(parts, ignore_index=True) for name, parts in rows.items()}
    return frames | {"shares": shares.table(["Pythia-70M", "Pythia-160M", "OLMo-1B", "OLMo-2-1B", "Qwen3-0.6B", "Qwen3-1.7B"])}
