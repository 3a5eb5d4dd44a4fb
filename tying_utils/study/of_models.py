"""What is measured by running whole models: how far each layer is from the output, what each part adds, what a step costs."""

import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from scipy.stats import trim_mean

from tying_utils.base.console import tqdm
from tying_utils.base.names import TIED
from tying_utils.measures import ablation, lens, lens_budget, residual
from tying_utils.study import columns
from tying_utils.study.columns import labelled
from tying_utils.study.profile import Profile
from tying_utils.study.trained import Trained, each, models_side_by_side
from tying_utils.training.trainer import Trainer


def _lenses(run: Trained, profile: Profile) -> pd.DataFrame:
    """Return how far each layer is from the model's own prediction, bits, by tuned lens and logit lens (Figure 2)."""
    model, held_out = run.model(), run.held_out(profile.evaluation_windows)
    tokens = run.corpus.windows("train", profile.lens_windows, run.run.config.context)
    tuned = lens.train_lens(model, tokens, seed=run.seed, progress=False, **profile.lens)
    bits = lens.kl_by_layer(model, lens.logit_lens(model), held_out)
    logit = columns.curve(run.labels | {"lens": "logit", "indexing": "matched"}, bits)
    return pd.concat([columns.lens_curves(run.labels | {"lens": "tuned"}, model, tuned, held_out), logit])


def _lens_budgets(run: Trained, profile: Profile) -> pd.DataFrame:
    """Return what Figure 2 becomes when the lens is stopped early."""
    tokens = run.corpus.windows("train", profile.lens_windows, run.run.config.context)
    held_out, options = run.held_out(profile.evaluation_windows), {"seed": run.seed, "progress": False}
    curves = lens_budget.kl_by_budget(run.model(), tokens, held_out, budgets=profile.lens_budgets, **options)
    return labelled(run.labels, curves[["steps", "layer", "kl_bits"]])


def _lens_steps(run: Trained, profile: Profile) -> pd.DataFrame:
    """Return the same on held-out and on training text, as many windows of each, and below it what a lens converges to."""
    model, held_out = run.model(), run.held_out(profile.evaluation_windows)
    tokens = run.corpus.windows("train", profile.lens_windows, run.run.config.context)
    texts = {"held-out": held_out, "training": tokens[:: max(1, len(tokens) // len(held_out))][: len(held_out)]}
    options: dict[str, Any] = {"seed": run.seed, "progress": False}
    stopped = lens_budget.kl_by_budget(
        model, tokens, held_out, training=texts["training"], budgets=profile.lens_budgets, **options
    )
    own = {"steps": 400, **profile.lens}
    tuned = lens.train_lens(model, tokens, **own, **options)
    labels = {"lens": "converged", "steps": own["steps"]}
    curves = [columns.curve(labels | {"text": text}, lens.kl_by_layer(model, tuned, ids)) for text, ids in texts.items()]
    return labelled(run.labels, pd.concat([labelled({"lens": "stopped"}, stopped), *curves], ignore_index=True))


def _ablation(run: Trained, profile: Profile) -> pd.DataFrame:
    """Return what the held-out loss becomes without each layer, or without the token embedding."""
    return labelled(run.labels, ablation.loss_without_layers(run.model(), run.held_out(profile.evaluation_windows)))


def _residual_stream(run: Trained, profile: Profile) -> pd.DataFrame:
    """Return what each component adds to the residual stream, and to the logit of the right token."""
    return labelled(run.labels, residual.contributions(run.run.model(), run.held_out(profile.evaluation_windows)))


lenses, lens_budgets = each(_lenses, models_side_by_side), each(_lens_budgets, models_side_by_side)
lens_steps, ablations = each(_lens_steps, models_side_by_side), each(_ablation, models_side_by_side)
residual_stream = each(_residual_stream)


def step_times(runs: Sequence[Trained], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Time a training step over that of the tied arm, in turns: of the first seed's arms, each a short training."""
    first = [run for run in runs if run.seed == runs[0].seed]
    rounds = max(6, profile.permutations // 2)
    bar.reset(rounds)
    threads = torch.get_num_threads()
    torch.set_num_threads(first[0].run.config.threads)
    try:
        trainers = {run.arm.name: Trainer(run.run.config.replace(steps=rounds), run.corpus) for run in first}
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        for step in range(1, rounds + 1):
            # Forwards and backwards, so that none is always first.
            for name in [*trainers][:: 1 if step % 2 else -1]:
                began = time.perf_counter()
                float(trainers[name].step(step)[0])  # waits for the device
                seconds[name].append(time.perf_counter() - began)
            bar.update()
    finally:
        torch.set_num_threads(threads)
    frame = pd.DataFrame(seconds)
    ratios = frame.div(frame[TIED], axis=0)
    rows = []
    for run in first:
        # Trimmed: the first steps warm up, and now and then the machine does something else. Not the median: a remedy that
        # changes the model on the way has steps of two kinds.
        ratio, (low, high) = trim_mean(ratios[run.arm.name], 0.1), ratios[run.arm.name].quantile([0.25, 0.75])
        rows.append({**run.labels, "ratio": ratio, "low": low, "high": high, "rounds": rounds})
    return pd.DataFrame(rows).assign(threads=first[0].run.config.threads)
