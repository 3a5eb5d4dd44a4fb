"""The same configuration on the same machine gives the same bytes: in two interpreters that differ in what must not matter."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import dataclasses, json, sys
import torch
from tying_utils.training.config import TrainConfig
from tying_utils.measures import alignment, lens, neighbors, spectral
from tying_utils.training import train

told = {"hash": hash("weight tying"), "threads": torch.get_num_threads(), "runs": [], "measures": {}}
runs = [train(TrainConfig.from_dict(values), progress=False) for values in json.loads(sys.argv[1])]
for run in runs:
    told["runs"].append([run.key, run.record["files"], run.fingerprint])
tied, untied = (run.tables() for run in runs[:2])
torch.set_num_threads(1)  # how many threads share a sum decides its last bits: a study measures on one
for kind in ("identity", "orthogonal", "linear"):
    score = alignment.alignment(tied.table, untied.output, kind, permutations=3, bootstrap=20)
    told["measures"][kind] = repr(dataclasses.astuple(score))
told["measures"]["knn"] = repr(neighbors.overlap(tied.table, untied.output, 10, permutations=3, bootstrap=20))
told["measures"]["spectral"] = repr(spectral.spectral_distance(tied.table, untied.output, k=10, components=16))
model, corpus = runs[0].model(), runs[0].config.load_corpus()
tuned = lens.train_lens(model, corpus.windows("train", 40, 16), steps=5, progress=False)
told["measures"]["lens"] = repr(lens.kl_by_layer(model, tuned, corpus.windows("validation", 4, 16)).tolist())
print("told " + json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two interpreters made of three conditions, each in a home of its own: PYTHONHASHSEED 1 and 2, 1 and 2 threads."""
    configs = [tiny().as_dict(), tiny(tied=False).as_dict(), tiny(threads=2, remedy="norm-match").as_dict()]
    processes = []
    for number in ("1", "2"):
        home = tmp_path_factory.mktemp("home")
        env = {"PYTHONHASHSEED": number, "OMP_NUM_THREADS": number, "MKL_NUM_THREADS": number, "OPENBLAS_NUM_THREADS": number}
        env |= {"TYING_HOME": str(home), "PYTHONPATH": str(ROOT), "TZ": ("UTC", "Asia/Tokyo")[int(number) - 1]}
        line = [sys.executable, "-c", PROGRAM, json.dumps(configs)]
        processes.append(subprocess.Popen(line, env={**os.environ, **env}, stdout=subprocess.PIPE, text=True, cwd=home))
    said = [process.communicate(timeout=600)[0] for process in processes]
    return [json.loads(words.rpartition("told ")[2]) for words in said]


def test_the_interpreters_do_differ(told):
    assert told[0]["hash"] != told[1]["hash"]
    assert [one["threads"] for one in told] == [1, 2]


def test_runs_have_the_same_keys_and_bytes(told):
    assert told[0]["runs"] == told[1]["runs"]
    assert len({key for key, _, _ in told[0]["runs"]}) == 3


def test_measures_give_the_same_numbers_to_the_last_digit(told):
    assert told[0]["measures"] == told[1]["measures"]
