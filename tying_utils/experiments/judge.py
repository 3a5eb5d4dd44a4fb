"""The one judge: from a value per seed to a row with the mean, its interval, and what they say of the claim."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd
from numpy.typing import ArrayLike

from tying_utils.measures import statistics

Side = Literal["above", "below"]
# By unit, what is nearer to no effect than this is not worth naming; in a unit that is not here everything is.
SMALLEST = {
    **dict.fromkeys(("corrected alignment", "corrected overlap", "mean row cosine", "fraction"), 0.05),
    "bits per token": 0.1,
    "nats per token": 0.02,
}


@dataclass(frozen=True)
class Statistic:
    """What is measured of a claim, in one number per seed.

    Code and the column "id" know it by its `id`, readers by its `label`, measured in `unit`. The claim says that it lies on
    the side `claimed` of `null`, the value that would be no effect; what is nearer to it than `smallest` (by default that of
    its unit in `SMALLEST`) is not worth naming. `published` is what the paper says of it, in words. `measurable` is False where
    what it compares says nothing of the claim: then a difference is not judged, and only "equivalent" stands.
    """

    id: str
    claim: str
    label: str
    unit: str
    null: float = 0.0
    claimed: Side = "above"
    smallest: float | None = None
    published: str = "not measured"
    measurable: bool = True

    @property
    def words(self) -> str:
        """Return the label with its unit."""
        return f"{self.label} ({self.unit})"

    @property
    def worth_naming(self) -> float:
        """Return the smallest effect worth naming."""
        return SMALLEST.get(self.unit, 0.0) if self.smallest is None else self.smallest

    def row(self, values: ArrayLike) -> dict[str, Any]:
        """Judge `values` (n,), one per seed: a row of a table of verdicts.

        Keys: claim, statistic (the label), estimate (the mean), low, high (its 95 % t interval; nan for one seed), seeds (n),
        p (see `statistics.p_value`), verdict ("supported", "refuted", "equivalent" or "open", see `statistics.verdict`, "not
        measurable", or "" below three seeds), published, id, unit, null and claimed. Raises ValueError for no values, and for
        any that is not finite.
        """
        interval = statistics.mean_interval(values)
        verdict = statistics.verdict(interval, self.null, self.claimed, smallest=self.worth_naming)
        return {
            "claim": self.claim,
            "statistic": self.label,
            "estimate": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "seeds": interval.n,
            "p": statistics.p_value(values, self.null),
            "verdict": verdict if self.measurable or verdict in ("", "equivalent") else "not measurable",
            "published": self.published,
            "id": self.id,
            "unit": self.unit,
            "null": self.null,
            "claimed": self.claimed,
        }


def at_equal_parameters(statistic: Statistic, gained: ArrayLike) -> Statistic:
    """Return `statistic`, of a tied model made as large as the untied one, as measurable only where size helps a tied model.

    gained: the loss of the larger tied model minus that of the smaller, one per seed. Where it is not below 0 with its whole
    95 % interval, the larger model lacks training, and a comparison with it says nothing of tying. Below three seeds there is
    no interval to go by, and no verdict either.
    """
    found = statistics.mean_interval(gained)
    return replace(statistic, measurable=found.n < statistics.ENOUGH or found.high < 0)


Evidence = Iterator[tuple[Statistic, pd.Series]]  # each statistic of a claim with its value by seed
