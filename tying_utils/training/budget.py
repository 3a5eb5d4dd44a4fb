"""What a run needs, counted from shapes before anything is allocated, and whether the machine has it.

On the device, at the worst moment, in bytes (P weights in all, T = V d of one table, N tokens of one micro-batch):

    held throughout   4 (3 P + 2 T), and 4 T where the tables are tied: weights, Adam's two moments, two scratch tables, and
                      the output path's own moment
    gradients         4 P, and 8 T where the tables are tied: both paths' and the combined one
    one micro-batch   N (layers (a d + 4 heads) + 12 d), with `a` of `ACTIVATIONS` (gpt_neo keeps its attention: + 4 heads
                      context per layer), and 12 N V: log-probabilities, their gradient and that of the logits; many of them
                      share one buffer on the CPU in float32, held throughout (`next_token.KeptLogits`): 4 N V, beside
                      which the head's gradient, 4 T, is made

P counts what the optimizer holds at the end. Tables that come from other weights add 8 T, values and gradients, and a rule
adds what it remembers.

The worst moment is the backward pass at the logits (of the first micro-batch, where only the combined gradient of the step
before is left; of a later one, beside all gradients) or the end of that pass; a validation takes no more tokens at once. It is
what torch asks for. glibc may hold up to half more in small pieces, the libraries 0.5 GB beside.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from functools import lru_cache
from pathlib import Path

import torch

from tying_utils.models import architectures
from tying_utils.models.balance import PathRule
from tying_utils.training.config import TrainConfig

# Bytes that one block keeps for its backward pass, by token and unit of width: in float32, and in bfloat16 autocast.
ACTIVATIONS = {
    "olmo": (96, 58),
    "olmo2": (120, 82),
    "llama": (104, 66),
    "qwen3": (120, 78),
    "gpt_neox": (72, 38),
    "gpt_neo": (112, 64),
    "gpt2": (112, 60),
}
# The estimate is within this of what torch asks for; a run is refused only where even that much less would not fit.
TOLERANCE = 0.1
CPU = torch.device("cpu")
_HEADER = 200  # bytes at most that a tensor takes in a file beside its values


@lru_cache
def _trunk(arch: str, **sizes: int) -> tuple[int, int]:
    """Return the weights outside of the tables, and in how many tensors; nothing is allocated."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architectures.configured(arch, tied=True, **sizes))
    table, all_of_them = model.get_input_embeddings().weight, list(model.parameters())
    return sum(p.numel() for p in all_of_them) - table.numel(), len(all_of_them) - 1


def trunk(config: TrainConfig) -> int:
    """Return how many weights the model of `config` has outside of its tables."""
    return _trunk(config.arch, **config.sizes)[0]


def parameters(config: TrainConfig) -> int:
    """Return how many weights a run of `config` trains, at its end; a tied table once."""
    return trunk(config) + config.table_parameters


def _remembered(config: TrainConfig) -> int:
    """Return the entries, of four bytes each, of what a rule remembers."""
    on_meta = torch.empty(config.vocab_size, config.d_model, device="meta")
    state = config.remedy.state(on_meta) if isinstance(config.remedy, PathRule) else {}
    return sum(value.numel() for value in state.values())


