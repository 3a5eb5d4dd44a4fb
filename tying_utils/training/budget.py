"""What a run needs, counted from shapes before anything is allocated, and whether the machine has it.

On the device, at the worst moment, in bytes (P weights in all, T = V d of one table, N tokens of one micro-batch):

    held throughout   4 (3 P + 2 T), and 4 T where the tables are tied: weights, Adam's two moments, two scratch tables, and
                      the output path's own moment
    gradients         4 P, and 8 T where the tables are tied: both paths' and the combined one
    one micro-batch   N (layers (a d + 4 heads) + 12 d), with `a` of `ACTIVATIONS` (gpt_neo keeps its attention: + 4 heads
                      context a layer), and 12 N V: log-probabilities, their gradient and that of the logits; on the CPU in
                      float32 two of these share a buffer, and both buffers are held throughout
                      (`next_token.KeptLogits`): 8 N V, beside which the head's gradient, 4 T, is made

A remedy changes these as it changes what is trained: P counts the weights that the optimizer holds at the end, and tables that
come of other weights add 8 T, values and gradients. What a rule remembers is counted to the byte.

The worst moment is the backward pass at the logits (of the first micro-batch, where only the combined gradient of the step
before is left; of a later one, beside all gradients) or the end of that pass; a validation takes no more tokens at once. It is
what torch asks for. glibc may hold up to half more in small pieces, the libraries 0.5 GB beside.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import torch

from tying_utils.models import architectures
from tying_utils.models.balance import Factorised, PathRule, RareGate
from tying_utils.models.reparameterise import PREFIX
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

Weights = dict[str, tuple[int, ...]]


def weights(config: TrainConfig, step: int | None = None) -> Weights:
    """The shapes of the model's weights after `step` steps (default: the last), by the names of `run_store.weight_names`.

    A tied table counts once. Nothing is allocated.
    """
    return _shapes(config, step)[0]


def trained(config: TrainConfig, step: int | None = None) -> Weights:
    """The same of the weights that the optimizer holds: where a remedy makes the tables of others, these in their place."""
    own, tables = _shapes(config, step)
    made_by = _made_by(config)
    if not made_by:
        return own
    trunk = {name: shape for name, shape in own.items() if name not in tables}
    return trunk | {f"{PREFIX}{name}": shape for name, shape in made_by.items()}


def _shapes(config: TrainConfig, step: int | None) -> tuple[Weights, frozenset[str]]:
    """Of the model's weights, and which of them are tables."""
    return _weights(config.arch, config.tied_after(config.steps if step is None else step), **config.sizes)


@lru_cache
def _weights(arch: str, tied: bool, **sizes: int) -> tuple[Weights, frozenset[str]]:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architectures.configured(arch, tied=tied, **sizes))
    ends = {id(end.weight) for end in (model.get_input_embeddings(), model.get_output_embeddings())}
    named = dict(model.named_parameters())
    return {name: tuple(p.shape) for name, p in named.items()}, frozenset(name for name, p in named.items() if id(p) in ends)


def _made_by(config: TrainConfig) -> Weights:
    """The shapes of what a remedy makes the tables of; empty where they are trained themselves."""
    table = torch.empty(config.vocab_size, config.d_model, device="meta")
    made_by = config.remedy and config.remedy.tables(table, config.init_seed)
    return {name: tuple(p.shape) for name, p in made_by.named_parameters()} if made_by else {}


def _remembered(config: TrainConfig) -> Weights:
    """The shapes of what a rule remembers; every entry takes four bytes."""
    if not isinstance(config.remedy, PathRule):
        return {}
    table = torch.empty(config.vocab_size, config.d_model, device="meta")
    return {f"rule.{name}": tuple(value.shape) for name, value in config.remedy.state(table).items()}


def parameters(config: TrainConfig) -> int:
    """How many weights a run of `config` trains, at its end; a tied table once."""
    return sum(map(math.prod, trained(config).values()))


