"""What judges and draws committed tables stands on the ground: neither the trainer nor a model library is loaded for it."""

import subprocess
import sys

import pytest

HEAVY = ("transformers", "tuned_lens", "transformer_lens", "datasets", "tokenizers")
ABOVE = tuple(
    f"tying_utils.{name}"
    for name in (
        "training.trainer",
        "training.run_store",
        "study.tabulate",
        "study.trained",
        "study.transfer",
        "study.miniatures",
        "explorer.live",
    )
)


def loaded(code: str) -> set[str]:
    """The names of modules that an interpreter of its own has loaded after `code`."""
    command = [sys.executable, "-c", f"{code}\nimport sys; print('modules', *sys.modules)"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(out.splitlines()[-1].split()[1:])


def test_reading_and_judging_committed_tables_loads_no_trainer_and_no_model_library():
    code = "from tying_utils import claims, study; claims.verdicts(study.Results('laptop', only_read=True))"
    assert not loaded(code) & {*HEAVY, *ABOVE}


def test_drawing_committed_tables_loads_none_either():
    code = (
        "from tying_utils.experiments import figures, places, remedies\n"
        "from tying_utils.explorer import panels\nfrom tying_utils.pages import report\nfrom tying_utils.study import sweep\n"
        "from tying_utils.study import Study\n"
        "figures.draw('01_alignment', Study('laptop', only_read=True))"
    )
    assert not loaded(code) & {*HEAVY, *ABOVE}


@pytest.mark.parametrize("name", ["names", "checks"])
def test_the_ground_loads_no_torch(name):
    assert "torch" not in loaded(f"import tying_utils.base.{name}")
