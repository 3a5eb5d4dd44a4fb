"""A Hugging Face hub served from 127.0.0.1: what huggingface_hub asks of the real one for the tests, and faults on request.

with LocalHub() as hub, pointing_at(hub, tmp_path):
    commit = hub.add("org/model", folder)
    hub.faults[".safetensors"] = Fault(drop_after=100, times=1)
    hf_hub_download("org/model", "model.safetensors")
    assert [request.status for request in hub.requests] == [200, 200, 200]  # HEAD, and GET twice
"""

import hashlib
import importlib
import json
import math
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest
from huggingface_hub import constants, file_download, hf_api
from huggingface_hub.utils import _cache_assets, _cache_manager, _http, close_session

from tying_utils.base import hub as own

LFS = (".safetensors", ".bin")
FILE = re.compile(r"/(?P<cdn>cdn/)?(?P<repo>.+?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
API = re.compile(r"/api/models/(?P<repo>.+?)(/(?P<what>revision|refs|tree)(/(?P<revision>[^/]+))?)?")
RANGE = re.compile(r"bytes=(\d+)-(\d*)")
CHUNK = 1 << 16


@dataclass
class Request:
    """One request as the hub got it, and what it answered; `status` is 0 and `sent` grows while the answer is under way."""

    method: str
    path: str  # as asked, still quoted, with its query
    host: str  # what the client calls this server: localhost where it was sent on to the CDN
    repo: str | None
    file: str | None  # the file in the repository, None for an API call
    range: str | None
    authorization: str | None
    status: int = 0
    sent: int = 0  # bytes of the body


@dataclass
class Fault:
    """How answers go wrong; several fields may be set at once. All but `status` spoil the answer that carries a file."""

    status: int | None = None  # this status in place of any answer, with `headers`
    headers: dict[str, str] = field(default_factory=dict)
    ignore_range: bool = False  # 200 and the whole file, though a range was asked for
    wrong_range: tuple[int, int] | None = None  # added to the first and last byte served; Content-Range tells the truth
    short: int = 0  # the body and its Content-Length lack so many bytes; Content-Range says what was asked for
    drop_after: int | None = None  # hang up after so many bytes of the body
    times: float = math.inf  # how many more answers to spoil
    skip: int = 0  # how many answers to leave alone first
    methods: tuple[str, ...] = ("GET",)


@dataclass
class Repo:
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)  # revision -> commit
    commits: dict[str, Path] = field(default_factory=dict)  # commit -> folder


