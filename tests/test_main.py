import json
import re
import runpy
import sys
import warnings
from types import SimpleNamespace

import pandas as pd
import pytest

from tying_utils.experiments import downstream
from tying_utils.study import arms, lengths, profiles
from tying_utils.training import run_store, trainer
from tying_utils.training.config import TrainConfig


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status of `python -m tying_utils ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["tying-utils", *arguments])
    with pytest.raises(SystemExit) as ended, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of runpy, where the module is imported already
        runpy.run_module("tying_utils", run_name="__main__")
    return int(ended.value.code or 0)


CONFIGURATIONS = [
    ('{"steps": 0}', "steps"),
    ('{"steps": "many"}', "steps"),
    ('{"stepz": 3}', "stepz"),
    ('{"arch": "mamba"}', "arch"),
    ('{"beta1": "0.9"}', "beta1"),
    ('{"corpus": "text", "path": "no such folder"}', "path"),
    *((text, "--config") for text in ("{", "5", "[]", "null", '["steps"]')),
]
SHARDS = ("", "3", "0/4", "5/4", "1/0", "-1/4", "1/4/2", "a/b", "1.5/4", "1 / 4", "²/4")
NO_SHARD = "tying-utils: --shard: I/N with I from 1 to N is needed, as 3/16, got"
BAD = [
    *((("train", "--config", config), named) for config, named in CONFIGURATIONS),
    (("train", "--profile", "huge"), "tying-utils: PROFILE: 'huge'"),
    (("train", "--profile", "smoke", "--arm", "united"), "tying-utils: arm: 'united'"),
    (("train", "--profile", "smoke", "--seed", "-1"), "tying-utils: init_seed: "),
    (("train", "--arm", "tied"), "tying-utils: --arm and --seed: "),
    (("train", "--seed", "0"), "tying-utils: --arm and --seed: "),
    (("evaluate", "--model", "tied"), "--model: NAME=SOURCE is needed, each name once, got 'tied'"),
    (("evaluate", "--model", "=folder"), "--model: NAME=SOURCE is needed"),
    (("evaluate", "--model", "a=x", "--model", "a=y"), "each name once, got 'a=y'"),
    (("evaluate", "--model", "a=x", "--limit", "0"), "limit: "),
    (("evaluate", "--model", "a=x", "--include", "no such folder"), "include_path: "),
    *((("sweep", "--profile", "smoke", f"--shard={shard}"), f"{NO_SHARD} {shard!r}") for shard in SHARDS),
    (("sweep", "--profile", "smoke", "--shard", "1/2", "--fresh"), "tying-utils: --fresh: "),
]


@pytest.mark.parametrize(("arguments", "named"), BAD)
def test_bad_input_ends_with_2_and_words(home, monkeypatch, capsys, arguments, named):
    assert run(monkeypatch, *arguments) == 2
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


def test_evaluate_prints_scores_and_paired_differences(home, tmp_path, monkeypatch, capsys):
    asked = []

    def evaluate(*arguments, **options):
        asked.append((*arguments, options))
        answers = [("tied", 0, 1), ("tied", 1, 0), ("tied", 2, 1), ("untied", 0, 1), ("untied", 1, 1), ("untied", 2, 1)]
        rows = [(name, "piqa", "piqa", "acc", i, str(i), right, 1.0) for name, i, right in answers]
        return pd.DataFrame(rows, columns=list(downstream.COLUMNS))

    monkeypatch.setattr(downstream, "evaluate", evaluate)
    models = ("--model", "tied=some/folder", "--model", "untied=org/model@step=7")
    options = ("--tasks", "piqa,boolq", "--limit", "3", "--out", str(tmp_path / "a" / "b.csv"))
    assert run(monkeypatch, "evaluate", *models, *options) == 0
    sources = {"tied": "some/folder", "untied": "org/model@step=7"}
    assert asked == [(sources, ["piqa", "boolq"], {"limit": 3, "include_path": None})]
    out = capsys.readouterr().out
    assert "untied - tied, paired over documents, 95 % interval" in out and "0.6667" in out and "0.3333" in out
    table = pd.read_csv(tmp_path / "a" / "b.csv")
    assert list(table["value"]) == pytest.approx([2 / 3, 1])

    assert run(monkeypatch, "evaluate", "--model", "tied=some/folder") == 0
    assert asked[-1] == ({"tied": "some/folder"}, list(downstream.TABLE_7.values()), {"limit": None, "include_path": None})


def test_train_starts_from_an_arm_of_a_profile(home, monkeypatch):
    asked = []
    monkeypatch.setattr(trainer, "train", lambda config, **_: asked.append(config) or SimpleNamespace(folder="there"))
    smoke = profiles.get("smoke")
    for arguments, expected in (
        ((), smoke.config("tied", 0)),
        (("--arm", "untied", "--seed", "1"), smoke.config("untied", 1)),
        (("--arm", "input x5", "--config", '{"steps": 7}'), smoke.config("input x5", 0).replace(steps=7)),
    ):
        assert run(monkeypatch, "train", "--profile", "smoke", *arguments) == 0
        assert asked.pop() == expected
    assert run(monkeypatch, "train", "--profile", "paper", "--arm", "tied") == 0
    assert asked.pop() == profiles.get("paper").config("tied", 0)


def test_lengths_prints_a_line_a_run(home, tiny, monkeypatch, capsys):
    runs = [lengths.Condition("tiny", arm, 1.3, 2, 0.5, tiny(tied=arm.tied)) for arm in arms.PAIR]
    monkeypatch.setattr(lengths, "conditions", lambda: iter(runs))
    monkeypatch.setattr(lengths, "ON_PACKAGES", ())
    assert run(monkeypatch, "lengths") == 0
    lines = capsys.readouterr().out.splitlines()
    for line, arm in zip(lines, ("untied", "tied"), strict=True):
        words = rf"tiny, {arm}, 1.3 tokens per weight, seed 2, rate x0\.5: validation loss \d\.\d{{4}}, \d+ s"
        assert re.fullmatch(rf"{words}, olmo-{arm}-[0-9a-f]{{16}}", line)
        assert (home / "data" / "runs" / line.split()[-1] / "run.json").is_file()
    assert run(monkeypatch, "lengths") == 0
    assert capsys.readouterr().out == "", "finished: nothing to tell"


def test_lengths_ends_with_2_and_words_where_there_is_no_text(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TYING_TEXTS", str(tmp_path))
    (tmp_path / "packages").mkdir()
    assert run(monkeypatch, "lengths") == 2
    out, err = capsys.readouterr()
    assert err.startswith("tying-utils: name: 'packages' needs two installed packages") and not out
