"""Small runs of every kind, and what is in their folders."""

from typing import Any

from tying_utils.models.balance import REMEDIES
from tying_utils.training.run_store import Run

ROLES: dict[str, Any] = {"corpus": "two-role", "path": None, "vocab_size": 120, "language": {"length": 4000, "classes": 4}}
# Parameters with which a remedy does something in twelve steps of a small language.
PARAMETERS: dict[str, dict[str, Any]] = {
    "scale": {"input": 3.0},
    "schedule": {"start": 0.25, "stop": 0.7},
    "norm-match": {"target": 0.4, "smoothing": 0.7},
    "pcgrad": {"by": "row"},
    "rare-gate": {"alpha": 0.6, "memory": 4},
    "table-rates": {"input": 3.0, "output": 0.5},
    "factorised": {"width": 4},
    "untie": {"at": 0.6},
}


def remedied(name: str | None, **parameters: Any) -> dict[str, Any]:
    """Changes to `tiny` that make it a small two-role condition with the remedy of that name."""
    remedy = name and {"name": name, **PARAMETERS.get(name, {}), **parameters}
    return {**ROLES, "n_layers": 2, "tied": True if name is None else REMEDIES[name].fits[0], "remedy": remedy}


def contents(run: Run) -> dict[str, bytes]:
    """Every file of the run but run.json, which holds the time it took."""
    return {
        path.relative_to(run.folder).as_posix(): path.read_bytes()
        for path in run.folder.rglob("*")
        if path.is_file() and path != run.folder / "run.json"
    }


def identical(run: Run, other: Run) -> bool:
    """Whether two runs in different homes have the same key and the same bytes."""
    assert run.folder != other.folder and run.key == other.key
    assert run.record["files"] == other.record["files"]
    return contents(run) == contents(other)
