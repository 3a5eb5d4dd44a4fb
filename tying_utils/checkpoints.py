"""Public checkpoints, by their public name."""

from tying_utils.models.checkpoints import (
    CheckpointTables,
    read_tables,
    steps,
)

__all__ = ["CheckpointTables", "read_tables", "steps"]
