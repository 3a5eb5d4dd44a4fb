"""A tied training step with its tracking, and a whole run, beside the ordinary and the published ways.

The tokens are drawn from a Zipf distribution: what they say does not matter to what a step costs.
"""

import dataclasses
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import OlmoForCausalLM

from benchmarks import turns
from benchmarks.turns import Contest, Turn, device
from tying_utils.base.quiet import quiet
from tying_utils.corpora import Corpus
from tying_utils.training import Hardware, TrainConfig, Trainer, budget, choose_hardware, run_store, train_all
from tying_utils.training.batches import Batches
from tying_utils.training.hardware import blocks
from tying_utils.training.metrics import SCALARS

CONTEXT = 64
SPLIT, ORDINARY, HOOKS = "split tie, tracked", "ordinary tied step", "published hooks"
RUN, LOOP, TRAINER = "training.train", "plain PyTorch loop", "transformers.Trainer"
EAGER, HALF, COMPILED = "float32, eager", "bfloat16 autocast", "compiled blocks"
BLOCKS = f", {COMPILED}"  # after the name of a way
STEP, PRODUCTS = "training step, tracked", "its operations as matrix products"
ALL, IN_TURN = "training.train_all, a core each", "plain PyTorch loop, all cores, one by one"


def contests(quick: bool) -> list[Contest]:
    """Of one step and of a run."""
    return [*_steps(quick), *_runs(quick)]


def _steps(quick: bool) -> list[Contest]:
    small = {"V": 4096, "d": 128, "layers": 4, "tokens": 512}
    sizes = [(small, 15)] if quick else [(small, 60), ({**small, "V": 50_304}, 20)]
    made = [
        Contest("step", "tied training step", (SPLIT, ORDINARY, HOOKS), step, size, same_step, rounds, warm=5)
        for size, rounds in sizes
    ]
    if not turns.on_cuda():  # there `training` itself chooses, after a probe
        words, note = "training step", "compiled beforehand; what that takes is not counted"
        made.append(Contest("step", words, (EAGER, HALF, COMPILED), kind, small, same_loss, 15, 5, False, note))
    words, note = "training step and the machine's matrix rate", "1 / ratio is the fraction of that rate"
    large = {"V": 50_304, "d": 768, "layers": 12, "tokens": 16_384, "context": 1024}
    size = large if turns.on_cuda() and not quick else small
    return [*made, Contest("step", words, (STEP, PRODUCTS), at_rate, size, nothing, 15, 5, False, note)]


def _runs(quick: bool) -> list[Contest]:
    small = {"V": 2048, "d": 128, "layers": 4, "tokens": 512}
    sizes = [({**small, "steps": 30}, 3)]
    if not quick:
        sizes = [({**small, "steps": 200}, 3), ({**small, "V": 50_304, "steps": 50}, 3)]
    ways = (RUN, LOOP, TRAINER) if importlib.util.find_spec("accelerate") else (RUN, LOOP)
    note = "ours tracks, evaluates and saves at the end; the others do not"
    made = [
        Contest("run", f"run of {size['steps']} steps", ways, run, size, same_run, rounds, memory=False, note=note)
        for size, rounds in sizes
    ]
    if turns.on_cuda():
        return made
    size = {**small, "steps": 30, "runs": 2} if quick else {**small, "steps": 200, "runs": 6}
    words, note = f"{size['runs']} runs of {size['steps']} steps", f"{note}; ours starts its processes anew"
    return [*made, Contest("run", words, (ALL, IN_TURN), side_by_side, size, same_run, 3, 0, False, note)]


def step(way: str, V: int, d: int, layers: int, tokens: int, context: int = CONTEXT) -> Turn:
    """One optimizer step on `tokens` tokens; the turn returns what it tracked: scalars by name, in a dictionary or stacked."""
    config, corpus, hardware = setting(V, d, layers, tokens, context=context)
    if way.startswith(SPLIT):
        trainer = trainer_of(config, corpus, hardware)
        _compile(trainer.model, way)
        return _counted(trainer.step)
    tracked: dict[str, Tensor] = {}
    model = _model(config, hardware)
    _compile(model, way)
    if way.startswith(HOOKS):
        _watch(model, tracked)
    ordinary = _ordinary(model, config, corpus, hardware)
    return _counted(lambda index: {"loss": ordinary(index), **tracked})


def _compile(model: Any, way: str) -> None:
    for block in blocks(model) if way.endswith(COMPILED) else ():
        block.compile()


