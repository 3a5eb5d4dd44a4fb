import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks

from tying_utils import models
from tying_utils.experiments import shares
from tying_utils.training import budget, run_store, train
from tying_utils.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
ROLES: dict[str, Any] = {"corpus": "two-role", "device": "cpu", "checkpoint_every": 2, "steps": 3}
CPU = torch.device("cpu")


# What is exact


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_parameters_are_the_models(tiny, arch, tied):
    config = tiny(arch=arch, tied=tied, n_layers=2)
    before = torch.random.get_rng_state()
    counted = budget.parameters(config)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert counted == sum(p.numel() for p in run_store.weight_names(run_store.build_model(config)).values())
    assert counted == shares.count(config).parameters
    assert budget.trunk(config) == counted - (1 if tied else 2) * config.vocab_size * config.d_model


@pytest.mark.parametrize(
    "changes", [{}, {"tied": False}, {"steps": 1}, {"checkpoint_every": 12}, {"checkpoint_every": 2, "arch": "gpt2"}], ids=str
)
def test_disk_is_little_more_than_what_a_run_leaves_and_the_most_it_held(tiny, held_by, changes):
    config = tiny(d_model=64, **changes)
    for estimated, found in zip(budget.disk(config), held_by(config), strict=True):
        assert found <= estimated <= 1.3 * found


def test_check_takes_milliseconds(home, tiny):
    budget.check(tiny(), CPU, torch.float32, home)
    began = time.perf_counter()
    budget.check(tiny(), CPU, torch.float32, home)
    assert time.perf_counter() - began < 0.1


# Memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_activations_are_what_autograd_saves(arch, dtype):
    """Each distinct storage that is kept for the backward pass, weights aside; for a block more, and for all."""
    V, d, heads, context, n = 512, 128, 4, 32, 8

    def saved(layers: int) -> int:
        model: Any = models.build(arch, tied=True, vocab_size=V, d_model=d, n_layers=layers, n_heads=heads, context=context)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept: dict[int, torch.UntypedStorage] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage  # held, so that no other takes its address
            return tensor

        windows = torch.zeros((n, context + 1), dtype=torch.long)
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                logits = model(windows[:, :-1]).logits
            loss = F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
        assert loss.requires_grad
        return sum(storage.nbytes() for storage in kept.values())

    def estimated(layers: int) -> int:
        own: dict[str, Any] = {"vocab_size": V, "d_model": d, "n_layers": layers, "n_heads": heads, "context": context}
        config = TrainConfig(arch=arch, batch_size=n, **own)
        return budget._blocks(config, n * context, dtype != torch.float32) + 4 * n * context * V

    assert estimated(4) - estimated(2) == pytest.approx(saved(4) - saved(2), rel=0.02)
    assert estimated(4) == pytest.approx(saved(4), rel=0.05)


