"""The claims at a size for the card: pairs of runs at 20 tokens per weight where the time allows, as many as fit otherwise."""

import functools
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from tying_utils import corpora, models
from tying_utils.base import processes
from tying_utils.card.plan import UNTIED_START, LeftOut, Plan, Task, installed
from tying_utils.card.setting import Setting
from tying_utils.corpora.corpus import Corpus
from tying_utils.measures import alignment, neighbors
from tying_utils.training import TrainConfig, Trainer, budget

TOKENS_PER_WEIGHT = 20.0
PERMUTATIONS, TENTHS = 100, 10
# Most telling first: a pair, then what scaling does to it, then the next seed.
ARMS: dict[str, dict[str, Any]] = {"untied": {"tied": False}, "tied": {}, "input x5": {"input_scale": 5.0}}
# (d, layers) from the largest down, at one vocabulary: 38 to 2 million weights in the untied model.
SHAPES = ((512, 8), (384, 8), (256, 8), (192, 6), (128, 4))
_VOCABULARY, _CONTEXT, _BATCH = 4096, 256, 64
_MEASURING = 12.0  # seconds that a run's alignment and lens take at most, beside its training
_PAIR = 0.6  # of the part's time that a pair may take


# Tokenises the first text that there is, and prints its name.
_TOKENISE = """
import sys
from tying_utils import corpora
for name in sys.argv[2:]:
    try:
        corpora.load(name, vocab_size=int(sys.argv[1]))
        print(name)
        break
    except ValueError as error:
        print(error, file=sys.stderr)
"""


class Text:
    """Installed packages in tokens, made by a process of its own while the device is busy with something else."""

    def __init__(self, setting: Setting) -> None:
        # Where hardly anything is installed beside this package, the standard library; a smoke test has no time for more.
        names, self.vocab_size = (["python"], 512) if setting.smoke else (["packages", "python"], _VOCABULARY)
        words = ["-c", _TOKENISE, str(self.vocab_size), *names]
        self._child = processes.start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def corpus(self, seconds: float) -> Corpus:
        """Return the corpus, waiting for it so long at most. Raises `LeftOut` where it is not there by then."""
        try:
            name, said = self._child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise LeftOut(f"the text was not tokenised after {seconds:.0f} s more") from None
        if not name:
            raise LeftOut(f"no text could be made: {' '.join(said.split())[-300:]}")
        return corpora.load(name.strip(), vocab_size=self.vocab_size)

    def stop(self) -> None:
        """End the process, if it has not ended."""
        self._child.kill()
        self._child.wait()


def tasks(
    setting: Setting, plan: Plan, text: Text, seeds: Sequence[int] | None = None, size: Mapping[str, int] | None = None
) -> Iterator[Task]:
    """Yield what the text is, the size that fits, then a run with its tables at a time: of `seeds`, by default five.

    `size` (d, layers and steps) is taken in place of one that fits.
    """
    state: dict[str, Any] = {"untied": {}, "seconds": 0.0}

    def prepared() -> dict[str, Any]:
        state["corpus"] = corpus = text.corpus(0.5 * plan.left)
        kept = {name: value for name, value in corpus.fingerprint.items() if name in ("name", "bytes", "files", "sha256")}
        return {**kept, "tokens": len(corpus.train), "vocab_size": corpus.vocab_size}

    yield Task("text", prepared)
    if "corpus" not in state:
        return

    def sized() -> dict[str, Any]:
        state["config"], found = given(setting, state["corpus"], size) if size else chosen(setting, state["corpus"], plan.left)
        return found

    yield Task("size", sized)
    if "config" not in state:
        return
    for seed, arm in ((seed, arm) for seed in seeds or range(1 if setting.smoke else 5) for arm in ARMS):
        # What the longest run so far took, with a margin; a run that would be cut off is not begun.
        seconds = 1.1 * state["seconds"]
        yield Task(f"{arm}, seed {seed}", functools.partial(run, setting, state, arm, seed), seconds=seconds)


