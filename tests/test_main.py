import json
import re
import runpy
import sys
import warnings

import pytest

from tying_utils import run_store
from tying_utils.config import TrainConfig


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status of `python -m tying_utils ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["tying-utils", *arguments])
    with pytest.raises(SystemExit) as ended, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of runpy, where the module is imported already
        runpy.run_module("tying_utils", run_name="__main__")
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ('{"steps": 0}', "steps"),
        ('{"steps": "many"}', "steps"),
        ('{"stepz": 3}', "stepz"),
        ('{"arch": "mamba"}', "arch"),
        ('{"beta1": "0.9"}', "beta1"),
        ('{"corpus": "text", "path": "no such folder"}', "path"),
        ("{", "--config"),
        ("5", "--config"),
        ("[]", "--config"),
        ("null", "--config"),
        ('["steps"]', "--config"),
    ],
)
def test_a_bad_configuration_ends_with_2_and_words(home, monkeypatch, capsys, config, named):
    assert run(monkeypatch, "train", "--config", config) == 2
    out, err = capsys.readouterr()
    assert err.startswith("tying-utils: ") and named in err
    assert "Traceback" not in err and not out


@pytest.mark.parametrize("arguments", [(), ("dance",), ("train", "--fast")])
def test_an_unknown_command_ends_with_2_and_the_usage(home, monkeypatch, capsys, arguments):
    assert run(monkeypatch, *arguments) == 2
    assert "usage: tying-utils" in capsys.readouterr().err


def test_train_prints_lines_and_the_folder(home, tiny, monkeypatch, capsys):
    config = tiny()
    assert run(monkeypatch, "train", "--lines", "--config", json.dumps(config.as_dict())) == 0
    *steps, folder = capsys.readouterr().out.splitlines()
    assert steps and all(re.fullmatch(r"step \d+ loss \d+\.\d{4}", line) for line in steps)
    assert steps[-1].startswith("step 12 ")
    record = run_store.files.read_json(home.joinpath(folder, "run.json"))
    assert record is not None and TrainConfig.from_dict(record["config"]) == config
    assert folder.startswith(str(home.resolve()))

    assert run(monkeypatch, "train", "--lines", "--config", json.dumps(config.as_dict())) == 0
    assert capsys.readouterr().out.splitlines() == [folder]  # finished: nothing to tell


def test_train_takes_several_configurations(home, tiny, monkeypatch, capsys):
    options = [option for tied in (True, False) for option in ("--config", json.dumps(tiny(tied=tied).as_dict()))]
    assert run(monkeypatch, "train", "--lines", *options) == 0
    folders = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("step ")]
    assert ["olmo-tied-" in folders[0], "olmo-untied-" in folders[1], len(folders)] == [True, True, 2]