MEASURED = """
import json, sys
from pathlib import Path
from tying_utils.training import TrainConfig, train

def status(name):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return 1024 * int(line.split()[1])

base, config = json.loads(sys.argv[1])
train(TrainConfig(**base), progress=False)  # whatever is loaded on first use
TrainConfig(**config).load_corpus()
Path("/proc/self/clear_refs").write_text("5")  # the peak begins here: what the corpus took is not the run's
before = status("VmRSS")
train(TrainConfig(**config), progress=False)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc, and glibc's allocator")
@pytest.mark.parametrize(
    "changes",
    [
        # At the logits; at the end of the backward pass; in parts, a validation among them.
        {"vocab_size": 8192, "d_model": 256, "n_layers": 2, "batch_size": 8, "context": 64},
        {"vocab_size": 8192, "d_model": 512, "n_layers": 2, "batch_size": 1, "context": 32},
        {"vocab_size": 16384, "d_model": 64, "n_layers": 1, "batch_size": 16, "context": 64, "micro_batches": 16},
        # A rule that looks at the logits, and tables that come of other weights.
        {"vocab_size": 8192, "d_model": 256, "n_layers": 2, "batch_size": 8, "context": 64, "remedy": "rare-gate"},
        {"vocab_size": 8192, "d_model": 512, "n_layers": 2, "batch_size": 1, "context": 32, "remedy": "projection"},
    ],
    ids=["logits", "gradients", "parts", "gated", "folded"],
)
def test_memory_is_what_a_run_takes(home, changes):
    base = {**ROLES, "d_model": 16, "n_layers": 1, "n_heads": 2, "context": 16, "vocab_size": 512}
    config = {**base, "n_heads": 4, **changes}
    # Every tensor from the system and back to it: what is measured is what torch asks for, not what glibc keeps.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURED, json.dumps([base, config])]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert budget.memory(TrainConfig(**config)) == pytest.approx(int(done.stdout), rel=budget.TOLERANCE)


@settings(max_examples=30)
@given(
    arch=st.sampled_from(models.ARCHITECTURES),
    tied=st.booleans(),
    name=st.sampled_from(["vocab_size", "d_model", "n_layers", "batch_size", "context"]),
    more=st.integers(2, 4),
    half=st.booleans(),
)
def test_more_of_anything_costs_more(arch, tied, name, more, half):
    small = TrainConfig(
        arch=arch, tied=tied, vocab_size=320, d_model=16, n_layers=1, n_heads=2, context=16, batch_size=4, steps=12
    )
    large = small.replace(**{name: more * getattr(small, name)})
    dtype = torch.bfloat16 if half else torch.float32
    # Where weights and gradients decide, a batch costs nothing yet.
    weighs = name in ("vocab_size", "d_model", "n_layers")
    assert budget.memory(large, dtype) - budget.memory(small, dtype) >= (1 if weighs else 0)
    if weighs:
        assert budget.parameters(large) > budget.parameters(small)
        assert all(a > b for a, b in zip(budget.disk(large), budget.disk(small), strict=True))


# Refusal


def test_too_much_memory_is_refused_with_what_would_do(home, tiny, monkeypatch):
    config = tiny(batch_size=64, steps=2, table_snapshots=1)
    needed = budget.memory(config)
    monkeypatch.setattr(budget, "memory_free", lambda device: needed // 2)
    words = rf"^batch_size: training needs about {budget.size(needed)} of memory on cpu, {budget.size(needed // 2)} are free; "
    with pytest.raises(ValueError, match=words + r"raise micro_batches \(now 1\), or lower batch_size \(64\), d_model"):
        train(config, progress=False)
    assert not list((home / "data" / "runs").rglob("*.safetensors"))
    train(config.replace(micro_batches=64), progress=False)


def test_a_full_disk_is_refused_with_what_would_do(home, tiny, monkeypatch):
    monkeypatch.setattr(budget, "disk_free", lambda folder: 300_000)
    config = tiny(checkpoint_every=1)
    words = (
        rf"^checkpoint_every: the run writes up to {budget.size(budget.disk(config)[1])} under .*, 300 kB are free; make room, "
    )
    with pytest.raises(ValueError, match=words + r"raise checkpoint_every \(now 1\) or lower table_snapshots \(now 4\)"):
        train(config, progress=False)
    assert not list((home / "data" / "runs").rglob("*.safetensors"))
    train(config.replace(checkpoint_every=12), progress=False)


def test_what_fits_exactly_and_what_is_unknown_is_taken(home, tiny, monkeypatch):
    config = tiny(steps=1)
    needed = int((1 - budget.TOLERANCE) * budget.memory(config)) + 1
    monkeypatch.setattr(budget, "memory_free", lambda device: needed)
    monkeypatch.setattr(budget, "disk_free", lambda folder: budget.disk(config)[1])
    run = train(config, progress=False)
    monkeypatch.setattr(budget, "memory_free", lambda device: None)
    train(config.replace(data_seed=1), progress=False)
    # A finished run is loaded, on however small a machine.
    monkeypatch.setattr(budget, "memory_free", lambda device: 0)
    assert train(config, progress=False).folder == run.folder


# What is free


def test_a_card_has_free_what_the_driver_and_the_cache_have(monkeypatch):
    for name, value in {"memory_reserved": 70, "memory_allocated": 20, "mem_get_info": (1000, 5000)}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert budget.memory_free(torch.device("cuda", 0)) == 1050
    assert budget.memory_free(torch.device("mps")) is None


def test_the_tightest_group_is_the_limit(tmp_path):
    def group(folder: Path, limit: str, used: int, cache: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in {"max": limit, "current": used, "stat": f"anon 5\ninactive_file {cache}"}.items():
            (folder / f"memory.{name}").write_text(f"{value}\n")

    own = tmp_path / "cgroup"
    own.write_text("0::/user/job\n")
    mount = tmp_path / "fs"
    group(mount / "user" / "job", "max", 10, 0)
    assert budget._groups_free(mount, own) is None
    group(mount / "user", "1000", 700, 200)
    assert budget._groups_free(mount, own) == 500
    group(mount / "user" / "job", "400", 500, 20)
    assert budget._groups_free(mount, own) == 0
    assert budget._groups_free(mount, tmp_path / "none") is None


def test_the_disk_of_a_folder_to_come(tmp_path, monkeypatch):
    """What is free where it will lie, and what its own files hold: those of a run that goes on are counted in its needs."""
    asked = []
    monkeypatch.setattr(budget.shutil, "disk_usage", lambda place: asked.append(place) or SimpleNamespace(free=1000))
    folder = tmp_path / "a" / "b"
    assert (budget.disk_free(folder), asked) == (1000, [tmp_path])
    (folder / "tables").mkdir(parents=True)
    (folder / "tables" / "file").write_bytes(bytes(24))
    assert budget.disk_free(folder) == 1024


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_of_this_machine_is_known():
    free = budget.memory_free(CPU)
    assert free is not None and 0 < free <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (45_100_000, "45.1 MB"), (999_600_000, "1 GB"), (2e12, "2 TB")],
)
def test_sizes_in_words(count, words):
    assert budget.size(count) == words
