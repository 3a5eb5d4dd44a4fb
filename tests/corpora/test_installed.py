import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from corpora_helpers import install, write
from hypothesis import example, given
from hypothesis import strategies as st

from tying_utils.corpora import installed

Read = tuple[installed.Documents, installed.Documents, dict[str, Any]]


def text(name: str, length: int = 200) -> str:
    """A text of its own for each name."""
    return f"{name} = 0\n".ljust(length, "#")


def fill(folder: Path, count: int = 40) -> Path:
    """Many small packages, so that others may be held out or not."""
    for number in range(count):
        install(folder, f"many{number}", {f"many{number}/__init__.py": text(f"many{number}", 400)})
    return folder


def names(documents: installed.Documents) -> list[str]:
    return [name for name, _ in documents]


def everything(folder: Path) -> dict[str, str]:
    """All that is read from a folder."""
    train, validation, _ = installed.read([folder])
    found = dict(train + validation)
    assert len(found) == len(train) + len(validation), "a file is read twice"
    return found


def part_of(read: Read, *files: str) -> list[str]:
    """Which part each file is in."""
    parts = {name: part for part, held in zip(("train", "held out"), read[:2], strict=True) for name in names(held)}
    return [parts[file] for file in files]


def test_every_package_is_in_one_part_whole(tmp_path):
    fill(tmp_path)
    install(tmp_path, "deep", {f"deep/{file}.py": text(f"deep {file}") for file in ("__init__", "b", "sub/c", "sub/sub/d")})
    install(tmp_path, "single", {"single.py": text("single")})
    install(tmp_path, "Some-Name", {"other_name/__init__.py": text("other"), "third_name.py": text("third")}, version="2.1")
    read = installed.read([tmp_path])
    train, validation, facts = read
    assert set(facts) == {"packages", "held_out", "left_out"} and facts["left_out"] == {}
    assert facts["packages"] == {f"many{i}": "1.0" for i in range(40)} | {"Some-Name": "2.1", "deep": "1.0", "single": "1.0"}
    on_disk = {file.relative_to(tmp_path).as_posix(): file.read_text() for file in tmp_path.rglob("*.py")}
    assert dict(train + validation) == on_disk and len(train) + len(validation) == len(on_disk)
    assert len(set(part_of(read, *(f"deep/{file}.py" for file in ("__init__", "b", "sub/c", "sub/sub/d"))))) == 1
    assert len(set(part_of(read, "other_name/__init__.py", "third_name.py"))) == 1
    assert {name.split("/")[0].removesuffix(".py") for name in names(validation)} == set(facts["held_out"])
    assert 0 < sum(len(text) for _, text in validation) <= sum(map(len, on_disk.values())) / 20


def test_what_shares_a_top_level_name_is_one_package(tmp_path):
    """A namespace of two distributions, one of which shares another top-level name with a third."""
    found = set()
    for number in range(60):
        folder, (one, two, three) = fill(tmp_path / str(number), 20), (f"{letter}{number}" for letter in "abc")
        shared = {"x": [f"{two}/one.py"], "y": [f"{two}/two.py", f"{one}/one.py"], "z": [f"{one}/two.py", f"{three}.py"]}
        for name, files in shared.items():
            install(folder, name, {file: text(file, 40) for file in files})
        read = installed.read([folder])
        (part,) = set(part_of(read, *(file for files in shared.values() for file in files)))
        assert [name for name in (one, two, three) if name in read[2]["held_out"]] == ([one] if part == "held out" else [])
        found.add(part)
    assert found == {"train", "held out"}