class LocalHub:
    """The server; `stop` cuts every connection, so that what follows meets a hub that cannot be reached."""

    def __init__(self, token: str = "hf_good", cdn_from: float = math.inf):
        self.token = token  # the one that opens gated repositories
        self.cdn_from = cdn_from  # LFS files of this many bytes and more are redirected to another host name
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.faults: dict[str, Fault] = {}  # by how the path of the file, or of the API call, ends
        self.lock = threading.Lock()
        self.connections: set[socket.socket] = set()
        self.server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.cdn = f"http://localhost:{self.server.server_port}/cdn"

    def __enter__(self) -> "LocalHub":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        with self.lock:
            for connection in self.connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)  # else a kept-alive connection would be served on
            self.connections.clear()

    @property
    def served(self) -> int:
        return sum(request.sent for request in self.requests)

    def add(self, repo: str, folder: Path, *, revision: str = "main", gated: bool = False) -> str:
        """Serve `folder` as a revision of `repo`; an earlier commit of that revision stays available by its hash."""
        digest = hashlib.sha1(revision.encode())
        for name in files(folder):
            digest.update(f"\0{name}\0".encode() + (folder / name).read_bytes())
        commit = digest.hexdigest()
        entry = self.repos.setdefault(repo, Repo())
        entry.gated, entry.branches[revision], entry.commits[commit] = gated, commit, folder
        return commit

    def reset(self) -> None:
        self.requests.clear()
        self.faults.clear()

    def fault(self, request: Request, refusing: bool) -> Fault:
        """The fault that is to spoil the answer to `request`, with one of its times used up."""
        with self.lock:
            for suffix, fault in self.faults.items():
                moot = request.range is None and (fault.ignore_range or fault.wrong_range)
                if moot or refusing != (fault.status is not None) or request.method not in fault.methods:
                    continue
                if not unquote(urlsplit(request.path).path).endswith(suffix):
                    continue
                if fault.skip:
                    fault.skip -= 1
                elif fault.times:
                    fault.times -= 1
                    return fault
        return Fault()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay quiet about clients that hang up."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Refusal(Exception):
    def __init__(self, status: int, code: str, message: str, **headers: str):
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message, **headers}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: on a kept-alive connection the second would wait
    hub: LocalHub
    asked: Request

    def log_message(self, format: str, *args: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)  # so that `sent` is near what was taken
        with self.hub.lock:
            self.hub.connections.add(self.connection)

    def finish(self) -> None:
        with self.hub.lock:
            self.hub.connections.discard(self.connection)
        super().finish()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        found = FILE.fullmatch(url.path) or API.fullmatch(url.path)
        parts = {name: unquote(part) for name, part in found.groupdict().items() if part} if found else {}
        file = parts.get("path") if found and found.re is FILE else None
        header = self.headers.get
        self.asked = Request(
            self.command, self.path, header("Host", ""), parts.get("repo"), file, header("Range"), header("Authorization")
        )
        self.hub.requests.append(self.asked)
        fault = self.hub.fault(self.asked, refusing=True)
        if fault.status is not None:
            return self.answer(fault.status, b"", fault.headers)
        try:
            if file is not None:
                self.answer_file(file, parts)
            else:
                self.answer_api(parts)
        except _Refusal as refusal:
            self.answer(refusal.status, json.dumps({"error": str(refusal)}).encode(), refusal.headers)

    do_HEAD = do_GET

    def lookup(self, parts: dict[str, str], closed: bool) -> tuple[Repo, str, Path]:
        """The repository, commit and folder that a path names; refused as the hub refuses what is not there or is closed."""
        authorization = self.asked.authorization
        repo = self.hub.repos.get(parts.get("repo", ""))
        if repo is None:
            raise _Refusal(404 if authorization else 401, "RepoNotFound", "Repository not found")
        if closed and repo.gated and authorization != f"Bearer {self.hub.token}":
            raise _Refusal(403 if authorization else 401, "GatedRepo", f"Access to model {parts['repo']} is restricted.")
        revision = parts.get("revision", "main")
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, commit, repo.commits[commit]

    def answer_file(self, file: str, parts: dict[str, str]) -> None:
        on_cdn = "cdn" in parts  # whose addresses are signed: a reader who has one needs no token
        _, commit, folder = self.lookup(parts, closed=not on_cdn)
        if not (folder / file).is_file():
            raise _Refusal(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
        about = describe(folder, file)
        headers = {"ETag": f'"{about["oid"]}"', "Accept-Ranges": "bytes"}
        if not on_cdn:
            headers["X-Repo-Commit"] = commit
            if "lfs" in about:
                headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(about["size"])}
                if about["size"] >= self.hub.cdn_from:
                    location = f"{self.hub.cdn}/{parts['repo']}/resolve/{commit}/{quote(file)}?signature=local"
                    return self.answer(302, b"", headers | {"Location": location})
        self.answer_range((folder / file).read_bytes(), headers, self.hub.fault(self.asked, refusing=False))

    def answer_range(self, content: bytes, headers: dict[str, str], fault: Fault) -> None:
        size = len(content)
        found = RANGE.fullmatch(self.asked.range or "")
        if not found or self.command != "GET" or fault.ignore_range:
            return self.answer(200, content[: max(size - fault.short, 0)], headers, fault.drop_after)
        start, stop = int(found[1]), min(int(found[2] or size) + 1, size)
        if fault.wrong_range:
            start, stop = max(start + fault.wrong_range[0], 0), min(stop + fault.wrong_range[1], size)
        headers = headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        self.answer(206, content[start : max(stop - fault.short, start)], headers, fault.drop_after)

    def answer_api(self, parts: dict[str, str]) -> None:
        repo, commit, folder = self.lookup(parts, closed=False)  # what a gated repository holds may be listed by all
        what = parts.get("what", "revision")
        if what == "refs":
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo.branches.items()]
            return self.answer_json({"branches": branches, "converts": [], "tags": [], "pullRequests": []})
        if what == "tree":  # as it is with recursive=true, without folders
            return self.answer_json([describe(folder, name) for name in files(folder)])
        siblings = [{"rfilename": name} for name in files(folder)]
        about = {"id": parts["repo"], "modelId": parts["repo"], "sha": commit, "siblings": siblings, "tags": []}
        self.answer_json(about | {"private": False, "disabled": False, "gated": "manual" if repo.gated else False})

    def answer_json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, body: bytes, headers: dict[str, str], drop_after: int | None = None) -> None:
        self.asked.status = status
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        if drop_after is not None:
            self.close_connection = True  # without saying so
        self.end_headers()
        body = b"" if self.command == "HEAD" else body[:drop_after]
        for start in range(0, len(body), CHUNK):
            chunk = body[start : start + CHUNK]
            self.asked.sent += len(chunk)  # counted first: a reader finds it counted
            try:
                self.wfile.write(chunk)
            except OSError:
                self.asked.sent -= len(chunk)
                raise


