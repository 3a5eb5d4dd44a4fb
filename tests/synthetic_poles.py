"""Tables of the poles, made up so that each arm lies at a known share of the way between them."""

import pandas as pd

from tying_utils.base.names import LOG_COUNT, PYTHON, SECOND_START, TIED, scaled

ARMS = {(TIED, "tied"): 0.8, (scaled(5), "tied"): 0.4, (LOG_COUNT, LOG_COUNT): 0.6}


def poles(seeds: int = 3, arms: dict[tuple[str, str], float] | None = None, **more: object) -> pd.DataFrame:
    """Tables `poles` in which E' has a bias of -0.2, U' one of 0.6, and each of `arms` lies at its share of the way."""
    biases = {(SECOND_START, "input"): -0.2, (SECOND_START, "output"): 0.6}
    biases |= {key: -0.2 + 0.8 * way for key, way in (arms or ARMS).items()}
    rows = []
    for seed in range(seeds):
        for (arm, target), bias in biases.items():
            for frequency_out in (False, True)[: 1 if arm == LOG_COUNT else 2]:
                shift = 0.01 * seed + (0.05 if frequency_out else 0.0)
                for source, value in (("input", 0.1 + shift), ("output", 0.1 + shift + bias)):
                    labels = {"corpus": PYTHON, **more, "arm": arm, "input_scale": 1.0, "seed": seed}
                    where = {"source": source, "target": target, "frequency_out": frequency_out, "corrected": value}
                    rows.append({**labels, **where})
    return pd.DataFrame(rows)
