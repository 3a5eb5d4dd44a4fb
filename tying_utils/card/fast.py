"""How fast: ratios in turns in one process, the fraction of the card's matrix rate, and the two measures that cost most."""

import functools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tying_utils import models
from tying_utils.card import facts
from tying_utils.card.plan import Task, installed
from tying_utils.card.setting import Setting
from tying_utils.measures import alignment
from tying_utils.training import budget

if TYPE_CHECKING:
    from benchmarks.turns import Contest

# The model whose matrix rate is asked for, and the paper's vocabulary and width for the measures of tables.
LARGE = {"V": 50_304, "d": 768, "layers": 12, "tokens": 16_384, "context": 1024}
TABLES = {"V": 50_304, "d": 2048}
TOY = {"V": 320, "d": 16, "layers": 1, "tokens": 128, "context": 32}


def tasks(setting: Setting) -> Iterator[Task]:
    """Yield the contests; where the benchmarks' folder is not there, one task that says so."""
    if not installed("benchmarks"):  # a folder of the checkout, not of the installed package
        yield Task("ratios", dict, needs=("benchmarks",))
        return
    for contest in contests(setting):
        needs = ("accelerate", "pyarrow") if contest.part == "run" else ()
        name = f"{contest.ways[0]} / {', '.join(contest.ways[1:])}"
        yield Task(name, functools.partial(held, setting, contest), needs=needs, seconds=3)
        if contest.part == "neighbors":
            yield Task("alignment with its null / its matrix products", functools.partial(aligned, setting), seconds=3)
    yield Task("lens training", functools.partial(lens, setting), needs=("tuned_lens",), seconds=3)


def contests(setting: Setting) -> "Iterator[Contest]":
    """Yield the contests of the benchmarks' suite at a card's sizes, the most telling first."""
    from benchmarks import neighbors
    from benchmarks import training as steps
    from benchmarks.turns import Contest

    size, rounds = (TOY, 3) if setting.smoke else (LARGE, 15)
    split, ordinary, blocks, memory = steps.SPLIT, steps.ORDINARY, steps.BLOCKS, not setting.smoke
    context = f"context {size['context']:,}"
    rate_note = f"{context}; 1 / ratio is the fraction of the rate of square matrix products"

    def tied(*ways: str) -> Contest:
        return Contest("step", "tied training step", ways, steps.step, size, steps.same_step, rounds, 2, memory, context)

    def at_rate(*ways: str) -> Contest:
        words = "training step and the machine's matrix rate"
        return Contest("step", words, ways, steps.at_rate, size, steps.nothing, rounds, 2, False, rate_note)

    yield tied(split, ordinary, steps.HOOKS)
    yield at_rate(steps.STEP, steps.PRODUCTS)
    tables, ways = {"V": 500, "d": 16} if setting.smoke else TABLES, (neighbors.OURS, neighbors.FLOOR)
    yield Contest("neighbors", "neighbour overlap", ways, neighbors.overlap, tables, neighbors.same, 3, memory=memory)
    ways = (steps.HALF, steps.EAGER)
    yield Contest("step", "training step", ways, steps.kind, size, steps.same_loss, rounds, 2, memory, context)
    long = {"V": 8192, "d": 256, "layers": 8, "tokens": 16_384, "steps": 50}
    if setting.smoke:
        long = {"V": 320, "d": 16, "layers": 1, "tokens": 128, "steps": 3}
    words, ways = f"run of {long['steps']} steps", (steps.RUN, steps.LOOP, steps.TRAINER)
    note = "ours tracks, evaluates and saves at the end"
    yield Contest("run", words, ways, steps.run, long, steps.same_run, 3, memory=False, note=note)
    if not setting.smoke:  # last, as a compiler takes longer than all the rest
        yield tied(split + blocks, ordinary + blocks, split)
        yield at_rate(steps.STEP + blocks, steps.PRODUCTS)


def held(setting: Setting, contest: "Contest") -> dict[str, Any]:
    """Hold a contest, and return its rows as the benchmarks' tables have them, with tokens per second where it trains."""
    from benchmarks import training, turns

    size = dict(contest.size)
    setting.fresh()
    if "layers" in size:
        config, _, hardware = training.setting(**{name: value for name, value in size.items() if name != "steps"})
        # Each way holds its own weights and moments; one at a time holds what its step needs.
        dtype = torch.float32 if training.EAGER in contest.ways else hardware.dtype
        needed = budget.memory(config, dtype, setting.device)
        needed += (len(contest.ways) - 1) * 24 * budget.parameters(config)
        setting.room(needed, f"a step of {size['tokens'] // 4:,} tokens would take about a third")
    rows = turns.held(contest)
    found: dict[str, Any] = {"rows": rows}
    for row in rows:
        if row["quantity"] == "seconds":
            found[f"/ {row['other']}"] = row["ratio"]
            if "tokens" in size and "steps" not in size:
                found["tokens_per_s"] = size["tokens"] / row["ours_value"]
    return found


class _Products(TorchDispatchMode):
    """Notes the shapes and dtypes of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[tuple[int, ...], torch.dtype], ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("mm", "bmm", "addmm", "baddbmm"):
            tensors = [value for value in args if isinstance(value, Tensor)][-2:]
            self.seen.append(tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors))
        return func(*args, **(kwargs or {}))


def aligned(setting: Setting) -> dict[str, Any]:
    """Time the orthogonal alignment with its held-out value and 100 permutations, and the same matrix products alone."""
    from benchmarks.alignment import tables

    V, d, permutations = (500, 16, 10) if setting.smoke else (*TABLES.values(), 100)
    setting.room(40 * V * d, f"V = {V // 4:,} would")
    source, target = tables(V, d)
    measured = functools.partial(alignment.alignment, source, target, "orthogonal", permutations=permutations)
    with _Products() as products:
        measured()
    made = {side: torch.randn(side[0], device=setting.device).to(side[1]) for pair in products.seen for side in pair}

    def alone() -> None:
        for one, other in products.seen:
            torch.matmul(made[one], made[other])

    # It was warmed up when its products were noted; a singular value decomposition of this width takes a card seconds.
    ours, peak = facts.seconds(measured, setting.device, rounds=1, warm=0), setting.peak()
    floor = facts.seconds(alone, setting.device, rounds=3)
    found = {"alignment_seconds": ours, "products_seconds": floor, "ratio": ours / floor}
    return {**found, "V": V, "d": d, "permutations": permutations, **peak}


def lens(setting: Setting) -> dict[str, Any]:
    """Time the training of a lens of 400 steps on a fresh model, and its peak memory."""
    from tying_utils.measures.lens import train_lens

    V, d, layers, count, steps = (320, 16, 1, 20, 5) if setting.smoke else (8192, 256, 8, 1000, 400)
    model: Any = models.build("olmo", tied=True, vocab_size=V, d_model=d, n_layers=layers, n_heads=max(1, d // 32), context=64)
    model.to(setting.device)
    model.tie_weights()
    tokens = torch.randint(V, (count, 64), generator=torch.Generator().manual_seed(0))
    setting.fresh()
    began = time.perf_counter()
    train_lens(model, tokens, steps=steps, progress=False)
    facts.wait(setting.device)
    taken = time.perf_counter() - began
    return {"lens_seconds": taken, "V": V, "d": d, "layers": layers, "steps": steps, **setting.peak()}
