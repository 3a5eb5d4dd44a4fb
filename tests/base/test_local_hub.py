"""The local hub is to huggingface_hub what the real one is, and each fault is seen to happen."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import (
    HfApi,
    cached_assets_path,
    constants,
    get_session,
    hf_hub_download,
    hf_hub_url,
    list_repo_files,
    list_repo_refs,
    model_info,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import http_backoff
from local_hub import Fault, LocalHub, pointing_at

REPO = "org/model"
WEIGHTS = bytes(range(256)) * 1000
CONFIG = {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "vocab_size": 11}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "extra" / "deep").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "extra" / "deep" / "notes.txt").write_text("notes")
    return folder


@pytest.fixture
def hub(folder: Path, tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub() as hub, pointing_at(hub, tmp_path / "cache"):
        hub.add(REPO, folder)
        yield hub


def get(file: str = "model.safetensors", repo: str = REPO, **headers: str) -> httpx2.Response:
    return get_session().get(hf_hub_url(repo, file), headers=headers)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "extra/deep/notes.txt"])
def test_a_download_has_the_bytes_of_the_file(hub: LocalHub, folder: Path, tmp_path: Path, file: str) -> None:
    path = Path(hf_hub_download(REPO, file))
    assert path.read_bytes() == (folder / file).read_bytes()
    assert path.is_relative_to(tmp_path / "cache" / "hub")
    assert [(r.method, r.file, r.status) for r in hub.requests] == [("HEAD", file, 200), ("GET", file, 200)]
    assert hub.served == path.stat().st_size
    hf_hub_download(REPO, file)
    assert hub.requests[-1].method == "HEAD" and hub.served == path.stat().st_size  # taken from the cache


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("bytes=5-5", range(5, 6)),
        ("bytes=8-99", range(8, 100)),
        ("bytes=255990-", range(255990, 256000)),
        ("bytes=10-999999", range(10, 256000)),
    ],
)
def test_a_range_has_exactly_the_bytes_asked_for(hub: LocalHub, asked: str, expected: range) -> None:
    response = get(range=asked)
    assert response.status_code == 206 and response.content == WEIGHTS[expected.start : expected.stop]
    assert response.headers["Content-Range"] == f"bytes {expected[0]}-{expected[-1]}/{len(WEIGHTS)}"
    assert (hub.requests[-1].range, hub.requests[-1].sent, hub.served) == (asked, len(expected), len(expected))


def test_revisions_and_commits(hub: LocalHub, tmp_path: Path) -> None:
    main = model_info(REPO).sha
    other = tmp_path / "step"
    other.mkdir()
    (other / "config.json").write_text("{}")
    step = hub.add(REPO, other, revision="steps/1")
    assert [(ref.name, ref.target_commit) for ref in list_repo_refs(REPO).branches] == [("main", main), ("steps/1", step)]
    for revision in ("steps/1", step):
        assert model_info(REPO, revision=revision).sha == step
        assert Path(hf_hub_download(REPO, "config.json", revision=revision)).read_text() == "{}"
    assert model_info(REPO).sha == main != hub.add(REPO, other) == model_info(REPO).sha
    assert list_repo_files(REPO, revision=main) == ["config.json", "extra/deep/notes.txt", "model.safetensors"]


def test_a_snapshot_is_the_folder(hub: LocalHub, folder: Path) -> None:
    snapshot = Path(snapshot_download(REPO))
    for file in ("config.json", "model.safetensors", "extra/deep/notes.txt"):
        assert (snapshot / file).read_bytes() == (folder / file).read_bytes()


def test_what_is_not_there_raises_the_errors_of_huggingface_hub(hub: LocalHub) -> None:
    for token in (False, "hf_other"):
        for call in (model_info, list_repo_refs, lambda repo, **options: hf_hub_download(repo, "config.json", **options)):
            with pytest.raises(RepositoryNotFoundError):
                call("org/absent", token=token)
    with pytest.raises(RevisionNotFoundError):
        model_info(REPO, revision="absent")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(REPO, "config.json", revision="absent")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(REPO, "absent.json")


def test_a_gated_repository_opens_to_the_right_token_alone(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    hub.add("org/gated", folder, gated=True)
    assert model_info("org/gated").gated == "manual"
    for token in (False, "hf_other"):
        with pytest.raises(GatedRepoError):
            hf_hub_download("org/gated", "config.json", token=token)
    assert [request.status for request in hub.requests[-2:]] == [401, 403]
    with pointing_at(hub, tmp_path / "other", token=hub.token):  # that of the environment is sent
        assert Path(hf_hub_download("org/gated", "config.json")).is_relative_to(tmp_path / "other")
    assert hub.requests[-1].authorization == "Bearer hf_good"


def test_a_redirect_to_another_host_does_not_take_the_token_along(hub: LocalHub, folder: Path) -> None:
    hub.add("org/gated", folder, gated=True)
    hub.cdn_from = 1000
    response = get(repo="org/gated", range="bytes=8-15", authorization="Bearer hf_good")
    assert response.status_code == 206 and response.content == WEIGHTS[8:16]
    first, second = hub.requests
    assert (first.status, first.authorization, first.sent) == (302, "Bearer hf_good", 0)
    assert (second.status, second.authorization, second.range) == (206, None, "bytes=8-15")
    assert second.host.startswith("localhost:") and second.path.startswith("/cdn/") and second.file == "model.safetensors"
    hf_hub_download("org/gated", "config.json", token=hub.token)  # not LFS: no redirect
    assert hub.requests[-1].path == "/org/gated/resolve/main/config.json"


def test_pointing_at_sets_and_restores_what_huggingface_hub_read_at_import(hub: LocalHub, tmp_path: Path) -> None:
    assert hub.url == constants.ENDPOINT and constants.HF_HUB_DISABLE_XET
    assert cached_assets_path("here") == tmp_path / "cache" / "assets" / "here" / "default" / "default"
    with LocalHub() as other:
        with pointing_at(other, tmp_path / "other"):
            assert hf_hub_url(REPO, "a").startswith(other.url) and HfApi().endpoint == other.url
            with pytest.raises(RepositoryNotFoundError):
                model_info(REPO)
        assert hf_hub_url(REPO, "a").startswith(hub.url) and model_info(REPO).id == REPO


def test_transformers_reads_a_config(hub: LocalHub) -> None:
    from transformers import AutoConfig

    assert AutoConfig.from_pretrained(REPO).n_embd == 8


def test_a_hub_that_stops_cannot_be_reached(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    get("config.json")
    hub.stop()
    with pytest.raises(httpx2.TransportError):
        get("config.json")
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download(REPO, "config.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineModeIsEnabled):
        get("config.json")


@pytest.mark.parametrize(
    ("fault", "status", "content", "said"),
    [
        (Fault(ignore_range=True, times=1), 200, WEIGHTS, None),
        (Fault(wrong_range=(8, 8), times=1), 206, WEIGHTS[16:24], "bytes 16-23/256000"),
        (Fault(wrong_range=(0, -3), times=1), 206, WEIGHTS[8:13], "bytes 8-12/256000"),
        (Fault(short=3, times=1), 206, WEIGHTS[8:13], "bytes 8-15/256000"),
    ],
)
def test_a_faulty_range_is_followed_by_a_sound_one(hub: LocalHub, fault, status, content, said) -> None:
    hub.faults[".safetensors"] = fault
    spoilt, sound = get(range="bytes=8-15"), get(range="bytes=8-15")
    assert (spoilt.status_code, spoilt.content, spoilt.headers.get("Content-Range")) == (status, content, said)
    assert spoilt.headers["Content-Length"] == str(len(content))
    assert (sound.status_code, sound.content) == (206, WEIGHTS[8:16])


def test_fault_drop_after(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults[".safetensors"] = Fault(drop_after=100)
    with pytest.raises(httpx2.RemoteProtocolError):
        get()
    assert hub.requests[-1].sent == 100 == hub.served
    hub.faults[".safetensors"] = Fault(drop_after=100_000, times=2)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # only whole chunks are kept when a download breaks off
    assert Path(hf_hub_download(REPO, "model.safetensors")).read_bytes() == WEIGHTS
    assert [request.range for request in hub.requests[-3:]] == [None, "bytes=100000-", "bytes=200000-"]


@pytest.mark.parametrize(("status", "headers"), [(429, {"Retry-After": "0"}), (503, {})])
def test_fault_status(hub: LocalHub, status: int, headers: dict[str, str]) -> None:
    hub.faults["config.json"] = Fault(status=status, headers=headers, times=2)
    assert http_backoff("GET", hf_hub_url(REPO, "config.json")).json() == CONFIG
    assert [request.status for request in hub.requests] == [status, status, 200]
    hub.faults["/refs"] = Fault(status=status, headers=headers)
    with pytest.raises(HfHubHTTPError) as caught:
        list_repo_refs(REPO)
    assert caught.value.response.status_code == status


def test_faults_wait_their_turn_and_go_with_reset(hub: LocalHub) -> None:
    hub.cdn_from = 0
    hub.faults[".safetensors"] = Fault(status=403, skip=1, times=1)  # past the hub, at the CDN
    assert get().status_code == 403 and [request.status for request in hub.requests] == [302, 403]
    hub.faults["model.safetensors"] = Fault(drop_after=0)
    hub.reset()
    assert hub.served == 0 and hub.requests == []
    assert get().content == WEIGHTS
