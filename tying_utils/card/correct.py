"""Whether the device gives what float64 gives on the CPU, at small sizes: the largest difference, and its tolerance."""

import functools
import json
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from tying_utils.base import processes
from tying_utils.base.quiet import quiet
from tying_utils.card.plan import LeftOut, Task
from tying_utils.card.setting import Setting
from tying_utils.measures import alignment, neighbors, spectral
from tying_utils.models import architectures, balance, checkpoints
from tying_utils.models.tie import SplitTie
from tying_utils.training import hardware, run_store
from tying_utils.training import trainer as training
from tying_utils.training.config import TrainConfig
from tying_utils.training.next_token import NextTokenLoss

V, WIDTH, CONTEXT, SEQUENCES = 512, 64, 32, 8
# Relative, in the Frobenius norm. float32 sums 256 tokens in another order; bfloat16 has 8 bits, and errors of many layers add.
FLOAT32, BFLOAT16, EXACT = 1e-4, 4e-2, 0.0
_RULES = [rule for rule in balance.REMEDIES.values() if issubclass(rule, balance.PathRule)]

Found = dict[str, Any]


def tasks(setting: Setting) -> Iterator[Task]:
    """Yield the checks, those first that the others rest on."""
    for arch in architectures.ARCHITECTURES:
        for dtype in ("float32", "bfloat16"):
            yield Task(f"path gradients, {arch}, {dtype}", functools.partial(paths, setting, arch, dtype))
    for rule in _RULES:
        yield Task(f"combine by the rule {rule.name}", functools.partial(ruled, setting, rule()))
    yield Task("combine with scales 5 and 0.1", functools.partial(ruled, setting, balance.Scale(input=5.0, output=0.1)))
    yield Task("fused AdamW", functools.partial(stepped, setting))
    for arch in architectures.ARCHITECTURES:
        yield Task(f"saved and read back, {arch}", functools.partial(saved, setting, arch))
    yield Task("tables read to the device", functools.partial(tables_read, setting))
    for kind in ("identity", "orthogonal", "linear"):
        align, chance = (functools.partial(measure, kind=kind) for measure in (alignment.align, mean_chance))
        yield Task(f"{kind} alignment", functools.partial(measured, setting, align, 1e-6))
        yield Task(f"{kind} chance", functools.partial(measured, setting, chance, 1e-4))
    # Two neighbours as near as float32 tells may change places.
    yield Task("neighbour overlap", functools.partial(measured, setting, neighbors.knn_overlap, 1e-3))
    distance = functools.partial(spectral.spectral_distance, components=32)
    yield Task("spectral distance", functools.partial(measured, setting, distance, 1e-2))
    yield Task("lens", functools.partial(lens, setting), needs=("tuned_lens",))
    yield Task("host waits in ten training steps", functools.partial(waits, setting))
    yield Task("one process under DistributedDataParallel", functools.partial(distributed, setting), seconds=2)
    for arch in architectures.ARCHITECTURES:
        yield Task(f"micro-batches, {arch}", functools.partial(paths, setting, arch, "float32", micro_batches=4))
        yield Task(f"gradient checkpointing, {arch}", functools.partial(paths, setting, arch, "float32", checkpointing=True))
    seconds = 5 if setting.smoke else 30
    yield Task("killed at a checkpoint and resumed", functools.partial(resumed, setting), needs=("pyarrow",), seconds=seconds)
    for arch in architectures.ARCHITECTURES[:1] if setting.smoke else architectures.ARCHITECTURES:
        yield Task(f"compiled blocks, {arch}", functools.partial(paths, setting, arch, "float32", compiled=True), seconds=20)


def built(arch: str, device: torch.device | str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """Build the small tied model of `arch` on `device`, as training would have it there."""
    sizes = {"vocab_size": V, "d_model": WIDTH, "n_layers": 2, "n_heads": 4, "context": CONTEXT}
    model: Any = architectures.build(arch, tied=True, seed=seed, **sizes)
    model.to(device=device, dtype=dtype)
    model.tie_weights()
    if torch.device(device).type == "cuda":
        hardware.without_mask(model)
    return model


@functools.cache
def windows(seed: int = 0) -> Tensor:
    """Return (SEQUENCES, CONTEXT + 1) token ids whose frequencies fall as in a text."""
    generator = torch.Generator().manual_seed(seed)
    weights = 1 / torch.arange(1, V + 1, dtype=torch.float64)
    return torch.multinomial(weights, SEQUENCES * (CONTEXT + 1), replacement=True, generator=generator).view(SEQUENCES, -1)


def exact_loss(model: Any, ids: Tensor) -> Tensor:
    """Return the mean loss in the model's own precision, by transformers and torch alone."""
    return F.cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())


@functools.cache
def exact(arch: str) -> tuple[Tensor, Tensor]:
    """Return both path gradients of the small model in float64 on the CPU."""
    model = built(arch, "cpu", torch.float64)
    tie = SplitTie(model)
    exact_loss(model, windows()).backward()
    return tie.path_gradients()


