"""Where a checkpoint's files lie: a local folder or the Hugging Face hub, and how a part of one is read from there.

huggingface_hub finds, authorises, downloads and caches. Three things are own code, since it did worse (2.4.0; a table of 4.1 MB
in a file of 20 MB, faults of tests/local_hub.py):

- Parts of files. `HfFileSystem` gives wrong bytes without an error where the server ignores the range or sends another part,
  `http_get` where that is as long; after three drops both had fetched 7.1 MB. `HfFileSystem` knows no "gpt2" without an owner.
- Headers of safetensors (models/layout.py). `parse_safetensors_file_metadata` fetches 100 kB of each file where 33 kB do, all
  of it where ranges are ignored; it raises at the first 429, 503 or drop, and compares no offset with the size.
- Whether the hub is there. `hf_hub_download(dry_run=True)` says after 23 s what `get_hf_file_metadata` says after 0.2 s.
"""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tying_utils.base import checks, files

_CHUNK = 4 << 20  # bytes that are held at a time
_RETRIES = 5  # in a row without a byte between them
_BUSY = (408, 429, 500, 502, 503, 504)

Take = Callable[[bytes], object]


class Unreachable(ValueError, OSError):
    """A server that cannot be reached, or that does not hold to what it says."""


class _IgnoresRange(Exception):
    """The server sends the whole file though a part of it was asked for."""


class Folder:
    """A local folder with a checkpoint's files. `bytes_read` counts what `take` has read from them."""

    commit: str | None = None

    def __init__(self, folder: Path) -> None:
        self.folder, self.bytes_read = folder, 0

    def __str__(self) -> str:
        return str(self.folder)

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def size(self, name: str) -> int:
        """Return the size of a file in bytes. Raises ValueError where there is no such file."""
        if not self.has(name):
            raise _lacking(self, name)
        return (self.folder / name).stat().st_size

    def whole(self, name: str) -> Path:
        """Return the path of the whole file."""
        return self.folder / name

    def take(self, name: str, start: int, stop: int, give: Take) -> None:
        """Hand the bytes [start, stop) of a file to `give`, some at a time, in order. Raises ValueError if it ends early."""
        with (self.folder / name).open("rb") as file:
            file.seek(start)
            while start < stop:
                if not (chunk := file.read(min(_CHUNK, stop - start))):
                    raise ValueError(f"source: {self.folder / name} ends at byte {start}, {stop} were promised; copy it anew")
                give(chunk)
                start += len(chunk)
                self.bytes_read += len(chunk)


