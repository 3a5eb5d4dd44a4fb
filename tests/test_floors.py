"""Rooms import only rooms nearer the ground, and judging committed tables loads neither the trainer nor a model library."""

import ast
import graphlib
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tying_utils

PACKAGE = Path(tying_utils.__file__).parent
# From the ground up; what lies beside the rooms (the commands, the public names) may import any.
ROOMS = ("base", "corpora", "measures", "models", "training", "study", "experiments", "explorer", "pages", "card")
SURFACE = {
    "models": ("build", "tables"),
    "tie": ("SplitTie",),
    "balance": ("REMEDIES", "NormMatch", "PCGrad", "RareGate", "Scale", "Schedule", "Shrink"),
    "callback": ("BalanceCallback",),
    "corpora": ("load", "Corpus"),
    "training": ("TrainConfig", "train", "train_all"),
    "run_store": ("Run",),
    "checkpoints": ("read_tables", "steps"),
    "study": ("Study", "Results"),
    "claims": ("verdicts",),
}
MEASURES = ("alignment", "neighbors", "spectral", "drift", "frequency", "gradients", "lens", "residual", "statistics")
MEASURES += ("perplexity", "integrity")
HEAVY = {"transformers", "tuned_lens", "transformer_lens", "datasets", "tokenizers"}
ABOVE = {"training.trainer", "training.run_store", "explorer.live"}
ABOVE |= {f"study.{name}" for name in ("tabulate", "trained", "transfer", "miniatures")}


def loaded(code: str) -> set[str]:
    """The names of modules that an interpreter of its own has loaded after `code`."""
    command = [sys.executable, "-c", f"{code}\nimport sys; print('modules', *sys.modules)"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(out.splitlines()[-1].split()[1:])


JUDGING = "from tying_utils import claims, study; claims.verdicts(study.Results('laptop', only_read=True))"
DRAWING = """
from tying_utils.experiments import figures, places, remedies
from tying_utils.explorer import panels
from tying_utils.pages import report
from tying_utils.study import Study, sweep
figures.draw('01_alignment', Study('laptop', only_read=True))
"""


@pytest.mark.parametrize("code", [JUDGING, DRAWING], ids=["judging", "drawing"])
def test_what_reads_committed_tables_loads_no_trainer_and_no_model_library(code):
    assert not loaded(code) & (HEAVY | {f"tying_utils.{name}" for name in ABOVE})


def test_the_ground_loads_no_torch():
    assert "torch" not in loaded("import tying_utils.base.names, tying_utils.base.checks")


def test_training_measuring_and_evaluating_load_what_they_need_when_they_need_it():
    code = "import tying_utils.training, tying_utils.measures.lens, tying_utils.measures.residual\n"
    found = loaded(f"{code}import tying_utils.checkpoints, tying_utils.experiments.downstream")
    assert "tying_utils.measures.lens" in found
    heavy = {"transformers", "huggingface_hub", "tuned_lens", "transformer_lens", "lm_eval", "evaluate", "matplotlib"}
    assert not found & heavy


def imported(module: Path) -> set[Path]:
    """The files of the package that a file of it imports, at once or later."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            above = ".".join(("tying_utils", *module.parent.relative_to(PACKAGE).parts)) if node.level else ""
            source = ".".join(filter(None, (above, node.module)))
            names = [source, *(f"{source}.{alias.name}" for alias in node.names)]
        ours = [name.split(".")[1:] for name in names if name.startswith("tying_utils.")]
        found |= {place for parts in ours if (place := PACKAGE.joinpath(*parts).with_suffix(".py")).is_file()}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_nearer_the_ground(room):
    above = set(ROOMS[ROOMS.index(room) + 1 :])
    for module in (PACKAGE / room).rglob("*.py"):
        taken = {place.parent.name for place in imported(module)}
        assert not taken & above, f"{module.relative_to(PACKAGE)} imports {taken & above}"


def test_no_imports_go_round_in_a_circle():
    modules = [module for module in PACKAGE.rglob("*.py") if module.name != "__init__.py"]
    graphlib.TopologicalSorter({module: imported(module) for module in modules}).prepare()


def test_every_folder_is_a_room_and_contributing_lists_them_from_the_ground_up():
    assert {path.parent.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/*.py")} == set(ROOMS)
    contributing = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert re.findall(r"^      (\w+)/ ", contributing, re.MULTILINE) == list(ROOMS)


def test_the_package_loads_no_torch_and_is_read_in_under_50_ms():
    command = [sys.executable, "-X", "importtime", "-c", "import sys, tying_utils; print('torch' in sys.modules)"]
    tried = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(5)]
    assert {done.stdout.strip() for done in tried} == {"False"}
    microseconds = [int(done.stderr.splitlines()[-1].split("|")[1]) for done in tried]
    assert min(microseconds) < 50_000


@pytest.mark.parametrize("name", tying_utils.__all__)
def test_each_name_of_the_public_face_is_there(name):
    assert callable(getattr(tying_utils, name))
    assert name in dir(tying_utils)


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in SURFACE.items() for name in names])
def test_each_public_module_has_its_names(module, name):
    assert hasattr(importlib.import_module(f"tying_utils.{module}"), name)


@pytest.mark.parametrize("name", MEASURES)
def test_each_measure_is_a_module(name):
    assert importlib.import_module(f"tying_utils.measures.{name}")


def test_an_unknown_name_is_named():
    with pytest.raises(AttributeError, match="'tying_utils' has no attribute 'nothing'"):
        tying_utils.nothing  # noqa: B018
