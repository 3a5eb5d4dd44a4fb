"""The verdicts, by their public name."""

from tying_utils.experiments.claims import (
    CLAIMS,
    sentence,
    verdicts,
)

__all__ = ["CLAIMS", "sentence", "verdicts"]