def test_the_order_is_the_same_whatever_the_order_on_disk(tmp_path, monkeypatch):
    one, other = tmp_path / "one", tmp_path / "other"
    fill(one, 12)
    install(one, "b", {f"b/{file}.py": text(file) for file in ("z", "a", "sub/y", "sub/b", "sub.z/x")} | {"a.py": text("a.py")})
    install(one, "twice", {"twice.py": text("twice")}, version="1.0")
    install(one, "twice", {"twice.py": text("twice"), "again.py": text("again")}, version="2.0")  # as an update left it
    shutil.copytree(one, other)
    expected = installed.read([one])
    listdir, walk = os.listdir, os.walk

    def backwards(*arguments: Any, **options: Any) -> Any:
        for place, folders, files in walk(*arguments, **options):
            folders.sort(reverse=True)
            yield place, folders, sorted(files, reverse=True)

    for reverse in (True, False):
        monkeypatch.setattr(os, "listdir", lambda path, reverse=reverse: sorted(listdir(path), reverse=reverse))
        monkeypatch.setattr(os, "walk", backwards)
        moved = shutil.copytree(one, tmp_path / f"moved {reverse}")  # importlib remembers what a folder holds
        assert installed.read([moved]) == expected
    assert expected[2]["packages"]["twice"] == "1.0" and "again.py" in names(expected[0] + expected[1])
    assert {name.split("/")[0] for name in names(expected[0])} >= {"a.py", "b"}
    assert names(expected[0])[:6] == ["a.py", "b/a.py", "b/sub.z/x.py", "b/sub/b.py", "b/sub/y.py", "b/z.py"]


def test_what_is_left_out_is_counted(tmp_path, monkeypatch):
    files: dict[str, str | bytes] = {
        "odd/latin.py": "# caf\xe9\n".encode("latin-1"),
        "odd/utf16.py": "# text\n".encode("utf-16"),
        "odd/huge.py": "#" * (installed.LARGEST + 1),
        "odd/large.py": "+" * installed.LARGEST,
        "odd/locked.py": text("locked"),
        "odd/gone.py": text("gone"),
    }
    install(tmp_path, "odd", files)
    install(tmp_path, "other", {"other.py": text("other")})
    read_text = Path.read_text

    def refuse(path: Path, *arguments: Any, **options: Any) -> str:
        if path.name in ("locked.py", "gone.py"):
            raise PermissionError(path) if path.name == "locked.py" else FileNotFoundError(path)
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    train, validation, facts = installed.read([tmp_path])
    assert names(train) == ["odd/large.py"] and names(validation) == ["other.py"]
    assert facts["left_out"] == {"huge": 1, "not UTF-8": 2, "unreadable": 2}


def test_copies_are_in_one_part_once(tmp_path):
    fill(tmp_path)
    held_out = installed.read([tmp_path])[2]["held_out"]
    assert held_out
    for number in range(40):  # now in every package, of both parts
        same = {"licence.py": "# all rights\n", "windows.py": "# all rights\r\n", "marked.py": "\ufeff# all rights\n"}
        install(tmp_path, f"many{number}", {f"many{number}/{name}": text for name, text in same.items()}, version="1.0")
        with (tmp_path / f"many{number}-1.0.dist-info" / "RECORD").open("a") as record:
            record.write(f"many{number}/__init__.py,,\n")
    train, validation, facts = installed.read([tmp_path])
    texts = Counter(text for _, text in train + validation)
    assert facts["held_out"] and set(texts.values()) == {1}
    assert "# all rights\n" in dict(train).values()
    assert facts["left_out"] == {"a copy": 3 * 40 - 1}


def test_a_byte_order_mark_or_two_are_no_text(tmp_path):
    install(tmp_path, "a", {"a.py": "\ufeffa = 1\n"})
    install(tmp_path, "b", {"b.py": "\ufeff\ufeffb = 1\n"})
    assert everything(tmp_path) == {"a.py": "a = 1\n", "b.py": "b = 1\n"}


