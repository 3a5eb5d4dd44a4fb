"""What the machine is, and the rates that everything else is measured against."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from tying_utils.card.plan import Task
from tying_utils.card.setting import Setting
from tying_utils.training import trainer

_PACKAGES = ("transformers", "tokenizers", "safetensors", "numpy", "scipy", "pandas")
_OPTIONAL = ("tuned-lens", "transformer-lens", "datasets", "pyarrow", "accelerate", "triton")


def tasks(setting: Setting) -> Iterator[Task]:
    """Yield the facts, then the matrix rates, then the copy rate."""
    yield Task("machine", lambda: machine(setting.device))
    for name in ("bfloat16", "TF32", "float32"):
        yield Task(f"matrix rate, {name}", lambda name=name: {"flops_per_s": matrix_rate(name, setting)}, seconds=2)
    yield Task("copy rate", lambda: {"bytes_per_s": copy_rate(setting)}, seconds=1)


def machine(device: torch.device) -> dict[str, Any]:
    """Name the card, its capability, memory and driver, the versions of what is installed, and how training would run on it."""
    found: dict[str, Any] = {"card": device.type, "python": platform.python_version(), "torch": torch.__version__}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["card"] = torch.cuda.get_device_name(device)
        found |= {"capability": f"{properties.major}.{properties.minor}", "memory_bytes": properties.total_memory}
        found |= {"cuda": str(torch.version.cuda), "driver": _driver()}
    found |= {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    found["dtype"] = trainer.choose_hardware(device.type).reason
    for package in (*_PACKAGES, *_OPTIONAL):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, ValueError, subprocess.SubprocessError):  # the rest of what the machine is matters more
        return "unknown"
    return said.partition("\n")[0].strip()


def matrix_rate(name: str, setting: Setting) -> float:
    """Measure operations per second of square products in bfloat16, TF32 or float32: 2 n^3 over the median time."""
    side = 256 if setting.smoke else 8192
    dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
    one, other = (torch.randn(side, side, device=setting.device).to(dtype) for _ in range(2))
    out, before = torch.empty_like(one), torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = name == "TF32"
    try:
        return 2 * side**3 / seconds(lambda: torch.mm(one, other, out=out), setting.device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def copy_rate(setting: Setting) -> float:
    """Measure bytes per second of a copy within the device's memory, read and written both counted."""
    one = torch.empty(2**20 if setting.smoke else 2**28, device=setting.device).normal_()
    other = torch.empty_like(one)
    return 2 * 4 * one.numel() / seconds(lambda: other.copy_(one), setting.device)


def seconds(once: Callable[[], object], device: torch.device, rounds: int = 7, warm: int = 2) -> float:
    """Return the median seconds of `once` over some rounds, after `warm` that do not count; the device has finished each."""
    taken = []
    for index in range(rounds + warm):
        wait(device)
        began = time.perf_counter()
        once()
        wait(device)
        if index >= warm:
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def wait(device: torch.device) -> None:
    """Have the host wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
