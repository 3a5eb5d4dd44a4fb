"""One verified folder: files, and a record that names the sha256 of each and is written last.

What the record does not name does not count, what it names is verified before it is used, and what is damaged is set aside
under a name of its own, never deleted. Each store knows what its record holds and when that is current.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from tying_utils.base import files


class VerifiedFolder:
    """Keep files in the folder `path`, with the file `record` in it as the commit point and a `lock` (.lock in it) to write."""

    def __init__(self, path: Path, record: str, *, lock: Path | None = None) -> None:
        self.path, self.record = path, path / record
        self._lock = lock or path / ".lock"

    @contextmanager
    def alone(self, *inner: str) -> Iterator[None]:
        """Hold the lock; what a killed process left half-written in the folder and in its folders `inner` is removed first."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._lock):
            for place in (self.path, *(self.path / name for name in inner)):
                files.sweep(place)
            yield

    def read(self, *, repair: bool = False) -> dict[str, Any] | None:
        """Return the record, None if there is none or it is damaged; with `repair` a damaged one is set aside."""
        return files.read_or_set_aside(self.record) if repair else files.read_json(self.record)

    def damaged(self, digests: Mapping[str, str], *, repair: bool = False) -> list[str]:
        """Return the names of the files that are missing or have another sha256 than `digests` says; `repair` sets them aside.

        Raises ValueError, before any file is looked at, for a name that leads out of the folder.
        """
        paths = {name: files.inside(self.path, name) for name in digests}
        found = [name for name, path in paths.items() if not files.intact(path, digests[name])]
        for name in found if repair else ():
            files.set_aside(paths[name], "it is missing or does not match its checksum")
        return found

    def write(self, name: str, writer: Callable[[Path], object]) -> str:
        """Write the file `name` whole or not at all through `writer(temporary path)` and return its sha256."""
        return files.write_with(self.path / name, writer)

    def commit(self, record: dict[str, Any]) -> None:
        """Write the record: from here on what it names counts, and nothing else."""
        files.write_json(self.record, record)

    @contextmanager
    def remade(self) -> Iterator[Path]:
        """Yield an empty folder beside this one that takes its place on a clean exit, whole; for the holder of the lock."""
        for left in self.path.parent.glob(f".{self.path.name}.*/"):  # of a killed process
            shutil.rmtree(left)
        temporary = Path(tempfile.mkdtemp(dir=self.path.parent, prefix=f".{self.path.name}."))
        try:
            yield temporary
            temporary.chmod(0o755)
            shutil.rmtree(self.path, ignore_errors=True)  # what the record of the folder says is not wanted now
            temporary.replace(self.path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