RECORDS = {
    "quoted": ('"inside/a.py",sha256=x,1\n"single.py",,\n', {"inside/a.py", "single.py"}),
    "quoted, with a comma": ('"inside,x/a.py",sha256=x,1\nsingle.py,,\n', {"single.py"}),  # which no import can name
    "a quote without an end": ('"inside/a.py,sha256=x,1\nsingle.py,,\n', {"inside/a.py", "single.py"}),
    "a path alone": ("inside/a.py\nsingle.py\n", {"inside/a.py", "single.py"}),
    "Windows": ("inside/a.py,,\r\nsingle.py,,\r\n", {"inside/a.py", "single.py"}),
    "absolute": ("{outside}/secret.py,,\n/etc/x.py,,\nsingle.py,,\n", {"single.py"}),
    "up": ("../outside/secret.py,,\n../secret.py,,\nsingle/../../secret.py,,\nsingle.py,,\n", {"single.py"}),
    "dots": (".py,,\n..py,,\n...py,,\n./inside/a.py,,\nsingle.py,,\n", {"single.py"}),
    "no Python": ("data.json,,\nsingle.so,,\n__pycache__/inside.cpython-311.pyc,,\nsingle.py,,\n", {"single.py"}),
    "not there": ("nowhere/a.py,,\nnowhere.py,,\nsingle.py,,\n", {"single.py"}),
    "empty": ("", set()),
    "NUL": ("in\0side/a.py,,\nsingle.py,,\n", {"single.py"}),
    "long": ("x" * 200_000 + "/a.py,,\n" + '"' + "y" * 200_000 + "\nsingle.py,,\n", {"single.py"}),
    "not UTF-8": (b"caf\xe9/a.py,,\nsingle.py,,\n", set()),
}


@pytest.mark.parametrize(("record", "expected"), RECORDS.values(), ids=RECORDS)
def test_a_record_does_not_lead_out_of_the_folder(tmp_path, record, expected):
    folder, outside = tmp_path / "site", tmp_path / "outside"
    install(folder, "known", {"known.py": text("known")})
    install(outside, "secret", {"secret.py": "not to be read"})
    write(tmp_path, {"secret.py": "nor this"})
    if isinstance(record, str):
        record = record.replace("{outside}", str(outside))
    install(folder, "odd", {"inside/a.py": text("inside"), "single.py": text("single")}, record=record)
    write(folder, {"not_installed.py": "of no distribution", "__pycache__/a.py": "of no package"})
    assert set(everything(folder)) == expected | {"known.py"}


TOPS = {
    "up": "..\n",
    "up to a file": "../secret.py\n../secret\n",
    "absolute": "{outside}\n{outside}/secret.py\n{outside}/secret\n",
    "here": ".\n./\n.py\n",
    "empty": "\n\n",
    "not UTF-8": b"caf\xe9\n",
    "own": "tying_utils\n__pycache__\n",
}


@pytest.mark.parametrize("said", TOPS.values(), ids=TOPS)
def test_a_list_of_names_does_not_lead_out_of_the_folder(tmp_path, said):
    """Of Debian's packages there is no RECORD."""
    folder = tmp_path / "site"
    install(folder, "known", {"known.py": text("known")})
    for place in (tmp_path, tmp_path / "outside", folder / "tying_utils", folder / "__pycache__"):
        write(place, {"secret.py": f"not to be read: {place}"})
    said = said if isinstance(said, bytes) else said.replace("{outside}", str(tmp_path / "outside"))
    write(folder / "odd.egg-info", {"PKG-INFO": "Name: odd\nVersion: 3\n", "top_level.txt": said})
    assert set(everything(folder)) == {"known.py"}


