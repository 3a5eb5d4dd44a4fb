"""The example that compares checkpoint folders: twelve architectures as transformers writes them, and tables that are known."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tying_utils import align

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "examples" / "compare_checkpoints.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("compare_checkpoints", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folders(example, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    scratch = tmp_path_factory.mktemp("models")
    return {name: example.write(name, scratch) for name in example.ARCHITECTURES}


def tables(folder: Path) -> list[torch.Tensor]:
    """Of the model that transformers itself loads."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    return [model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()]


def test_twelve_architectures_are_compared_as_transformers_loads_them(example, folders, capsys):
    rows = example.main([str(folder) for pair in folders.values() for folder in pair])
    assert list(rows["untied"]) == [f"{name}-untied" for name in example.ARCHITECTURES] and len(rows) == 12
    assert capsys.readouterr().out.count("-untied") == 12
    for (tied, untied), row in zip(folders.values(), rows.to_dict("records"), strict=True):
        (table, same), (source, target) = tables(tied), tables(untied)
        assert table.data_ptr() == same.data_ptr() and not torch.equal(source, target)
        expected = [align(table, other, "orthogonal") for other in (source, target)]
        assert [row["with input"], row["with output"]] == pytest.approx(expected, abs=1e-6)
        assert row["with output"] == pytest.approx(row["by chance"], abs=0.06), "random weights"


def test_a_rotated_table_aligns_with_what_it_was_rotated_from(example, folders, tmp_path):
    tied, untied = folders["llama"]
    table = tables(tied)[0]
    rotation = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0]
    for part, name in (("input", "model.embed_tokens.weight"), ("output", "lm_head.weight")):
        shutil.copytree(untied, tmp_path / part)
        weights = load_file(untied / "model.safetensors")
        save_file({**weights, name: (table @ rotation).contiguous()}, tmp_path / part / "model.safetensors", {"format": "pt"})
        row = example.compare(tied, tmp_path / part)
        other = {"input": "output", "output": "input"}[part]
        assert row[f"with {part}"] == pytest.approx(1, abs=1e-5) and row[f"with {other}"] < 0.5


def test_folders_in_the_wrong_place_are_named(example, folders):
    tied, untied = folders["gpt2"]
    with pytest.raises(ValueError, match=r"^folders: a tied model and then an untied one is needed, got .*gpt2-untied"):
        example.main([str(untied), str(tied)])
    with pytest.raises(ValueError, match=r"^folders: .* got .*gpt2-tied"):
        example.main([str(tied), str(tied)])
    with pytest.raises(ValueError, match="^folders: pairs of them are needed, .* got 1"):
        example.main([str(tied)])


def test_it_runs_as_a_script(folders):
    pair = [str(folder) for folder in folders["opt"]]
    done = subprocess.run([sys.executable, str(FILE), *pair], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0 and "opt-untied" in done.stdout, done.stderr
