"""Tables at several places, with effects put into them."""

import functools
import itertools
from typing import Any

import numpy as np
import pandas as pd

from tying_utils.base.names import PYTHON, TIED, TWO_ROLE, UNTIED
from tying_utils.experiments.places import SCALED

WIDTHS, VOCABULARIES, ARCHITECTURES, DEPTH = (32, 64, 128), (512, 2048), ("olmo", "gpt2"), 4
BIAS, CHANGE, SHARE, LENS, PRICE, EQUAL = 0.4, -0.1, 0.7, -0.05, 0.08, 0.06  # the effects put in


def doublings(width: int, vocabulary: int) -> float:
    """What the output bias of a place is more than `BIAS`: less by .02 for each doubling of d, more by .01 for each of V."""
    return -0.02 * np.log2(width / 32) + 0.01 * np.log2(vocabulary / 512)


@functools.cache
def synthetic_places(
    group: str,
    seeds: tuple[int, ...] = (0, 1, 2),
    widths: tuple[int, ...] = WIDTHS,
    vocabularies: tuple[int, ...] = VOCABULARIES,
    spread: float = 0.0,
) -> dict[str, pd.DataFrame]:
    """Tables of `group` whose effects are those above: seeds differ by `spread` times a normal number.

    A tied model's loss falls as a line in the logarithm of its parameters, an untied one's is `EQUAL` below that line.
    """
    rng = np.random.default_rng(0)
    of_corpus = {PYTHON: [("olmo", d, v) for v, d in itertools.product(vocabularies, widths)]}
    if group == "architecture":
        of_corpus = {corpus: [(arch, 64, 512) for arch in ARCHITECTURES] for corpus in (PYTHON, TWO_ROLE)}
    rows: dict[str, list[dict[str, Any]]] = {}
    for corpus, at in of_corpus.items():
        for (arch, d, vocabulary), seed, arm in itertools.product(at, seeds, (UNTIED, TIED, SCALED)):
            place = {"corpus": corpus, "arch": arch, "d_model": d, "n_layers": DEPTH, "vocab_size": vocabulary}
            labels = {**place, "arm": arm, "input_scale": 5.0 if arm == SCALED else 1.0, "seed": seed}
            tables = vocabulary * d * (1 + (arm == UNTIED))
            size = {"parameters": DEPTH * 16 * d**2 + tables, "table_parameters": tables}
            loss = 8 - 0.4 * np.log(size["parameters"]) - EQUAL * (arm == UNTIED) + PRICE * (arm == SCALED)
            noise = spread * rng.standard_normal()
            rows.setdefault("losses", []).append({**labels, "validation_loss": loss + noise, **size})
            lean = BIAS + doublings(d, vocabulary) + CHANGE * (arm == SCALED) + noise
            for source in ("input", "output") if arm != UNTIED else ():
                pair = {"source": source, "target": "tied", "kind": "orthogonal"}
                rows.setdefault("alignment", []).append({**labels, **pair, "corrected": 0.2 + lean * (source == "output")})
            for layer in range(DEPTH + 1) if arm != SCALED else ():
                bits = 2.0 - layer / DEPTH + LENS * (arm == TIED and layer == 0) + noise
                for kind, indexing, high in (("tuned", "matched", 0), ("tuned", "published", 1), ("logit", "matched", 3)):
                    point = {"lens": kind, "indexing": indexing, "layer": layer, "kl_bits": bits + high}
                    rows.setdefault("lens", []).append({**labels, **point})
            for step in range(40, 401, 40) if arm == TIED else ():
                share = SHARE + noise if step == 40 else 0.5
                row = {**labels, "step": step, "output_share": share, "output_update_share": share + 0.1}
                rows.setdefault("share", []).append(row)
            for table, role in itertools.product(("input", "output") if arm == UNTIED else ("tied",), ("source", "target")):
                purity = 0.4 + 0.2 * (role == "target") + noise
                row = {**labels, "output_scale": 1.0, "agreement": 0.0, "table": table, "role": role, "purity": purity}
                rows.setdefault("roles", []).extend([row] if corpus == TWO_ROLE else [])
    return {f"{group}_{name}": pd.DataFrame(part) for name, part in rows.items() if part}