def test_a_package_of_debian_is_read_by_its_list_of_names(tmp_path):
    install(tmp_path, "known", {"known.py": text("known", 5000)})
    about = {"PKG-INFO": "Name: python-debian\nVersion: 3\n", "top_level.txt": "debian\n_deb822\n"}
    write(tmp_path / "python_debian-3.egg-info", about)
    write(tmp_path, {"debian/__init__.py": "a = 1\n", "_deb822.py": "b = 1\n"})
    write(tmp_path, {"old.egg-info": "Name: old\nVersion: 0.1\n"})  # a file, of distutils
    train, validation, facts = installed.read([tmp_path])
    assert names(train) == ["known.py"] and names(validation) == ["_deb822.py", "debian/__init__.py"]
    assert facts == {"packages": {"known": "1.0", "old": "0.1", "python-debian": "3"}, "held_out": ["_deb822"], "left_out": {}}


@pytest.mark.parametrize("metadata", [b"", b"Version: 1.0\n", b"Name: caf\xe9\nVersion: 1.0\n", b"Name: \n", b"\0\xff"])
def test_a_distribution_without_a_name_is_passed_over(tmp_path, metadata):
    install(tmp_path, "known", {"known.py": text("known")})
    install(tmp_path, "~broken", {"broken.py": text("broken")}, metadata=metadata)
    (tmp_path / "empty-1.0.dist-info").mkdir()
    write(tmp_path, {"file-1.0.dist-info": "no folder"})
    assert set(everything(tmp_path)) == {"known.py"}
    assert installed.read([tmp_path])[2]["packages"] == {"known": "1.0"}


def test_a_distribution_without_a_version_is_read(tmp_path):
    install(tmp_path, "a", {"a.py": text("a")}, metadata=b"Name: a\n")
    install(tmp_path, "b", {"b.py": text("b")})
    assert installed.read([tmp_path])[2]["packages"] == {"a": "", "b": "1.0"}
    assert set(everything(tmp_path)) == {"a.py", "b.py"}


def test_odd_files_of_a_package_do_no_harm(tmp_path):
    folder = tmp_path / "site"
    install(folder, "a", {"a/__init__.py": text("a"), "a/.hidden.py": text("hidden")})
    install(folder, "b", {"b.py": text("b")})
    package = folder / "a"
    (package / "nowhere.py").symlink_to(tmp_path / "nowhere")
    (package / "round.py").symlink_to(package / "round.py")
    (package / "folder.py").mkdir()
    (package / "up").symlink_to(tmp_path)  # and into itself
    os.mkfifo(package / "pipe.py")  # reading it would wait for ever
    (package / "device.py").symlink_to("/dev/zero")
    (folder / "b").symlink_to(folder / "b")
    write(package, {"__pycache__/a.cpython-311.pyc": b"\0", os.fsdecode(b"caf\xe9.py"): text("a name that is no text")})
    write(tmp_path, {"outside.py": "not to be read"})
    assert set(everything(folder)) == {"a/__init__.py", "a/.hidden.py", "a/caf\\udce9.py", "b.py"}


def test_packages_put_there_as_links_are_read(tmp_path):
    """As `uv --link-mode symlink` puts files, and others whole packages."""
    cache, folder = tmp_path / "cache", tmp_path / "site"
    install(cache, "a", {"a/__init__.py": text("a"), "a/sub/b.py": text("b")})
    install(cache, "c", {"c.py": text("c")})
    folder.mkdir()
    for entry in cache.iterdir():
        (folder / entry.name).symlink_to(entry)
    assert set(everything(folder)) == {"a/__init__.py", "a/sub/b.py", "c.py"}


def test_the_own_source_is_left_out(tmp_path):
    install(tmp_path, "weight-tying", {"tying_utils/__init__.py": text("own"), "more.py": text("more")})
    install(tmp_path, "another", {"another.py": text("another"), "tying_utils/plugin.py": text("plugin")})
    install(tmp_path, "third", {"third.py": text("third")})
    assert set(everything(tmp_path)) == {"another.py", "third.py"}
    assert set(installed.read([tmp_path])[2]["packages"]) == {"another", "third"}