def same_step(values: dict[str, Any]) -> None:
    """Equal losses, and equal norms of both paths as published, in whichever way they are computed."""
    own, *others = map(_named, values.values())
    tolerance = 1e-4 if device() == "cpu" else 2e-2  # bfloat16
    for way, tracked in zip([*values][1:], others, strict=True):
        for name in tracked if len(tracked) < len(own) else ["loss"]:
            np.testing.assert_allclose(float(tracked[name]), float(own[name]), rtol=tolerance, err_msg=f"{way}: {name}")


def _named(value: Any) -> dict[str, Any]:
    """What a step tracked, by name."""
    return value if isinstance(value, dict) else dict(zip(SCALARS, value.tolist(), strict=True))


def kind(way: str, V: int, d: int, layers: int, tokens: int, context: int = CONTEXT) -> Turn:
    """One tracked step in another precision, or of blocks that are compiled; the turn returns its loss."""
    config, corpus, _ = setting(V, d, layers, tokens, context=context)
    hardware = choose_hardware(config.device, "bfloat16" if way == HALF else "float32")
    trainer = trainer_of(config, corpus, hardware)
    _compile(trainer.model, way)
    return _counted(lambda index: float(trainer.step(index)[SCALARS.index("loss")]))


def same_loss(values: dict[str, Any]) -> None:
    """Equal first losses, as far as bfloat16 goes."""
    for way, loss in values.items():
        np.testing.assert_allclose(loss, values[EAGER], rtol=2e-2, err_msg=way)


def at_rate(way: str, V: int, d: int, layers: int, tokens: int, context: int = CONTEXT) -> Turn:
    """One tracked step, or as many operations in square matrix products of the same dtype.

    They are counted as in the appendix of PaLM (arXiv 2204.02311): 6 a weight and 12 (layers) (context) (d), for each token.
    """
    if way.startswith(STEP):
        return step(way.replace(STEP, SPLIT), V, d, layers, tokens, context)
    config, _, hardware = setting(V, d, layers, tokens, context=context)
    operations = tokens * (6 * budget.parameters(config) + 12 * layers * context * d)
    side = 8192 if turns.on_cuda() else 512
    count = max(1, round(operations / (2 * side**3)))
    one, other = (torch.randn(side, side, dtype=hardware.dtype, device=hardware.device) for _ in range(2))
    product = torch.empty_like(one)

    def products() -> None:
        for _ in range(count):
            torch.mm(one, other, out=product)

    return products


def nothing(values: dict[str, Any]) -> None:
    """There is no value to agree on."""


def run(way: str, V: int, d: int, layers: int, tokens: int, steps: int) -> Turn:
    """A run of `steps` steps from a fresh model to its mean training loss, which the turn returns."""
    config, corpus, hardware = setting(V, d, layers, tokens, **_kept(steps))
    return lambda: {RUN: _ours, LOOP: _loop, TRAINER: _trainer}[way](config, corpus, hardware)