def memory(config: TrainConfig, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> int:
    """Return the bytes that training holds on `device` at the worst moment; `dtype` is autocast's. The formula is above."""
    P, table, tied = parameters(config), config.vocab_size * config.d_model, config.tied_after(config.steps)
    on_meta = torch.empty(config.vocab_size, config.d_model, device="meta")
    folded = config.remedy is not None and config.remedy.tables(on_meta, config.init_seed) is not None
    held, gradients = 3 * P + (3 if tied else 2) * table, P + (2 * table if tied or folded else 0)
    watches = isinstance(config.remedy, PathRule) and config.remedy.watches  # a factor for each logit, and their product
    held += (2 * table if folded else 0) + _remembered(config) + (table if watches else 0)
    beside = gradients if config.micro_batches > 1 else table if tied else 0
    tokens, half = config.batch_size // config.micro_batches * config.context, dtype != torch.float32
    logits, blocks = tokens * config.vocab_size, _blocks(config, tokens, half)
    if device.type == "cpu" and not half and not watches:
        return 4 * (held + logits) + max(4 * (beside + table) + blocks, 4 * gradients)
    return 4 * held + max(4 * (beside + (5 if watches else 3) * logits) + blocks, 4 * gradients)


def _blocks(config: TrainConfig, tokens: int, half: bool) -> int:
    """Return the bytes that the blocks keep of one micro-batch for its backward pass."""
    block = ACTIVATIONS[config.arch][half] * config.d_model + 4 * config.n_heads
    if config.arch == "gpt_neo":
        block += (6 if half else 4) * config.n_heads * config.context
    # Autocast keeps the weights of every linear map in its own precision, the output table's among them.
    cast = 2 * (trunk(config) + config.vocab_size * config.d_model) if half else 0
    return tokens * (config.n_layers * block + 12 * config.d_model) + cast


def disk(config: TrainConfig) -> tuple[int, int]:
    """Return the bytes of the tensor files of a run of `config`, at most: those that it leaves, and the most while it trains.

    While it trains there are two states to resume from for a moment. The metrics (about 0.1 kB per step) come on top.
    """
    rest, tensors = _trunk(config.arch, **config.sizes)

    def of(step: int, trunks: int) -> int:
        tables = 1 if config.tied_after(step) else 2
        return 4 * (trunks * rest + tables * config.vocab_size * config.d_model) + _HEADER * (trunks * tensors + 3)

    kept = sum(of(step, 0) for step in config.table_steps) + sum(of(step, 1) for step in config.checkpoint_steps)
    # Adam's moments, and the output path's own or what the tables come from.
    beside = parameters(config) - rest if config.tied or config.remedy else 0
    state = 4 * (2 * parameters(config) + beside + _remembered(config)) + 3 * _HEADER * (tensors + 9)
    return kept, kept + min(2, len(config.checkpoint_steps) - 1) * state


def memory_free(device: torch.device) -> int | None:
    """Return the bytes that a new run may hold on `device`; None where that cannot be known.

    On CUDA what the driver and torch's cache have free; on the CPU what the system can give without swapping, within the limits
    of the process's control groups.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu":
        return None
    bounds = [bound for bound in (_system_free(), _groups_free()) if bound is not None]
    return min(bounds, default=None)


def _system_free() -> int | None:
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    try:  # where the free memory is unknown, all of it: what is refused then could never fit
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _groups_free(mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Return the least that the limits of the process's control groups (versions 2 and 1) leave; None without a limit."""
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    left = []
    for _, controllers, path in lines:
        if controllers not in ("", "memory"):
            continue
        base = mount / controllers
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(base):
                break
            try:
                limit, usage = (int((folder / name).read_text(encoding="ascii")) for name in names)
                held = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
            except (OSError, ValueError):  # no such group in this mount, or "max"
                continue
            # File pages that are not in use count as usage and are given back when asked for.
            left.append(limit - usage + int(held.get("total_inactive_file" if controllers else "inactive_file", 0)))
    return max(0, min(left)) if left else None


def disk_free(folder: Path) -> int:
    """Return the bytes that may yet be written where `folder` lies or will lie, with what its own files hold already."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    own = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return shutil.disk_usage(there).free + own


def fits(config: TrainConfig, free: int, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> bool:
    """Return whether training `config` may fit in `free` bytes of `device`; in doubt it does."""
    return (1 - TOLERANCE) * memory(config, dtype, device) <= free


def check(config: TrainConfig, device: torch.device, dtype: torch.dtype, folder: Path) -> None:
    """Return if a run of `config` may fit on `device` and on the disk of `folder`, in milliseconds; allocate nothing.

    Raises ValueError otherwise, with what is needed, what is free, and the arguments to change.
    """
    free = memory_free(device)
    if free is not None and not fits(config, free, dtype, device):
        raise ValueError(
            f"batch_size: training needs about {size(memory(config, dtype, device))} of memory on {device.type}, {size(free)} "
            f"are free; raise micro_batches (now {config.micro_batches}), or lower batch_size ({config.batch_size}), d_model "
            f"({config.d_model}), n_layers ({config.n_layers}) or vocab_size ({config.vocab_size})"
        )
    room, needed = disk_free(folder), disk(config)[1]
    if needed > room:
        raise ValueError(
            f"checkpoint_every: the run writes up to {size(needed)} under {folder.parent}, {size(room)} are free; make room, "
            f"raise checkpoint_every (now {config.checkpoint_every}) or lower table_snapshots (now {config.table_snapshots})"
        )


def size(count: float) -> str:
    """Return `count` bytes in words: decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
