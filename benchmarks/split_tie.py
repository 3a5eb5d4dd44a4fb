"""What the split tie and its tracking cost: a tied training step with them over the same model's ordinary tied step.

    python benchmarks/split_tie.py [--steps 60] [--vocab-size 2048]

The two are timed in turn, step by step, on one thread, so that a drift of the machine's speed touches both. Prints the median
of the ratios pair by pair, with its quartiles.
"""

import argparse
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tying_utils import corpora, run_store, training
from tying_utils.config import TrainConfig


def ordinary(trainer: training._Trainer) -> Callable[[int], None]:
    """The same model, batches and optimizer, tied the ordinary way and with nothing tracked."""
    config = trainer.config
    model = run_store.build_model(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(config.beta1, config.beta2), weight_decay=0.1, fused=True
    )

    def step(index: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = trainer._learning_rate(index)
        optimizer.zero_grad(set_to_none=True)
        windows = trainer._batch(index - 1)
        logits = model(windows[:, :-1]).logits
        F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--vocab-size", type=int, default=2048)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = TrainConfig(vocab_size=options.vocab_size, context=64)
    corpus = corpora.load("python", vocab_size=config.vocab_size)
    nothing_written: Any = SimpleNamespace(step=0)
    trainer = training._Trainer(config, corpus, training.choose_hardware("cpu"), nothing_written)
    arms = {"split": trainer._step, "ordinary": ordinary(trainer)}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for index in range(1, options.steps + 6):
        order = list(arms) if index % 2 else list(arms)[::-1]
        for name in order:
            began = time.perf_counter()
            arms[name](index)
            seconds[name].append(time.perf_counter() - began)
    ratios = np.array(seconds["split"][5:]) / np.array(seconds["ordinary"][5:])
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    ordinary_ms = 1e3 * float(np.median(seconds["ordinary"][5:]))
    print(f"V {config.vocab_size}: ratio {middle:.3f} (quartiles {low:.3f} to {high:.3f}), ordinary step {ordinary_ms:.0f} ms")


if __name__ == "__main__":
    main()