def config_of(setting: Setting, corpus: Corpus, d: int, layers: int, steps: int) -> TrainConfig:
    """Return the tied arm's condition at a shape: warmup over a quarter, Adam's rate falling with the width."""
    context, batch = (32, 8) if setting.smoke else (_CONTEXT, _BATCH)
    return TrainConfig(
        corpus=corpus.name, vocab_size=corpus.vocab_size, d_model=d, n_layers=layers, n_heads=max(1, d // 32), context=context,
        batch_size=batch, steps=steps, warmup_steps=steps // 4, learning_rate=2e-3 * (128 / d) ** 0.5, checkpoint_every=steps,
        validation_every=max(1, steps // 4), validation_sequences=8 if setting.smoke else 256, device=setting.device.type,
        threads=torch.get_num_threads(),
    )  # fmt: skip


def chosen(setting: Setting, corpus: Corpus, seconds: float) -> tuple[TrainConfig, dict[str, Any]]:
    """Choose the largest shape of which a pair is trained to `TOKENS_PER_WEIGHT` in its part of the `seconds`.

    Where none is, the smallest is trained for as many steps as fit. A text is read once over at most: a shape that needs more
    tokens than it holds is passed over, or trained on what there is.
    """
    shapes, tried = ((32, 2),) if setting.smoke else SHAPES, []
    for d, layers in shapes:
        config = config_of(setting, corpus, d, layers, 40)
        per_step, last = config.batch_size * config.context, (d, layers) == shapes[-1]
        weights = _weights(config)
        wanted, there = max(1, round(TOKENS_PER_WEIGHT * weights / per_step)), (len(corpus.train) - 1) // per_step
        if wanted > there and not last:
            continue
        need = 2 * budget.memory(config, torch.float32, setting.device)
        setting.room(need, f"batches of {config.batch_size // 4} sequences would take a third of it")
        step_seconds = seconds_per_step(config, corpus)
        tried.append(f"d {d}: {1e3 * step_seconds:.1f} ms a step")
        fits = int((_PAIR * seconds / 2 - (1 if setting.smoke else _MEASURING)) / step_seconds)
        if wanted <= fits or last:
            config = config_of(setting, corpus, d, layers, max(8, min(wanted, fits, there)))
            return config, _described(config) | {"tried": "; ".join(tried)}
    raise AssertionError("the last shape is always taken")


def given(setting: Setting, corpus: Corpus, size: Mapping[str, int]) -> tuple[TrainConfig, dict[str, Any]]:
    """Return the condition of a given size. Raises `LeftOut` where the text is too short or the card too small for it."""
    config = config_of(setting, corpus, size["d"], size["layers"], size["steps"])
    if config.steps * config.batch_size * config.context >= len(corpus.train):
        raise LeftOut(f"{config.steps:,} steps read more than the text has, {len(corpus.train):,} tokens")
    setting.room(2 * budget.memory(config, torch.float32, setting.device), "a smaller size would fit")
    return config, _described(config)


def _described(config: TrainConfig) -> dict[str, Any]:
    per_step, weights = config.batch_size * config.context, _weights(config)
    found = {"d": config.d_model, "layers": config.n_layers, "weights": weights, "steps": config.steps}
    return {**found, "tokens_per_step": per_step, "tokens_per_weight": config.steps * per_step / weights}


def seconds_per_step(config: TrainConfig, corpus: Corpus) -> float:
    """Measure a step of the untied arm: the mean of ten, after three."""
    trainer, began = Trainer(config.replace(tied=False), corpus), 0.0
    for step in range(1, 14):
        if step == 4:
            began = time.perf_counter()
        float(trainer.step(step)[0])  # the loss, for which the host waits
    return (time.perf_counter() - began) / 10


def run(setting: Setting, state: dict[str, Any], arm: str, seed: int) -> dict[str, Any]:
    """Train an arm and measure it beside the untied run of its seed; "tables" holds the rows of the tables that it adds to."""
    corpus: Corpus = state["corpus"]
    setting.fresh()
    init = seed if ARMS[arm].get("tied", True) else UNTIED_START + seed
    config = state["config"].replace(**ARMS[arm], init_seed=init, data_seed=seed)
    began = time.perf_counter()
    trainer = Trainer(config, corpus)
    trainer.run()
    seconds, metrics = time.perf_counter() - began, trainer.metrics()
    labels = {"corpus": corpus.name, "arm": arm, "seed": seed, "d_model": config.d_model, "n_layers": config.n_layers}
    labels |= {"tokens_per_weight": config.steps * config.batch_size * config.context / _weights(config)}
    tables: dict[str, list[dict[str, Any]]] = {"losses": [], "share": [], "alignment": [], "lens": []}
    loss = float(metrics["validation_loss"].iloc[-1])
    tables["losses"].append({**labels, "validation_loss": loss, "parameters": sum(p.numel() for p in trainer.parameters)})
    tenth = (metrics["step"] - 1) * TENTHS // config.steps
    for place, part in metrics.groupby(tenth)[["output_share", "output_update_share"]].mean().iterrows():
        tables["share"].append({**labels, "tenth": int(place) + 1, **part.to_dict()})  # type: ignore[arg-type]
    used = torch.from_numpy(corpus.counts.nonzero()[0]).to(setting.device)
    own = models.tables(trainer.model)
    if not own.tied:
        pair = {"input": own.input[used], "output": own.output[used]}
        state["untied"][seed] = pair, compared("input", "output", pair["input"], pair["output"], setting)
    elif seed in state["untied"]:
        pair, between = state["untied"][seed]
        rows = [compared(source, "tied", table, own.input[used], setting) for source, table in pair.items()]
        tables["alignment"] += [{**labels, **row} for row in (*rows, between)]
    if installed("tuned_lens"):
        tables["lens"] += curve(labels, trainer.model, corpus, setting, seed)
    state["seconds"] = max(state["seconds"], time.perf_counter() - began)
    share = metrics["output_share"].head(max(1, config.steps // TENTHS)).mean()
    tokens = config.steps * config.batch_size * config.context
    found = {"validation_loss": loss, "output_share_first_tenth": float(share), "tokens_per_s": tokens / seconds}
    return {**found, "training": trainer.reason, "config": config.as_dict(), "tables": tables}


def _weights(config: TrainConfig) -> int:
    return budget.parameters(config.replace(tied=False, input_scale=1.0))


def compared(source: str, target: str, one: torch.Tensor, other: torch.Tensor, setting: Setting) -> dict[str, Any]:
    """Return the row of a pair of tables (n, d), named `source` and `target`: their alignment and their neighbour overlap."""
    score = alignment.alignment(one, other, "orthogonal", permutations=5 if setting.smoke else PERMUTATIONS)
    near = neighbors.overlap(one, other)
    row = {"source": source, "target": target, "value": score.value, "chance": score.chance, "corrected": score.corrected}
    return {**row, "held_out": score.held_out, "knn": near.value, "knn_corrected": near.corrected}


def curve(labels: dict[str, Any], model: Any, corpus: Corpus, setting: Setting, seed: int) -> list[dict[str, Any]]:
    """Return the lens KL by layer, in bits, on held-out windows."""
    from tying_utils.measures import lens

    counts = (16, 8) if setting.smoke else (480, 64)
    context = 32 if setting.smoke else _CONTEXT
    tokens, held_out = (corpus.windows(part, n, context) for part, n in zip(("train", "validation"), counts, strict=True))
    tuned = lens.train_lens(model, tokens, steps=5 if setting.smoke else 400, seed=seed, progress=False)
    kl = lens.kl_by_layer(model, tuned, held_out)
    return [{**labels, "layer": layer, "kl_bits": float(bits)} for layer, bits in enumerate(kl)]
