import ast
import importlib.metadata
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import tying_utils

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
MODULES = sorted((ROOT / "tying_utils").rglob("*.py"))
REQUIREMENTS = [Requirement(line) for line in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"])]


def test_version_is_the_projects():
    assert tying_utils.__version__ == PROJECT["version"] == importlib.metadata.version(PROJECT["name"])


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_public_functions_have_docstrings(module):
    tree = ast.parse(module.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module itself"
    public = [node for node in tree.body if isinstance(node, FUNCTIONS | ast.ClassDef) and not node.name.startswith("_")]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_docstrings_of_functions_begin_with_a_verb(module):
    words = "The A An What How Whether Of Where Which Every Each All Both Table Tables Figure Figures"
    nodes = [node for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))) if isinstance(node, FUNCTIONS)]
    first = {f"{node.lineno} {node.name}": (ast.get_docstring(node) or "Return").split()[0] for node in nodes}
    assert {name: word for name, word in first.items() if word.strip(",.:") in words.split() or word.startswith("`")} == {}


def test_measures_know_neither_training_nor_files():
    allowed = {"checks", "console", "precision", "quiet"}
    allowed = {"tying_utils.measures", "tying_utils.models", *(f"tying_utils.base.{name}" for name in allowed)}
    for module in (ROOT / "tying_utils" / "measures").glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                # One dot is the folder of the measures themselves.
                source = {0: "", 1: "tying_utils.measures."}.get(node.level, "tying_utils.") + (node.module or "")
                names = [f"{source}.{alias.name}" if source == "tying_utils" else source for alias in node.names]
            for name in names:
                inside = name.split(".")[0] == "tying_utils"
                assert not inside or any(name == a or name.startswith(f"{a}.") for a in allowed), f"{module.name}: {name}"


@pytest.mark.parametrize("version", ["3.11", "3.11.0", "3.12", "3.12.9", "3.13", "3.13.1"])
def test_python_versions(version):
    assert Version(version) in SpecifierSet(PROJECT["requires-python"])


def test_python_versions_are_listed():
    listed = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line}
    assert listed == {"3.11", "3.12", "3.13"}


def test_environment_has_python_from_conda_and_the_project_through_pip():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == PROJECT["name"]
    assert environment["channels"] == ["conda-forge"]
    conda = [Requirement(entry) for entry in environment["dependencies"] if isinstance(entry, str)]
    expected = {"python": SpecifierSet(PROJECT["requires-python"]), "pip": SpecifierSet()}
    assert {requirement.name: requirement.specifier for requirement in conda} == expected
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert [entry for entry in pip if entry.startswith("-e")] in (["-e ."], ["-e .[dev]"])


def test_constraints_pin_every_dependency_within_its_bounds():
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    pinned: dict[str, str] = {}
    for requirement in (Requirement(line) for line in lines if line):
        (clause,) = requirement.specifier
        assert clause.operator == "==" and "*" not in clause.version, requirement
        assert canonicalize_name(requirement.name) not in pinned, requirement
        pinned[canonicalize_name(requirement.name)] = clause.version
    for requirement in REQUIREMENTS:
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)], prereleases=True), requirement


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_dependencies_have_a_lower_bound_and_are_met_here(requirement):
    assert {clause.operator for clause in requirement.specifier} == {">="}
    assert requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True)


def test_the_owner_is_to_be_filled_in_at_one_place():
    try:
        command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    if "pyproject.toml" not in listed:
        pytest.skip("not this project's checkout")
    paths = {name for name in listed if name and not name.startswith("tests/") and (ROOT / name).is_file()}
    counts = {name: (ROOT / name).read_bytes().count(b"OWNER/weight-tying") for name in sorted(paths)}
    assert {name: count for name, count in counts.items() if count} == {"pyproject.toml": 1}
