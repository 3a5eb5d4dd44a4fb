"""What is measured by running whole models: what each layer lacks of the output, what each part adds, what a step costs."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from scipy.stats import trim_mean
from tqdm.auto import tqdm

from tying_utils.base.names import TIED
from tying_utils.measures import lens, lens_budget, residual
from tying_utils.study import columns
from tying_utils.study.columns import labelled, tabulated
from tying_utils.study.profile import Profile
from tying_utils.study.trained import Trained, models_side_by_side
from tying_utils.training.trainer import choose_hardware, steps_of


def lenses(runs: Sequence[Trained], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Measure what each layer lacks of the model's own prediction, bits, by the tuned lens and the logit lens (Figure 2)."""
    device = choose_hardware().device

    def one(run: Trained) -> pd.DataFrame:
        model, context = run.run.model(device=device), run.run.config.context
        held_out = run.corpus.windows("validation", profile.evaluation_windows, context)
        tokens = run.corpus.windows("train", profile.lens_windows, context)
        tuned = lens.train_lens(model, tokens, seed=run.seed, progress=False, **profile.lens)
        curves = columns.lens_curves(run.labels | {"lens": "tuned"}, model, tuned, held_out)
        logit = lens.kl_by_layer(model, lens.logit_lens(model), held_out)
        return pd.concat(
            [curves, columns.curve(run.labels | {"lens": "logit", "indexing": "matched"}, logit)], ignore_index=True
        )

    return tabulated(one, runs, bar, partial(models_side_by_side, device=device))


def lens_budgets(runs: Sequence[Trained], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Measure what Figure 2 becomes when the lens is stopped early."""
    device = choose_hardware().device

    def one(run: Trained) -> pd.DataFrame:
        context = run.run.config.context
        held_out = run.corpus.windows("validation", profile.evaluation_windows, context)
        tokens = run.corpus.windows("train", profile.lens_windows, context)
        curves = lens_budget.kl_by_budget(
            run.run.model(device=device), tokens, held_out, budgets=profile.lens_budgets, seed=run.seed, progress=False
        )
        return labelled(run.labels, curves[["steps", "layer", "kl_bits"]])

    return tabulated(one, runs, bar, partial(models_side_by_side, device=device))


def residual_stream(runs: Sequence[Trained], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Measure what each component adds to the residual stream, and to the logit of the right token."""

    def one(run: Trained) -> pd.DataFrame:
        held_out = run.corpus.windows("validation", profile.evaluation_windows, run.run.config.context)
        return labelled(run.labels, residual.contributions(run.run.model(), held_out))

    return tabulated(one, runs, bar)


def step_times(runs: Sequence[Trained], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Time a training step over that of the tied arm, in turns: of the first seed's arms, each a short training."""
    first = [run for run in runs if run.seed == runs[0].seed]
    rounds = max(6, profile.permutations // 2)
    bar.reset(rounds)
    threads = torch.get_num_threads()
    torch.set_num_threads(first[0].run.config.threads)
    try:
        steps = {run.arm.name: steps_of(run.run.config.replace(steps=rounds), run.corpus) for run in first}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for step in range(1, rounds + 1):
            # Forwards and backwards, so that none is always first.
            for name in [*steps][:: 1 if step % 2 else -1]:
                began = time.perf_counter()
                steps[name](step)
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