class Hub:
    """One commit of a model on the hub. `bytes_read` counts the bytes of files that came over the network.

    Where the hub cannot be reached, a commit that huggingface_hub's cache holds will do. Raises ValueError for an unknown or
    gated model and for a missing revision, `Unreachable` for a hub that cannot be reached.
    """

    def __init__(self, repo: str, revision: str | None = None) -> None:
        self.repo, self.revision, self.bytes_read = repo, revision or "main", 0
        self._known: dict[str, Any] = {}  # file -> its metadata
        self.commit = self.revision  # until the hub, or else its cache, says which it is
        try:
            metadata, self.reachable = self._metadata("config.json"), True
        except Unreachable:
            if (path := self.local("config.json")) is None:
                raise
            self.commit, self.reachable = path.parent.name, False
            return
        if metadata is None:
            raise ValueError(f"source: {repo} holds no config.json at {self.revision!r}; a transformers checkpoint is needed")
        self.commit = metadata.commit_hash

    def __str__(self) -> str:
        return self.repo if self.revision == "main" else f"{self.repo} at {self.revision}"

    def has(self, name: str) -> bool:
        return self.local(name) is not None or (self.reachable and self._metadata(name) is not None)

    def size(self, name: str) -> int:
        """Return the size of a file in bytes. Raises ValueError where there is no such file."""
        if path := self.local(name):
            return path.stat().st_size
        if (metadata := self._metadata(name)) is None:
            raise _lacking(self, name)
        return metadata.size

    def local(self, name: str) -> Path | None:
        """Return the path of the whole file, if huggingface_hub's cache holds it."""
        from huggingface_hub import constants, try_to_load_from_cache

        found = try_to_load_from_cache(self.repo, name, cache_dir=constants.HF_HUB_CACHE, revision=self.commit)
        return Path(found) if isinstance(found, str) else None

    def whole(self, name: str) -> Path:
        """Return the path of the whole file, downloaded to huggingface_hub's cache if it is not there."""
        from huggingface_hub import constants, hf_hub_download

        if path := self.local(name):
            return path
        with _explained(self.repo, self.revision):
            path = Path(hf_hub_download(self.repo, name, revision=self.commit, cache_dir=constants.HF_HUB_CACHE))
        self.bytes_read += path.stat().st_size
        return path

    def take(self, name: str, start: int, stop: int, give: Take) -> None:
        """Hand the bytes [start, stop) of a file to `give`, some at a time, in order.

        A connection that drops goes on where it stopped; a server that ignores ranges makes the whole file come first.
        Raises `Unreachable` where the server goes on failing, or answers with other bytes than those it was asked for.
        """
        if path := self.local(name):
            return Folder(path.parent).take(path.name, start, stop, give)
        failures = 0
        while start < stop:
            began, problem = start, f"its answers end before byte {stop} of {name}"
            try:
                with _explained(self.repo, self.revision):
                    for chunk in self._part(name, start, stop):
                        give(chunk)
                        start += len(chunk)
                        self.bytes_read += len(chunk)
            except _IgnoresRange:
                size = self.size(name) / 1e9
                warnings.warn(f"{self.repo}: the server serves no part of {name}; all {size:.2f} GB are read", stacklevel=2)
                path = self.whole(name)
                return Folder(path.parent).take(path.name, start, stop, give)
            except Unreachable as error:
                if not isinstance(error.__cause__, _httpx().TransportError):
                    raise
                problem = str(error.__cause__)
            failures = failures + 1 if start == began else 0
            if failures > _RETRIES:
                raise Unreachable(f"source: {self.repo} cannot be read: {problem}; try again later")
            if start < stop:
                time.sleep(min(8, 2**failures))

    def _part(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

        # Bytes as they are stored: a compressed answer has other ranges.
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        with http_stream_backoff(
            "GET",
            hf_hub_url(self.repo, name, revision=self.commit),
            headers=headers,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            retry_on_exceptions=(),  # of what drops midway `take` keeps what came
            retry_on_status_codes=_BUSY,
        ) as response:
            hf_raise_for_status(response)
            if response.status_code != 206:
                raise _IgnoresRange
            number, got = "([0-9]{1,19})", response.headers.get("Content-Range")
            served = re.fullmatch(rf"bytes {number}-{number}/({number}|\*)", got or "")
            if not served or int(served[1]) != start or int(served[2]) >= stop or served[3] not in ("*", str(self.size(name))):
                asked = f"bytes {start} to {stop - 1} of {name} in {self.repo} were asked for"
                raise Unreachable(f"source: {asked}, {got!r} came; try again later or from another endpoint")
            left = int(served[2]) + 1 - start
            for chunk in response.iter_bytes():
                if len(chunk) > left:
                    raise Unreachable(f"source: the server sends more of {name} in {self.repo} than it says; try again later")
                left -= len(chunk)
                yield chunk

    def _metadata(self, name: str) -> Any:
        """Return huggingface_hub's metadata of a file, asked for once; None if there is no such file."""
        from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

        if name not in self._known:
            url = hf_hub_url(self.repo, name, revision=self.commit)
            try:
                with _explained(self.repo, self.revision):
                    try:
                        found = get_hf_file_metadata(url)
                    except errors.HfHubHTTPError as error:
                        if error.response.status_code not in _BUSY:
                            raise
                        found = get_hf_file_metadata(url, retry_on_errors=True)
                if found.size is None or found.commit_hash is None:
                    raise Unreachable(f"source: {url} is not answered as a hub answers; check HF_ENDPOINT and the proxy")
            except errors.EntryNotFoundError:
                found = None
            self._known[name] = found
        return self._known[name]


Source = Folder | Hub


def read_json(where: Source, name: str) -> dict[str, Any]:
    """Return the JSON object in a file. Raises ValueError for any other content."""
    content = where.whole(name).read_bytes()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        if (what := files.impostor(content)) and not content.lstrip().startswith(b"{"):
            raise ValueError(f"source: {name} of {where} is {what}") from error
        raise ValueError(f"source: {name} of {where} is not JSON ({error}); copy it anew") from error
    if not isinstance(value, dict):
        raise ValueError(f"source: {name} of {where} is no JSON object; copy it anew")
    return value


def _lacking(where: Source, name: str) -> ValueError:
    return ValueError(f"source: {where} holds no {name}, though it says so; copy it anew")


def at(source: str | Path, revision: str | None = None) -> Source:
    """Return the checkpoint at `source`: a local folder (then `revision` is a folder in it) or a model on the hub, by its id.

    Raises ValueError for a revision that is not there and for what is neither a folder nor an id; else as `Hub`.
    """
    return local(source, revision) or Hub(checked_id(source), revision)


def local(source: str | Path, revision: str | None = None) -> Folder | None:
    """Return the folder `source`, or its folder `revision`; None if `source` is none.

    Raises ValueError if it lacks `revision`, for what is no string or path, and for a file, with what would do.
    """
    folder = checks.path("source", source)
    if revision is not None:
        checks.text("revision", revision)
    # What looks like a hub id is one, even where a file is called so.
    if folder.is_file() and (folder.is_absolute() or folder.suffix in (".safetensors", ".bin", ".json", ".pt", ".pth")):
        raise ValueError(f"source: {folder} is a file; give its folder {folder.parent}, with its config.json, or a .gguf file")
    if not folder.is_dir():
        return None
    if revision is not None and not checks.path("revision", folder / revision).is_dir():
        raise ValueError(f"revision: {folder} holds no folder {revision!r}; it holds {', '.join(_folders(folder)) or 'none'}")
    return Folder(folder / (revision or ""))


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def checked_id(source: str | Path) -> str:
    """Return `source` if it has the form of a model id; raises ValueError otherwise."""
    part = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
    if isinstance(source, Path) or not re.fullmatch(rf"(?:{part}/)?{part}", source):
        raise ValueError(f"source: {str(source)!r} is neither a folder nor a model id like 'allenai/OLMo-1B-hf'")
    return source


def branches(source: str | Path) -> list[str]:
    """Return the names of the revisions of `source`: branches on the hub, folders in a local folder. Raises as `at`."""
    if (where := local(source)) is not None:
        return _folders(where.folder)
    from huggingface_hub import HfApi, constants

    repo = checked_id(source)
    with _explained(repo, None):
        return [branch.name for branch in HfApi(constants.ENDPOINT).list_repo_refs(repo).branches]


@contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    """Say in one sentence what went wrong at the hub, and what would do. A missing file stays the hub's own error."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    try:
        yield
    except (_httpx().HTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        match error:
            case errors.GatedRepoError():
                said = f"{repo} is gated; accept its terms at {hub}/{repo}, then log in with `hf auth login` or set HF_TOKEN"
            case errors.RepositoryNotFoundError():
                wrong = f"{hub} has no model {repo!r} that this account may see"
                said = f"{wrong}; check the spelling and the folder, or log in with `hf auth login` if it is private"
            case errors.RevisionNotFoundError():
                said = f"{repo} has no revision {revision!r}; hub.branches({repo!r}) lists those that it has"
                raise ValueError(f"revision: {said}") from error
            case errors.RemoteEntryNotFoundError():
                raise
            case errors.OfflineModeIsEnabled():
                said = f"{repo} is not on this machine and HF_HUB_OFFLINE is set; unset it, or give a local folder"
            case errors.HfHubHTTPError():
                said = f"{hub} answers {error.response.status_code} for {repo}; try again later"
            case _:
                said = f"{hub} cannot be reached for {repo} ({error}); connect, or give a local folder or a model read before"
        known = isinstance(error, errors.RepositoryNotFoundError)  # of which a gated one is a kind
        raise (ValueError if known else Unreachable)(f"source: {said}") from error


def _httpx() -> Any:
    try:
        from huggingface_hub.utils import httpx
    except ImportError:  # before 1.31
        import httpx
    return httpx
