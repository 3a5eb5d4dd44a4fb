"""The one judge: from a value per seed to a row with the mean, its interval, and what they say of the claim."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from numpy.typing import ArrayLike

from tying_utils.measures import statistics

Side = Literal["above", "below"]


@dataclass(frozen=True)
class Statistic:
    """What is measured of a claim, in one number per seed.

    Code and the column "id" know it by its `id`, readers by its `label`, measured in `unit`. The claim says that it lies on
    the side `claimed` of `null`, the value that would be no effect; what is nearer to it than `smallest` is not worth naming.
    `published` is what the paper says of it, in words.
    """

    id: str
    claim: str
    label: str
    unit: str
    null: float = 0.0
    claimed: Side = "above"
    smallest: float = 0.0
    published: str = "not measured"

    @property
    def words(self) -> str:
        """Return the label with its unit."""
        return f"{self.label} ({self.unit})"

    def row(self, values: ArrayLike) -> dict[str, Any]:
        """Judge `values` (n,), one per seed: a row of a table of verdicts.

        Keys: claim, statistic (the label), estimate (the mean), low, high (its 95 % t interval; nan for one seed), seeds (n),
        p (see `statistics.p_value`), verdict ("supported", "refuted", "equivalent", "open", or "" below three seeds,
        see `statistics.verdict`), published, id, unit, null and claimed. Raises ValueError for no values, and for any that is
        not finite.
        """
        interval = statistics.mean_interval(values)
        return {
            "claim": self.claim,
            "statistic": self.label,
            "estimate": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "seeds": interval.n,
            "p": statistics.p_value(values, self.null),
            "verdict": statistics.verdict(interval, self.null, self.claimed, smallest=self.smallest),
            "published": self.published,
            "id": self.id,
            "unit": self.unit,
            "null": self.null,
            "claimed": self.claimed,
        }


Evidence = Iterator[tuple[Statistic, pd.Series]]  # each statistic of a claim with its value by seed
