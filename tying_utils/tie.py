"""The split tie, by its public name."""

from tying_utils.models.tie import SplitTie

__all__ = ["SplitTie"]
