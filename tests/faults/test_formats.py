"""Run folders as earlier versions wrote them: read, or refused with the command that makes them again."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from tying_utils import __main__ as command
from tying_utils.base import files
from tying_utils.training import run_store
from tying_utils.training.config import TrainConfig

# FORMAT/NAME: run folders of each format. Of the first there are two: as it began, without a language, a remedy or a start, on
# the text beside it; and as it is now.
KEPT = Path(__file__).parent / "formats"
FOLDERS = sorted(path.parent for path in KEPT.glob("*/*/run.json"))


def record_of(folder: Path) -> dict[str, Any]:
    record = files.read_json(folder / "run.json")
    assert record is not None
    return record


@pytest.fixture(autouse=True)
def beside_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])


def test_a_folder_of_every_format_is_kept_and_one_with_less_in_it():
    assert {int(folder.parent.name) for folder in FOLDERS} == set(range(1, run_store.FORMAT + 1))
    known = [set(record_of(folder)["config"]) for folder in FOLDERS]
    assert set(TrainConfig().as_dict()) in known and any("remedy" not in names for names in known)
    assert all(record_of(folder)["format"] == int(folder.parent.name) for folder in FOLDERS)


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if int(folder.parent.name) == run_store.FORMAT], ids=str)
def test_a_folder_of_this_format_is_read_and_found(folder, home, monkeypatch):
    run = run_store.opened(folder)
    assert run.record["finished"] and run.key == folder.name.rpartition("-")[2]
    assert list(run.metrics["step"]) == list(range(1, run.config.steps + 1))
    assert run.tables().input.shape == (run.config.vocab_size, run.config.d_model)
    assert run.model().config.vocab_size == run.config.vocab_size
    shutil.copytree(folder, run_store.run_folder(run.config, run.fingerprint))
    found = run_store.find(run.config, run.fingerprint)
    assert found is not None and found.record == run.record, "the configuration means another key now"


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
@pytest.mark.parametrize("number", [0, run_store.FORMAT + 1, None])
def test_a_folder_of_another_format_is_refused_with_the_command_that_makes_the_run(folder, number, tmp_path, home, capsys):
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    record = record_of(other)
    files.write_json(other / "run.json", record | {"format": number})
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=rf"^folder: .* is of format {number}, not {run_store.FORMAT}; `") as caught:
        run_store.opened(other)
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before
    (line,) = re.findall("`tying-utils (.*)`", str(caught.value))
    assert command.main([*shlex.split(line), "--lines"]) == 0
    made = run_store.opened(capsys.readouterr().out.splitlines()[-1])
    assert made.config == TrainConfig.from_dict(record["config"])
    if folder.parent.name == str(run_store.FORMAT):
        assert set(made.record["files"]) == set(record["files"])


UNFINISHED = r"is not finished; where it is trained, `tying-utils train --config .*` goes on"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"finished": False}, UNFINISHED),
        *((change, r"^folder: .*run\.json") for change in ({"key": "0" * 16}, {"corpus": {}}, {"config": []}, {"files": None})),
        ({"config": {"stepz": 3}}, "^values: stepz: no field"),
        ({"config": {"steps": "x"}}, "^steps: an integer"),
    ],
    ids=json.dumps,
)
def test_a_record_that_is_unfinished_or_does_not_agree_with_itself_is_refused(tmp_path, change, said):
    other = Path(shutil.copytree(FOLDERS[-1], tmp_path / "other"))
    files.write_json(other / "run.json", record_of(other) | change)
    with pytest.raises(ValueError, match=said):
        run_store.opened(other)


def test_a_folder_without_a_run_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"^folder: .* holds no run\.json, or a damaged one; give"):
            run_store.opened(folder)
