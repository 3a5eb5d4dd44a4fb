import hashlib
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tying_utils.base import files

values = st.dictionaries(
    st.text(max_size=5).filter(lambda key: key != "checksum"),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


@pytest.mark.parametrize("old", [None, b"old"])
def test_replacing_takes_the_name_on_a_clean_exit_and_not_before(tmp_path, old):
    target = tmp_path / "new" / "folder" / "file"
    if old is not None:
        files.write_with(target, lambda path: path.write_bytes(old))
    with files.replacing(target) as temporary:
        assert temporary.parent == target.parent, "a rename across file systems is not atomic"
        temporary.write_bytes(b"new and longer")
        assert (target.read_bytes() if target.exists() else None) == old
    assert target.read_bytes() == b"new and longer"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [None, b"old"])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error, old):
    target = tmp_path / "file"
    if old is not None:
        target.write_bytes(old)
    with pytest.raises(error), files.replacing(target) as temporary:
        temporary.write_bytes(b"ha")
        raise error
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == ({} if old is None else {target: old})


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    program = (
        "import os, sys, pathlib\nfrom tying_utils.base import files\n"
        "with files.replacing(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'ha')\n    os._exit(9)\n"
    )
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", program, str(target)], cwd=root).returncode == 9
    assert target.read_bytes() == b"old"


@settings(max_examples=30)
@given(value=values)
def test_json_comes_back_as_written(value):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "value.json"
        files.write_json(path, value)
        assert files.read_json(path) == value
        assert json.loads(path.read_text(encoding="utf-8"))["checksum"]


@settings(max_examples=100)
@given(value=values, place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_never_changes_what_is_read(value, place, bit):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "value.json"
        files.write_json(path, value)
        content = bytearray(path.read_bytes())
        content[int(place * len(content))] ^= 1 << bit
        path.write_bytes(content)
        # A flip may leave the value as it was (1e-05 and 1E-05): then reading it is right.
        assert files.read_json(path) in (None, value)


def test_a_flipped_byte_of_the_content_is_detected(tmp_path):
    path = tmp_path / "value.json"
    files.write_json(path, {"step": 12})
    path.write_text(path.read_text(encoding="utf-8").replace("12", "13"), encoding="utf-8")
    assert files.read_json(path) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"null", b'{"step": 12}', b"\xff\xfe", b'{"checksum": 1}', None])
def test_what_was_not_written_here_is_not_read(tmp_path, content):
    path = tmp_path / "value.json"
    if content is not None:
        path.write_bytes(content)
    assert files.read_json(path) is None


def test_damaged_files_are_numbered_and_named(tmp_path):
    path = tmp_path / "run.json"
    for number in (1, 2, 3):
        path.write_bytes(b"%d" % number)
        with pytest.warns(UserWarning, match=rf"run\.json: it is odd; it is kept as run\.json\.damaged-{number}"):
            aside = files.set_aside(path, "it is odd")
        assert aside == tmp_path / f"run.json.damaged-{number}"
        assert not path.exists()
    kept = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert kept == {f"run.json.damaged-{number}": b"%d" % number for number in (1, 2, 3)}


def test_a_folder_is_set_aside_whole(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "file").write_bytes(b"kept")
    with pytest.warns(UserWarning, match="run: it is odd"):
        files.set_aside(folder, "it is odd")
    assert (tmp_path / "run.damaged-1" / "file").read_bytes() == b"kept"


def test_nothing_to_set_aside_is_named_too(tmp_path):
    with pytest.warns(UserWarning, match=r"gone\.bin: it is missing"):
        assert files.set_aside(tmp_path / "gone.bin", "it is missing") is None
    assert list(tmp_path.iterdir()) == []


def test_digest_is_sha256_and_intact_compares_it(tmp_path):
    path = tmp_path / "file"
    expected = hashlib.sha256(b"content").hexdigest()
    assert files.write_with(path, lambda p: p.write_bytes(b"content")) == expected
    assert files.digest(path) == expected
    assert files.intact(path, expected)
    path.write_bytes(b"Content")
    assert not files.intact(path, expected)
    assert not files.intact(tmp_path / "gone", expected)
    assert not files.intact(tmp_path, expected)
