"""Each example runs, offline and in seconds, and says what it promises to."""

import runpy
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name: str, *arguments: str) -> dict[str, Any]:
    """Return what the example leaves, run as a script."""
    held, sys.argv = sys.argv, [name, *arguments]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries'
            return runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    finally:
        sys.argv = held
        torch.set_num_threads(threads)


def ordinary(model: Any) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_every_example_is_run_here():
    tests = (Path(__file__), Path(__file__).with_name("test_compare_checkpoints.py"))
    text = "".join(test.read_text(encoding="utf-8") for test in tests)
    assert all(f'{file.name}"' in text for file in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.name)
def test_an_example_is_short(example):
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 95


def test_lora(capsys):
    pytest.importorskip("peft")
    left = run("lora.py")
    said = capsys.readouterr().out
    assert "model: its table is frozen" in said and "step 15" in said
    assert len(left["shares"]) == left["STEPS"] and all(0 < share < 1 for share in left["shares"])
    assert ordinary(left["model"]) and left["loss"] < 5


def test_hf_trainer(tmp_path, capsys, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    left = run("hf_trainer.py", str(tmp_path))
    said = capsys.readouterr().out
    assert "Interrupted. Kept: checkpoint-4; max_grad_norm is 1.0 as before." in said
    assert sorted(left["share"]) == [*range(1, 13)] and all(0 < share < 1 for share in left["share"].values())
    assert (tmp_path / "checkpoint-12" / "balance.safetensors").exists()


@pytest.mark.parametrize("compiler", [True, False], ids=["with a compiler", "without one"])
def test_plain_loop(tmp_path, capsys, monkeypatch, compiler):
    if compiler and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler")
    if not compiler:
        from torch._inductor import config

        monkeypatch.setattr(config.cpp, "cxx", (None, "no-such-compiler"))
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing was compiled before
    torch._dynamo.reset()
    left = run("plain_loop.py")
    assert left["compiled"] is compiler and ("No compiler here" in capsys.readouterr().out) is not compiler
    assert len(left["shares"]) == left["STEPS"] and all(0 < share < 1 for share in left["shares"])
    assert ordinary(left["network"]) and left["loss"] < 5