def _kept(steps: int) -> dict[str, int]:
    """Fields of a run of `steps` steps that saves tables as often as one of the default length, and evaluates half as often."""
    often = {"checkpoint_every": steps, "validation_every": steps}
    return {"steps": steps, **often, "table_snapshots": max(1, steps // 20), "validation_sequences": max(1, steps // 3)}


def side_by_side(way: str, V: int, d: int, layers: int, tokens: int, steps: int, runs: int) -> Turn:
    """As many runs in the two-role language, from fresh models to their mean training loss, which the turn returns."""
    config, _, hardware = setting(V, d, layers, tokens, **_kept(steps))
    configs = [config.replace(corpus="two-role", threads=1, init_seed=seed) for seed in range(runs)]

    def ours() -> float:
        with _nowhere():
            return float(np.mean([run.metrics["loss"].mean() for run in train_all(configs, progress=False)]))

    def theirs() -> float:
        with _nowhere():
            corpus = configs[0].load_corpus()
            return float(np.mean([_loop(config, corpus, hardware) for config in configs]))

    return {ALL: ours, IN_TURN: theirs}[way]


def same_run(values: dict[str, Any]) -> None:
    """Equal mean losses over the run or runs."""
    tolerance = 1e-3 if device() == "cpu" else 2e-2
    ours, *others = values
    for way in others:
        np.testing.assert_allclose(values[way], values[ours], rtol=tolerance, err_msg=way)


@cache
def _corpus(V: int) -> Corpus:
    random, weights = np.random.default_rng(0), 1 / np.arange(1, V + 1)
    train, validation = (random.choice(V, n, p=weights / weights.sum()).astype(np.uint32) for n in (200_000, 8_000))
    return Corpus("benchmark", V, train, validation, {"name": "benchmark"}, Path())


def setting(V: int, d: int, layers: int, tokens: int, **others: Any) -> tuple[TrainConfig, Corpus, Hardware]:
    """Return the condition of that size on this machine's device, a text of random tokens for it, and the device."""
    sizes: dict[str, Any] = {"vocab_size": V, "d_model": d, "n_layers": layers, "n_heads": max(1, d // (32 if d < 512 else 64))}
    context = others.setdefault("context", CONTEXT)
    batch = {"batch_size": max(1, tokens // context), "threads": torch.get_num_threads()}
    config = TrainConfig(**sizes, **batch, **others, device=device())
    return config, _corpus(V), choose_hardware(device())


def trainer_of(config: TrainConfig, corpus: Corpus, hardware: Hardware) -> Trainer:
    """Return a trainer whose blocks are compiled where a way's name says so, not where a probe finds that it pays."""
    return Trainer(config, corpus, dataclasses.replace(hardware, compiles=False))


def _model(config: TrainConfig, hardware: Hardware) -> Any:
    model: Any = run_store.build_model(config)
    assert isinstance(model, OlmoForCausalLM)  # whose import, above, is then no part of anybody's peak memory
    model.to(hardware.device)  # type: ignore[arg-type]
    model.tie_weights()
    return model


def _optimizer(model: Any, config: TrainConfig) -> torch.optim.AdamW:
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    return torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=betas, eps=config.adam_eps, weight_decay=decay, fused=True
    )


def _ordinary(model: Any, config: TrainConfig, corpus: Corpus, hardware: Hardware) -> Callable[[int], Tensor]:
    """The same model, batches and optimizer, tied the ordinary way and with nothing tracked but the loss."""
    optimizer, batches = _optimizer(model, config), Batches(config, corpus, hardware.device)

    def one(index: int) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(index)
        optimizer.zero_grad(set_to_none=True)
        windows = batches(index - 1)
        with hardware.autocast():
            logits = model(windows[:, :-1]).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        return loss.detach()

    return one


def _watch(model: Any, tracked: dict[str, Tensor]) -> None:
    """The published way: the input path's activation gradient caught, the output path's weight gradient computed once more."""

    def at_input(_: Any, inputs: Any, output: Tensor) -> None:
        output.register_hook(lambda g: tracked.update(published_input_norm=torch.linalg.vector_norm(g.float())))

    def at_output(_: Any, inputs: Any, output: Tensor) -> None:
        hidden = inputs[0].detach().flatten(0, -2)

        def again(slope: Tensor) -> None:
            gradient = hidden.T @ slope.flatten(0, -2).to(hidden.dtype)  # (d, V): what backward has just computed
            tracked["output_norm"] = torch.linalg.vector_norm(gradient.float())

        output.register_hook(again)

    model.get_input_embeddings().register_forward_hook(at_input)
    model.get_output_embeddings().register_forward_hook(at_output)


def _counted(one: Callable[[int], Any]) -> Turn:
    """`one` at 1, 2, 3, ..., a turn each."""
    steps = iter(range(1, 10**9))
    return lambda: one(next(steps))


@contextmanager
def _nowhere() -> Iterator[str]:
    """A home for what a run writes, gone with it; what it prints is not wanted either."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, TYING_HOME=folder):
        yield folder


def _ours(config: TrainConfig, corpus: Corpus, hardware: Hardware) -> float:
    with quiet(), _nowhere(), run_store.writing(config, corpus.fingerprint) as writer:
        run = Trainer(config, corpus, hardware, writer).run()
        assert run is not None
        return float(run.metrics["loss"].mean())


def _loop(config: TrainConfig, corpus: Corpus, hardware: Hardware) -> float:
    one = _ordinary(_model(config, hardware), config, corpus, hardware)
    return float(torch.stack([one(step) for step in range(1, config.steps + 1)]).mean())


def _trainer(config: TrainConfig, corpus: Corpus, hardware: Hardware) -> float:
    import transformers

    batches = Batches(config, corpus, hardware.device)
    windows = torch.cat([batches(index) for index in range(config.steps)]).cpu()
    examples: Any = [{"input_ids": w[:-1], "labels": w[:-1], "shift_labels": w[1:]} for w in windows]
    model = _model(config, hardware)
    optimizer = _optimizer(model, config)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: config.learning_rate_at(done + 1) / config.learning_rate)
    with _nowhere() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            max_steps=config.steps,
            per_device_train_batch_size=config.batch_size,
            max_grad_norm=config.clip,
            train_sampling_strategy="sequential",
            use_cpu=hardware.device.type == "cpu",
            bf16=hardware.dtype == torch.bfloat16,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=examples, optimizers=(optimizer, rate))
        trainer.remove_callback(transformers.PrinterCallback)
        return trainer.train().training_loss
