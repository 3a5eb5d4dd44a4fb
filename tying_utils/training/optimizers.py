"""AdamW as a run has it, and Coupled Adam: one second moment for all rows of a token table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from tying_utils.models.balance import Remedy
from tying_utils.training.config import TrainConfig


def adamw(
    config: TrainConfig, remedy: Remedy, parameters: list[nn.Parameter], tables: list[nn.Parameter], *, fused: bool
) -> torch.optim.AdamW:
    """Return the optimizer of a run: one group, whose "rate" is 1, except where a remedy gives tables a rate of their own.

    `tables` are the input and the output table among `parameters`, or the tied one alone. "rate" multiplies the learning rate.
    """
    groups: list[dict[str, Any]] = [{"params": list(parameters), "rate": 1.0}]
    if (rates := remedy.rates()) != (1.0, 1.0):
        of_tables = {id(table): rate for table, rate in zip(tables, rates, strict=True)}
        groups = [{"params": [p], "rate": of_tables.get(id(p), 1.0)} for p in parameters]
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    options = {"lr": config.learning_rate, "betas": betas, "eps": config.adam_eps, "weight_decay": decay, "fused": fused}
    if remedy.coupled:
        return CoupledAdamW(groups, tables=tables, **options)
    return torch.optim.AdamW(groups, **options)


class CoupledAdamW(torch.optim.AdamW):
    """AdamW in which all rows of each of `tables` (V, d) share their second moment (Coupled Adam, arXiv 2502.08441).

    For a table, with g its gradient and every operation by column,

        m <- beta1 m + (1 - beta1) g,    v <- beta2 v + (1 - beta2) mean over rows of g^2,
        W <- (1 - rate decay) W - rate m_hat / (sqrt(v_hat) + eps),

    with m (V, d) and v (1, d), m_hat and v_hat corrected for their start as in Adam. The paper averages the second moments
    over the vocabulary after each update; the mean of moving averages is the moving average of the mean, so v alone is kept.
    All other parameters step as in torch's AdamW, to the bit.

    Raises ValueError for a table that is none of `params` or not two-dimensional.
    """

    def __init__(self, params: Iterable[Any], *, tables: Iterable[nn.Parameter], **options: Any) -> None:
        super().__init__(params, **options)
        self._tables = {id(table) for table in tables}
        held = {id(p): p for group in self.param_groups for p in group["params"]}
        for key in self._tables:
            if key not in held or held[key].ndim != 2:
                raise ValueError(
                    "tables: parameters (V, d) among `params` are needed, got one of another shape or of none of them"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step. Raises ValueError for a closure."""
        if closure is not None:
            raise ValueError("closure: none is taken; run loss.backward() before the step")
        coupled = [(group, p) for group in self.param_groups for p in group["params"] if id(p) in self._tables]
        gradients = [p.grad for _, p in coupled]
        for _, p in coupled:  # AdamW passes over what has no gradient
            p.grad = None
        super().step()
        for (group, p), grad in zip(coupled, gradients, strict=True):
            p.grad = grad
            if grad is not None:
                self._step_table(group, p, grad)

    def _step_table(self, group: dict[str, Any], table: nn.Parameter, grad: torch.Tensor) -> None:
        state, (beta1, beta2), rate = self.state[table], group["betas"], group["lr"]
        if not state:
            state["step"] = torch.zeros((), device=table.device)
            state["exp_avg"] = torch.zeros_like(table)
            state["exp_avg_sq"] = torch.zeros_like(table[:1])
        state["step"] += 1
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].lerp_(grad.square().mean(0, keepdim=True), 1 - beta2)
        size = (state["exp_avg_sq"] / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        table.mul_(1 - rate * group["weight_decay"])
        table.sub_(state["exp_avg"] / (size * (1 - beta1 ** state["step"])), alpha=rate)
