"""Columns that several tables share: what they hold of a measure."""

import numpy as np

from tying_utils.measures import alignment, neighbors, probe


def scores(score: alignment.Alignment | neighbors.Overlap | probe.Probe) -> dict[str, float]:
    """Return the columns of a score beside its null, as every table of scores has them."""
    return {
        "value": score.value,
        "low": score.interval.low,
        "high": score.interval.high,
        "chance": score.chance,
        "chance_low": score.chance_range.low,
        "chance_high": score.chance_range.high,
        "corrected": score.corrected,
    }


def density(cosines: np.ndarray) -> dict[str, np.ndarray]:
    """Return how cosines are distributed over 50 bins of -.25 to 1: the columns cosine (centre of the bin) and density."""
    values, edges = np.histogram(cosines, bins=50, range=(-0.25, 1.0), density=True)
    return {"cosine": (edges[:-1] + edges[1:]) / 2, "density": values}
