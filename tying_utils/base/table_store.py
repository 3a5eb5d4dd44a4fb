"""Tidy tables on disk: a folder of CSV files and a manifest that says how each was made, and its sha256."""

import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from tying_utils.base.folder import VerifiedFolder

PACKAGES = ("torch", "transformers", "transformer-lens", "tuned-lens", "numpy")


class TableStore:
    """Keep the tables in `folder`. What is damaged is never read: it is named, and set aside by a caller who makes it again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held = VerifiedFolder(folder, "manifest.json")

    @property
    def manifest(self) -> dict[str, Any] | None:
        """Return how the tables were made; None where there are none, or where the manifest is damaged."""
        return self._held.read()

    @property
    def checksums(self) -> dict[str, str]:
        """Return the sha256 of each table on disk, by folder/name."""
        tables = (self.manifest or {}).get("tables", {})
        return {f"{self.folder.name}/{name}": entry["sha256"] for name, entry in tables.items()}

    def read(self, name: str, current: Callable[[dict[str, Any]], bool], *, keep: bool) -> tuple[pd.DataFrame, str] | None:
        """Return a table and where it came from, in words; None if it is not there, not intact, or its entry is not `current`.

        A damaged file is set aside, with a warning, unless `keep`.
        """
        file = f"{name}.csv"
        entry = (self._held.read(repair=not keep) or {}).get("tables", {}).get(name)
        if entry is None or self._held.damaged({file: entry["sha256"]}, repair=not keep) or not current(entry):
            return None
        made = entry["made"]
        words = f"read from {file}, measured on {made['date']} (Python {made['python']}, {made['device']})"
        return pd.read_csv(self.folder / file), words

    def write(
        self,
        name: str,
        table: pd.DataFrame,
        entry: dict[str, Any],
        *,
        device: str,
        seconds: float,
        update: Callable[[dict[str, Any]], None] = lambda manifest: None,
    ) -> pd.DataFrame:
        """Write a table and its entry in the manifest, which `update` may add to; return the table as the file holds it."""
        file = f"{name}.csv"
        with self._held.alone():
            options: dict[str, Any] = {"index": False, "float_format": "%.6g", "lineterminator": "\n"}
            digest = self._held.write(file, lambda path: table.to_csv(path, **options))
            manifest = self._held.read(repair=True) or {}
            made = {
                "date": time.strftime("%Y-%m-%d"),
                "python": platform.python_version(),
                "device": device,
                "cores": torch.get_num_threads(),
                "seconds": round(seconds, 1),
            }
            manifest["packages"] = {package: version(package) for package in PACKAGES}
            tables = manifest.setdefault("tables", {})
            tables[name] = {"sha256": digest, "rows": len(table), **entry, "made": made}
            update(manifest)
            self._held.commit(manifest)
        return pd.read_csv(self.folder / file)