def memory(config: TrainConfig, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> int:
    """Bytes that training holds on `device` at the worst moment; `dtype` is autocast's. The formula stands above."""
    held, gradients, table = _held(config), _gradients(config), config.vocab_size * config.d_model
    beside = gradients if config.micro_batches > 1 else 4 * table if config.tied_after(config.steps) else 0
    logits = 4 * _tokens(config) * config.vocab_size
    gated = isinstance(config.remedy, RareGate)  # which watches the logits: a factor for each of them, and the product
    if device.type == "cpu" and dtype == torch.float32 and not gated:
        return held + 2 * logits + max(beside + 4 * table + _blocks(config, dtype), gradients)
    return held + max(beside + (5 if gated else 3) * logits + _blocks(config, dtype), gradients)


def _held(config: TrainConfig) -> int:
    """Bytes that a trainer holds throughout."""
    table, d, tables = config.vocab_size * config.d_model, config.d_model, 3 if config.tied_after(config.steps) else 2
    extra = sum(map(math.prod, _remembered(config).values()))
    if _made_by(config):
        extra += 2 * table
    if config.remedy and config.remedy.coupled:  # a table's second moment is a row
        extra -= (1 if config.tied else 2) * (table - d)
    if isinstance(config.remedy, RareGate):  # what it changes of the output path's gradient
        extra += table
    return 4 * (3 * parameters(config) + tables * table + extra)


def _gradients(config: TrainConfig) -> int:
    """Bytes of all gradients at the end of a backward pass."""
    tables = 2 if config.tied_after(config.steps) or _made_by(config) else 0
    if isinstance(config.remedy, Factorised):  # the output table's goes on as it is
        tables -= 1
    return 4 * (parameters(config) + tables * config.vocab_size * config.d_model)


def _tokens(config: TrainConfig) -> int:
    """Of one micro-batch."""
    return config.batch_size // config.micro_batches * config.context


def _blocks(config: TrainConfig, dtype: torch.dtype) -> int:
    """Bytes that the blocks keep of one micro-batch for its backward pass."""
    half = dtype != torch.float32
    block = ACTIVATIONS[config.arch][half] * config.d_model + 4 * config.n_heads
    if config.arch == "gpt_neo":
        block += (6 if half else 4) * config.n_heads * config.context
    token = config.n_layers * block + 12 * config.d_model
    # Autocast keeps the weights of every linear map in its own precision, the output table's among them.
    own = sum(map(math.prod, weights(config).values()))
    cast = 2 * (own - (0 if config.tied_after(config.steps) else config.vocab_size * config.d_model)) if half else 0
    return _tokens(config) * token + cast


def disk(config: TrainConfig) -> tuple[int, int]:
    """Bytes of the tensor files of a run of `config`: those that it leaves, and the most there are while it trains.

    They are counted to the byte, but for a renamed tensor in the finished model of an untied gpt_neox. The table of metrics
    (about 0.1 kB a step) and the JSON beside come on top.
    """
    steps, snapshots = config.checkpoint_steps, config.table_steps
    sizes = {tied: _sizes(config, step) for step in (0, config.steps) for tied in (config.tied_after(step),)}
    of = [sizes[config.tied_after(step)] for step in steps]
    tables = [0, *accumulate(sizes[config.tied_after(step)][0] for step in snapshots)]
    whole = [0, *accumulate(size[1] for size in of)]
    finished = _file(weights(config), {"format": "pt"})

    def while_committing(number: int, step: int) -> int:
        """The state to resume from is written before the one of the last checkpoint goes."""
        last = number == len(steps)
        return (
            tables[bisect_right(snapshots, step)]
            + whole[number - last]
            + (of[number - 2][2] if number > 1 else 0)
            + (finished if last else of[number - 1][2])
        )

    kept = tables[-1] + whole[-2] + finished
    return kept, max(while_committing(number, step) for number, step in enumerate(steps, 1))


def _sizes(config: TrainConfig, step: int) -> tuple[int, int, int]:
    """Bytes of the files of a checkpoint after `step` steps: of the tables, of all weights, and of the state to resume from."""
    own, tables = _shapes(config, step)
    table, tied = (config.vocab_size, config.d_model), config.tied_after(step)
    state: Weights = {}
    for name, shape in trained(config, step).items():
        coupled = config.remedy is not None and config.remedy.coupled and name in tables
        state |= {f"{name}/exp_avg": shape, f"{name}/exp_avg_sq": (1, *shape[1:]) if coupled else shape, f"{name}/step": ()}
    state |= {"output_moment": table} if tied else {}
    state |= _remembered(config) | {f"made_by.{name}": shape for name, shape in _made_by(config).items()}
    return _file({"input": table} if tied else {"input": table, "output": table}), _file(own), _file(state)


def _file(tensors: Weights, metadata: dict[str, str] | None = None) -> int:
    """Bytes of a safetensors file of float32 `tensors`: the header's length, the header, padded to 8, and the values."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name in sorted(tensors):
        begin, end = end, end + 4 * math.prod(tensors[name])
        header[name] = {"dtype": "F32", "shape": tensors[name], "data_offsets": [begin, end]}
    return 8 + -(-len(json.dumps(header, separators=(",", ":"))) // 8) * 8 + end


def memory_free(device: torch.device) -> int | None:
    """Bytes that a new run may hold on `device`; None where that cannot be known.

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
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        pass
    try:  # where the free memory is not told, all of it: what is refused then could never fit
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _groups_free(mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """The least that the limits of the process's control groups (versions 2 and 1) leave; None without a limit."""
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
            # File pages that nobody uses count as usage and are given back when asked for.
            left.append(limit - usage + int(held.get("total_inactive_file" if controllers else "inactive_file", 0)))
    return max(0, min(left)) if left else None


def disk_free(folder: Path) -> int:
    """Bytes that may yet be written where `folder` lies or will lie, with what its own files hold already."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    own = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return shutil.disk_usage(there).free + own


def check(config: TrainConfig, device: torch.device, dtype: torch.dtype, folder: Path) -> None:
    """Return if a run of `config` may fit on `device` and on the disk of `folder`, in milliseconds; allocate nothing.

    Otherwise raise a ValueError that names the argument to change and its closest value with which this check would pass:
    more micro-batches rather than a smaller batch, and that rather than a smaller model; for the disk first fewer checkpoints.
    Where no one argument is enough, what goes with it.
    """
    free = memory_free(device)
    if free is not None and not fits(config, free, dtype, device):
        words = f"training needs about {size(memory(config, dtype, device))} of memory on {device.type}, {size(free)} are free"
        choices = {
            "micro_batches": [n for n in range(config.micro_batches, config.batch_size + 1) if config.batch_size % n == 0],
            "batch_size": range(config.batch_size, 0, -config.micro_batches),
        }
        least = {"micro_batches": 1, "batch_size": 1}
        raise _refusal(config, words, choices, least, lambda other: fits(other, free, dtype, device))
    room, needed = disk_free(folder), disk(config)[1]
    if needed > room:
        words = f"the run writes {size(needed)} under {folder.parent}, {size(room)} are free"
        choices = {
            "checkpoint_every": range(config.checkpoint_every, config.steps + 1),
            "table_snapshots": range(config.table_snapshots, 0, -1),
        }
        least = {"checkpoint_every": config.steps, "table_snapshots": 1}
        raise _refusal(config, words, choices, least, lambda other: disk(other)[1] <= room)


def fits(config: TrainConfig, free: int, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> bool:
    """Whether training `config` may fit in `free` bytes of `device`; in doubt it does."""
    return (1 - TOLERANCE) * memory(config, dtype, device) <= free


def _refusal(
    config: TrainConfig,
    words: str,
    choices: Mapping[str, Sequence[int]],
    least: dict[str, int],
    passes: Callable[[TrainConfig], bool],
) -> ValueError:
    """`choices` are values by argument, from the present one on, each more frugal than the one before.

    Where none of them is enough, nor a smaller model, it is a smaller model with what `least` says.
    """
    unit = 2 * config.n_heads
    trunk = {"d_model": range(config.d_model // unit * unit, 0, -unit), "n_layers": range(config.n_layers, 0, -1)}
    for given, arguments in (({}, {**choices, **trunk}), (least, trunk)):
        for name, values in arguments.items():
            low, high = 0, len(values)  # the first that passes lies in values[low:high], or there is none
            while low < high:
                middle = (low + high) // 2
                passing = passes(config.replace(**given, **{name: values[middle]}))
                low, high = (low, middle) if passing else (middle + 1, high)
            if low < len(values):
                would = ", ".join(f"{key}={value}" for key, value in ({name: values[low]} | given).items())
                return ValueError(f"{name}: {getattr(config, name)} is too much: {words}; {would} would fit")
    return ValueError(f"vocab_size: {config.vocab_size} is too much: {words}; no d_model or n_layers makes it fit")


def size(count: float) -> str:
    """`count` bytes in words: decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
