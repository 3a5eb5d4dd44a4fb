from pathlib import Path
from types import SimpleNamespace

import pytest
from local_hub import Fault, LocalHub, pointing_at

from tying_utils.base.hub import Folder, Hub, Unreachable, at, branches, checked_id, local

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "weights.safetensors").write_bytes(CONTENT)
    return folder


@pytest.fixture
def hub(tmp_path, folder):
    with LocalHub() as hub, pointing_at(hub, tmp_path / "cache"):
        hub.add("org/model", folder)
        yield hub


def taken(where, start, stop):
    got = bytearray()
    where.take("weights.safetensors", start, stop, got.extend)
    return bytes(got)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, len(CONTENT)), (100, 5000), (7, 7), (len(CONTENT) - 1, len(CONTENT))])
def test_a_part_is_the_same_from_the_hub_and_from_disk(start, stop, hub, folder):
    local, remote = at(folder), at("org/model")
    assert isinstance(local, Folder) and isinstance(remote, Hub)
    assert taken(local, start, stop) == taken(remote, start, stop) == CONTENT[start:stop]
    assert local.bytes_read == remote.bytes_read == hub.served == stop - start
    assert local.size("weights.safetensors") == remote.size("weights.safetensors") == len(CONTENT)


@pytest.mark.parametrize("drop", [1, 999, 4000])
def test_a_drop_goes_on_where_it_stopped(drop, hub):
    hub.faults["weights.safetensors"] = Fault(drop_after=drop, times=3)
    where = Hub("org/model")
    assert taken(where, 5, 9000) == CONTENT[5:9000]
    assert where.bytes_read == 8995
    assert [request.range for request in hub.requests if request.range][1] == f"bytes={5 + drop}-8999"


def test_waits_grow_to_eight_seconds_and_end_when_nothing_comes(hub, monkeypatch):
    waits = []
    monkeypatch.setattr("tying_utils.base.hub.time", SimpleNamespace(sleep=waits.append))
    hub.faults["weights.safetensors"] = Fault(drop_after=0, skip=1)
    hub.faults[".safetensors"] = Fault(drop_after=3000, times=1)
    with pytest.raises(Unreachable, match="org/model cannot be read: .*; try again later"):
        taken(Hub("org/model"), 5, 9000)
    assert waits == [1, 2, 4, 8, 8, 8]
    assert [request.range for request in hub.requests if request.range] == ["bytes=5-8999"] + 6 * ["bytes=3005-8999"]


def test_ranges_that_end_midway_give_each_byte_once(hub):
    hub.faults["weights.safetensors"] = Fault(drop_after=3000, times=1)
    hub.faults[".safetensors"] = Fault(ignore_range=True)
    with pytest.warns(UserWarning, match="serves no part"):
        assert taken(Hub("org/model"), 5, 9000) == CONTENT[5:9000]


def test_a_file_that_ends_early_is_named(folder):
    with pytest.raises(ValueError, match=f"weights.safetensors ends at byte {len(CONTENT)}, 20000 were promised"):
        taken(Folder(folder), 0, 20_000)


def test_a_file_is_there_or_not(hub, folder):
    for where in (at(folder), at("org/model")):
        assert where.has("config.json") and not where.has("other.json")
        assert where.whole("config.json").read_text() == "{}"
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="org/model holds no config.json at 'main'"):
        Hub("org/model")


def test_the_name_of_a_source():
    assert checked_id("gpt2") == "gpt2" and checked_id("allenai/OLMo-1B-hf") == "allenai/OLMo-1B-hf"
    for wrong in ("a/b/c", "", "/abs", "./here", "org/", "with space", "../up", Path("org/model")):
        with pytest.raises(ValueError, match="is neither a folder nor a model id like"):
            checked_id(wrong)


def test_branches(hub, folder):
    hub.add("org/model", folder, revision="step1")
    assert sorted(branches("org/model")) == ["main", "step1"]
    (folder / "step2").mkdir()
    assert branches(folder) == ["step2"]
    assert str(at(folder, "step2")) == str(folder / "step2")
    with pytest.raises(ValueError, match="has no model 'org/none'"):
        branches("org/none")


def test_a_server_that_is_no_hub_is_said_to_be_none(hub, folder, monkeypatch):
    import huggingface_hub

    real = huggingface_hub.get_hf_file_metadata
    without = lambda url, **options: type(real(url, **options))(None, "etag", url, 2, None)  # noqa: E731
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", without)
    with pytest.raises(Unreachable, match="is not answered as a hub answers; check HF_ENDPOINT"):
        Hub("org/model")


def test_a_file_that_is_called_as_a_hub_id_is_no_checkpoint_and_hides_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").touch()
    (tmp_path / "model.safetensors").touch()
    assert local("gpt2") is None
    with pytest.raises(ValueError, match=r"^source: model.safetensors is a file; give its folder"):
        local("model.safetensors")
    with pytest.raises(ValueError, match="^source: .* is a file"):
        local(tmp_path / "gpt2")