def apart(found: Tensor, expected: Tensor) -> float:
    """Return ||found - expected|| / ||expected||, computed in float64 on the CPU."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))


def held(difference: float, tolerance: float, **more: Any) -> Found:
    """Return a check's result."""
    return {"difference": difference, "tolerance": tolerance, **more}


def paths(
    setting: Setting, arch: str, dtype: str, *, micro_batches: int = 1, checkpointing: bool = False, compiled: bool = False
) -> Found:
    """Compare both path gradients with float64's, and their sum with the gradient of an ordinary tied model on the device."""
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    if dtype == "bfloat16":
        autocast = functools.partial(torch.autocast, setting.device.type, torch.bfloat16)
    gradients: list[Tensor] = []
    if compiled:
        setting.fresh()
    for split in (True, False):
        model = built(arch, setting.device)
        if checkpointing:
            model.gradient_checkpointing_enable()
        if compiled:
            for block in hardware.blocks(model):
                block.compile()
        tie, loss = SplitTie(model) if split else None, NextTokenLoss(model, autocast)
        for part in windows().to(setting.device).chunk(micro_batches):
            (loss(part) / micro_batches).backward()
        gradients += tie.path_gradients() if tie else [model.get_input_embeddings().weight.grad]
    source, target, whole = gradients
    differences = [apart(own, other) for own, other in zip((source, target), exact(arch), strict=True)]
    tolerance = BFLOAT16 if dtype == "bfloat16" else FLOAT32
    return held(max(*differences, apart(source + target, whole)), tolerance, input=differences[0], output=differences[1])


def ruled(setting: Setting, rule: balance.PathRule) -> Found:
    """Compare the combined gradients of three steps by `rule` with float64's on the CPU."""
    combined: dict[str, list[Tensor]] = {}
    for where, dtype in ((setting.device, torch.float32), (torch.device("cpu"), torch.float64)):
        model = built("olmo", where, dtype)
        tie = SplitTie(model, rule)
        for step in (1, 2, 3):
            model.zero_grad(set_to_none=True)
            exact_loss(model, windows(step).to(where)).backward()
            tie.combine(step=step, steps=4)
            assert tie.weight.grad is not None
            combined.setdefault(str(dtype), []).append(tie.weight.grad.clone())
    on_device, expected = combined.values()
    return held(max(apart(own, other) for own, other in zip(on_device, expected, strict=True)), FLOAT32)


def stepped(setting: Setting) -> Found:
    """Compare weights after five steps of fused AdamW with those of float64's plain one, given the same gradients."""
    start, generator = built("olmo", "cpu").get_input_embeddings().weight.detach(), torch.Generator().manual_seed(0)
    given = [torch.randn(start.shape, generator=generator) for _ in range(5)]
    ends = []
    for where, dtype, fused in ((setting.device, torch.float32, True), (torch.device("cpu"), torch.float64, False)):
        weight = torch.nn.Parameter(start.to(where, dtype, copy=True))
        optimizer = torch.optim.AdamW([weight], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, fused=fused)
        for gradient in given:
            weight.grad = gradient.to(where, dtype)
            optimizer.step()
        ends.append(weight)
    return held(apart(*ends), 1e-5)


def saved(setting: Setting, arch: str) -> Found:
    """Save a split model on the device, read it back, and compare its table and its logits."""
    model = built(arch, setting.device).eval()
    tie = SplitTie(model)
    folder = setting.scratch / f"saved-{arch}"
    with quiet(), torch.no_grad():
        model.save_pretrained(folder)
        again = type(model).from_pretrained(folder).to(setting.device).eval()
        again.tie_weights()
        ids = windows()[:, :-1].to(setting.device)
        if not architectures.tables(again).tied:
            raise ValueError("it was read back with two tables")
        table = apart(architectures.tables(again).input, tie.weight)
        return held(max(table, apart(again(ids).logits, model(ids).logits)), 1e-5, table=table)


def tables_read(setting: Setting) -> Found:
    """Read the tables of a saved model, and compare them on the device with those that it has there."""
    model = built("olmo", setting.device, seed=1)
    with quiet():
        model.save_pretrained(setting.scratch / "tables")
    read = checkpoints.read_tables(str(setting.scratch / "tables"))
    return held(apart(read.input.to(setting.device), architectures.tables(model).input) if read.tied else math.inf, EXACT)


