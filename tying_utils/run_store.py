"""Runs on disk, by their public name."""

from tying_utils.training.run_store import Run

__all__ = ["Run"]
