"""How much of a lens curve is the lens: KL by the number of steps that the lens was trained for, from its usual start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tying_utils.base.checks import above_zero, positive
from tying_utils.base.checks import seed as checked_seed
from tying_utils.base.console import tqdm
from tying_utils.measures import lens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def kl_by_budget(
    model: PreTrainedModel,
    tokens: ArrayLike | Tensor,
    held_out: ArrayLike | Tensor,
    *,
    training: ArrayLike | Tensor | None = None,
    budgets: Sequence[int] = (25, 50, 100, 200, 400),
    tokens_per_step: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Return KL(model || lens) by layer after each number of steps in `budgets`, for a lens that starts from the identity.

    The start of arXiv 2303.08112 is the logit lens, whose KL at the embedding is several bits higher on the tied one of our
    models; a lens that has not converged keeps part of that head start. Plain Adam at a constant rate, so that every budget is
    a stop on one path; `lens.train_lens` is what the curves converge to.

    Args:
        model: a Hugging Face causal LM with L layers.
        tokens: integers (n, T) to train on, `held_out` (m, T) to judge on.
        training: rows of `tokens` (k, T) to judge on, too: how much lower the KL is there is what the lens learnt by heart.
        budgets: numbers of optimizer steps, each at least 1.
        tokens_per_step: positions drawn at random for a step, with repetition.

    Returns:
        Columns steps, text ("held-out", and "training" where there is any), layer (0 .. L), kl_bits (bits per token).

    Raises:
        ValueError: for no budget or one below 1, for a rate or seed that cannot be, for what `lens.unembed` and `lens.states`
            refuse, and, as `lens.kl_by_layer` does, for a lens that has diverged.
    """
    from tuned_lens.nn.lenses import TunedLens, TunedLensConfig

    if not isinstance(budgets, Iterable) or not (budgets := [positive("budgets", budget) for budget in budgets]):
        raise ValueError(f"budgets: a sequence of at least 1 number of steps is needed, got {budgets!r}")
    learning_rate = above_zero("learning_rate", learning_rate)
    generator = torch.Generator().manual_seed(checked_seed("seed", seed))
    tokens_per_step = positive("tokens_per_step", tokens_per_step)
    texts = {"held-out": held_out} | ({} if training is None else {"training": training})
    frozen, pool = lens.unembed(model, tokens), lens.states(model, tokens)
    config = TunedLensConfig("", d_model=pool.shape[-1], num_hidden_layers=len(pool) - 1)
    with torch.random.fork_rng(devices=[]):
        tuned = TunedLens(frozen, config).to(pool.device)
    parameters = list(tuned.layer_translators.parameters())
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    rows = []
    for step in tqdm(range(1, max(budgets) + 1), desc="lens from identity", disable=not progress, leave=False):
        picked = torch.randint(pool.shape[1], (tokens_per_step,), generator=generator).to(pool.device)
        states = pool[:, picked]
        with torch.no_grad():
            target = frozen(states[-1]).log_softmax(-1)
        loss = sum(
            torch.nn.functional.kl_div(tuned(states[i], i).log_softmax(-1), target, log_target=True, reduction="batchmean")
            for i in range(len(pool) - 1)
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        if step in budgets:
            for text, ids in texts.items():
                curve = lens.kl_by_layer(model, tuned, ids)
                rows.append(pd.DataFrame({"steps": step, "text": text, "layer": range(len(curve)), "kl_bits": curve}))
    return pd.concat(rows, ignore_index=True)
