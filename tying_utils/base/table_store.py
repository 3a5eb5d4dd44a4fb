"""Tidy tables on disk: a folder of CSV files and a manifest that says how each was made and what it must hash to."""

import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock

from tying_utils.base import files

PACKAGES = ("torch", "transformers", "transformer-lens", "tuned-lens", "numpy")


class TableStore:
    """The tables in `folder`. What is damaged is never read: it is named, and set aside where it is to be made again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def manifest(self) -> dict[str, Any] | None:
        """How the tables were made; None where there are none, or where it is damaged."""
        return files.read_json(self._manifest)

    @property
    def _manifest(self) -> Path:
        return self.folder / "manifest.json"

    @property
    def checksums(self) -> dict[str, str]:
        """sha256 of each table on disk, by folder/name."""
        tables = (self.manifest or {}).get("tables", {})
        return {f"{self.folder.name}/{name}": entry["sha256"] for name, entry in tables.items()}

    def read(self, name: str, current: Callable[[dict[str, Any]], bool], *, keep: bool) -> tuple[pd.DataFrame, str] | None:
        """A table and where it came from, in words; None if it is not there, not intact, or its entry is not `current`.

        A damaged file is set aside, with a warning, unless it is to be kept (`keep`) for who asks only to read.
        """
        manifest = self.manifest if keep else files.read_or_set_aside(self._manifest)
        entry = (manifest or {}).get("tables", {}).get(name)
        if entry is None:
            return None
        path = self.folder / f"{name}.csv"
        if not files.intact(path, entry["sha256"]):
            if not keep:
                files.set_aside(path, "it is missing or does not match its checksum")
            return None
        if not current(entry):
            return None
        made = entry["made"]
        words = f"read from {path.name}, measured on {made['date']} (Python {made['python']}, {made['device']})"
        return pd.read_csv(path), words

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
        """Write a table and its entry in the manifest, which `update` may add to; the table as the file holds it.

        So a notebook shows the same digits the first time and every time after.
        """
        path = self.folder / f"{name}.csv"
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            files.sweep(self.folder)
            digest = files.write_with(path, lambda p: table.to_csv(p, index=False, float_format="%.6g", lineterminator="\n"))
            manifest = files.read_or_set_aside(self._manifest) or {}
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
            files.write_json(self._manifest, manifest)
        return pd.read_csv(path)