def _pair(setting: Setting) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return two correlated (1500, 48) tables with uneven rows, on the device in float32 and on the CPU in float64."""
    generator = torch.Generator().manual_seed(0)
    one, noise = (torch.randn(1500, 48, generator=generator) for _ in range(2))
    other = one @ torch.linalg.qr(torch.randn(48, 48, generator=generator)).Q + noise
    scale = torch.rand(1500, 1, generator=generator) + 0.1
    both = one * scale, other * scale.flip(0)
    return tuple(t.to(setting.device) for t in both), tuple(t.double() for t in both)  # type: ignore[return-value]


def mean_chance(one: Tensor, other: Tensor, kind: alignment.Kind) -> float:
    """Return the mean of the permutation null."""
    return alignment.chance(one, other, kind, permutations=20).mean


def measured(setting: Setting, measure: Callable[[Tensor, Tensor], float], tolerance: float) -> Found:
    """Compare a measure of two tables with the CPU's."""
    own, expected = (measure(*pair) for pair in _pair(setting))
    return held(abs(own - expected), tolerance, value=expected)


def lens(setting: Setting) -> Found:
    """Train a lens on the device, and compare its KL by layer with what the same lens gives on the CPU, in bits."""
    from tying_utils.measures import lens as measured

    curves, trained = [], None
    for where in (setting.device, torch.device("cpu")):
        model = built("olmo", where).eval()
        trained = trained or measured.train_lens(model, windows()[:, :-1], steps=20, progress=False)
        curves.append(measured.kl_by_layer(model, trained, windows(1)[:, :-1]))
    return held(float(abs(curves[0] - curves[1]).max()), 1e-3, last=float(curves[0][-1]))


def small_run(setting: Setting, **changes: Any) -> TrainConfig:
    """Return the condition of a small run on the device."""
    sizes: dict[str, Any] = {"corpus": "two-role", "vocab_size": V, "d_model": WIDTH, "n_layers": 2, "n_heads": 4}
    batch: dict[str, Any] = {"context": CONTEXT, "batch_size": 16, "steps": 60, "warmup_steps": 10, "validation_sequences": 8}
    return TrainConfig(**{**sizes, **batch, "device": setting.device.type, "dtype": "float32", **changes})


def waits(setting: Setting) -> Found:
    """Profile ten training steps and count how often the host waits for the device."""
    from torch.profiler import ProfilerActivity, profile

    config = small_run(setting)
    trainer = training.Trainer(config, config.load_corpus())
    for step in range(1, 6):
        trainer.step(step)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.device.type == "cuda" else [])]
    with profile(activities=activities) as seen:
        for step in range(6, 16):
            trainer.step(step)
    events = seen.key_averages()
    if setting.device.type == "cuda" and not any(event.key.startswith(("cudaLaunch", "cuLaunch")) for event in events):
        raise LeftOut("the profiler sees no call to the card, as where a container does not allow it")
    found = {event.key: event.count for event in events if event.key.endswith("Synchronize")}
    # A wait in a step is seen ten times; the profile itself waits at its start and at its end.
    return held(sum(found.values()), 2, found=", ".join(f"{name} {count}" for name, count in found.items()) or "none")


def distributed(setting: Setting) -> Found:
    """Compare path gradients under DistributedDataParallel, one process with the device's own backend, with those without."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    if not dist.is_available() or dist.is_initialized():
        raise LeftOut("torch.distributed is not there, or in use")
    backend = "nccl" if setting.device.type == "cuda" else "gloo"
    # A file:// address may not hold a blank.
    store = dist.FileStore(str(setting.scratch / "ranks"), 1)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, world_size=1, rank=0)
    try:
        model = built("olmo", setting.device)
        tie = SplitTie(model)
        DistributedDataParallel(NextTokenLoss(model), broadcast_buffers=False)(windows().to(setting.device)).backward()
        differences = [apart(own, other) for own, other in zip(tie.path_gradients(), exact("olmo"), strict=True)]
        return held(max(differences), FLOAT32, backend=backend)
    finally:
        dist.destroy_process_group()


def resumed(setting: Setting) -> Found:
    """Kill a run at a checkpoint, resume it, and compare its weights with those of a run that was not killed."""
    config = small_run(setting, steps=600, checkpoint_every=50, validation_every=600)
    whole = training.train(config, progress=False)
    weights = {name: p.detach().clone() for name, p in run_store.weight_names(whole.model()).items()}
    with mock.patch.dict(os.environ, TYING_HOME=str(setting.scratch / "killed")):
        record = run_store.run_folder(config, whole.fingerprint) / "run.json"
        words = ["-m", "tying_utils", "train", "--lines", "--config", json.dumps(config.as_dict())]
        child = processes.start(*words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            while not record.exists() and child.poll() is None:
                time.sleep(0.005)
        finally:  # also where the time is over
            child.kill()
            _, said = child.communicate()
        if not record.exists():
            raise RuntimeError(f"the run to be killed ended before a checkpoint: {' '.join(said.split())[-300:]}")
        if run_store.is_finished(config, whole.fingerprint):
            raise LeftOut("the run was over before it could be killed")
        run = training.train(config, progress=False)
    own = run_store.weight_names(run.model())
    # A device that adds in another order each time makes two runs differ, killed or not.
    tolerance = EXACT if setting.device.type == "cpu" else 1e-2
    return held(max(apart(own[name], value) for name, value in weights.items()), tolerance, steps=config.steps)