def files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def describe(folder: Path, name: str) -> dict[str, Any]:
    """A file as the tree API tells of it; its ETag is its oid."""
    status = (folder / name).stat()
    oid = digest(folder / name, status.st_mtime_ns)
    about = {"type": "file", "oid": oid, "size": status.st_size, "path": name}
    return about | {"lfs": {"oid": oid, "size": status.st_size, "pointerSize": 134}} if name.endswith(LFS) else about


@lru_cache
def digest(file: Path, changed: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def environment(hub: LocalHub, cache_dir: Path, token: str | None = None) -> dict[str, str]:
    """What a process needs in its environment, over that of its parent, to take `hub` for the hub; caches in `cache_dir`."""
    home = {"HF_HOME": "", "HF_HUB_CACHE": "hub", "HF_ASSETS_CACHE": "assets", "HF_TOKEN_PATH": "token", "HF_XET_CACHE": "xet"}
    quiet = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY")
    unset = ("HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HUGGINGFACE_CO_STAGING", "HF_OIDC_RESOURCE")
    return {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": token or "",
        "NO_PROXY": "127.0.0.1,localhost",
        **{name: str(cache_dir / part) for name, part in home.items()},
        **dict.fromkeys(quiet, "1"),
        **dict.fromkeys(unset, ""),
    }


@contextmanager
def pointing_at(hub: LocalHub, cache_dir: Path, token: str | None = None) -> Iterator[LocalHub]:
    """Let huggingface_hub, and what builds on it, take `hub` for the hub within this process; retries do not wait."""
    before = dict(vars(constants))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(hub, cache_dir, token).items():
            patch.setenv(name, value)
        try:
            importlib.reload(constants)  # they are read from the environment once; others look them up in the module
            patch.setattr(hf_api.api, "endpoint", constants.ENDPOINT)
            if transformers := sys.modules.get("transformers.utils.hub"):  # it keeps a client of the endpoint that it met first
                patch.setattr(transformers, "_hf_api", None, raising=False)
            patch.setattr(_cache_assets, "HF_ASSETS_CACHE", constants.HF_ASSETS_CACHE)
            patch.setattr(_cache_manager, "HF_HUB_CACHE", constants.HF_HUB_CACHE)
            patch.setattr(_http, "_HUB_ORIGINS", _http._HUB_ORIGINS | {_http._url_origin(hub.url)})
            hasty = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
            for module in (_http, file_download, own):
                patch.setattr(module, "time", hasty)
            close_session()
            yield hub
        finally:
            close_session()
            constants.__dict__.update(before)