def test_of_two_folders_the_first_goes_before(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    install(first, "a", {"a.py": text("first a")}, version="2")
    install(second, "a", {"a.py": text("second a")}, version="1")
    install(second, "b", {"b.py": text("b")})
    train, validation, facts = installed.read([first, second])
    assert dict(train + validation) == {"a.py": text("first a"), "b.py": text("b")}
    assert facts["packages"] == {"a": "2", "b": "1.0"}
    assert installed.read([first, second, first]) == (train, validation, facts)


def test_nothing_is_written(tmp_path):
    fill(tmp_path, 3)
    places = [tmp_path, *tmp_path.rglob("*")]
    before = {place: place.stat().st_mtime_ns for place in places}
    for place in reversed(places):
        place.chmod(0o555 if place.is_dir() else 0o444)
    try:
        assert len(everything(tmp_path)) == 3
        assert {place: place.stat().st_mtime_ns for place in (tmp_path, *tmp_path.rglob("*"))} == before
    finally:
        for place in places:
            place.chmod(0o755)


@pytest.mark.parametrize("count", [0, 1])
def test_less_than_two_packages_hold_nothing_out(tmp_path, count):
    fill(tmp_path, count)
    train, validation, facts = installed.read([tmp_path])
    assert (len(train), validation, facts["held_out"]) == (count, [], [])
    assert installed.read([tmp_path / "nowhere"]) == ([], [], {"packages": {}, "held_out": [], "left_out": {}})
    assert installed.read([]) == installed.read([tmp_path / "nowhere"])


@given(
    st.lists(st.tuples(st.text(max_size=8), st.integers(0, 50) | st.integers(0, 10**9)), max_size=60, unique_by=lambda x: x[0])
)
@example([("a", 100), ("b", 100), ("empty", 0)])
@example([("a", 0), ("b", 0)])
def test_a_twentieth_is_held_out_in_whole_packages(items):
    sizes = dict(items)
    room, held_out = sum(sizes.values()) // 20, installed._held_out(sizes)
    assert held_out == installed._held_out(dict(reversed(items))) == installed._held_out(dict(sorted(items)))
    assert held_out == sorted(set(held_out) & set(sizes))
    assert bool(held_out) is (len(sizes) > 1) and (not sizes or len(held_out) < len(sizes))
    if len(sizes) < 2:
        return
    if any(0 < size <= room for size in sizes.values()):
        room -= sum(sizes[name] for name in held_out)
        assert room >= 0 and all(sizes[name] for name in held_out)
        assert not any(0 < size <= room for name, size in sizes.items() if name not in held_out), "one more fits"
    else:
        assert [sizes[name] for name in held_out] == [min((size for size in sizes.values() if size), default=0)]


def test_the_folders_are_those_of_the_running_environment():
    import torch

    folders = installed.folders()
    assert Path(torch.__file__).parents[1].resolve() in folders
    assert len(set(folders)) == len(folders) and all(folder.is_absolute() for folder in folders)


@pytest.fixture(scope="module")  # read once, and let go: it is 300 MB
def environment() -> Read:
    return installed.read(installed.folders())


def test_the_text_of_this_environment_is_large_enough(environment):
    train, validation, _ = environment
    held_out, all_bytes = (sum(len(text.encode()) for _, text in part) for part in (validation, train + validation))
    assert all_bytes > 50e6
    assert 0.02 <= held_out / all_bytes <= 0.06


def test_no_text_of_this_environment_is_in_both_parts(environment):
    train, validation, facts = environment
    assert set(Counter(text for _, text in train + validation).values()) == {1}
    assert set(Counter(names(train + validation)).values()) == {1}
    tops, held_out = ({name.split("/")[0].removesuffix(".py") for name in names(part)} for part in (train, validation))
    assert not tops & held_out
    assert not {"tying_utils", "weight-tying"} & (tops | held_out | set(facts["packages"]))
    assert {"torch", "transformers", "numpy"} <= (tops | held_out) & set(facts["packages"])
    assert not any(text.startswith("\ufeff") for _, text in train + validation)
