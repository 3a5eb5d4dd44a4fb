"""The verdicts, by their public name."""

from tying_utils.experiments.claims import (
    CLAIMS,
    verdicts,
)
from tying_utils.experiments.grid import grid

__all__ = ["CLAIMS", "grid", "verdicts"]
