"""The training loss as a module, so that whatever wraps a model for several devices wraps the loss with it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tying_utils.base.checks import positive

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS_AT_ONCE = 2**27  # 512 MiB in float32, of which a backward pass holds about three


class NextTokenLoss(nn.Module):
    """Mean cross-entropy of `model` in nats a token; logits are made under `autocast`, their loss in float32.

    Windows with more logits (tokens x V) than `logits_at_once` go through `chunked_cross_entropy`, so that no more than
    those exist at a time; None, the default, never does: in chunks the last bits of a sum differ. On the CPU in float32 the
    logits lie in memory that is kept from step to step (`KeptLogits`), which changes no bit.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        logits_at_once: int | None = None,
    ) -> None:
        super().__init__()
        self.model, self.autocast, self.logits_at_once = model, autocast, logits_at_once
        self.kept = KeptLogits()

    def forward(self, windows: Tensor) -> Tensor:
        """Over windows (n, context + 1) of token ids, a 0-dimensional tensor."""
        tokens, targets = windows[:, :-1], windows[:, 1:].flatten()
        head: Any = self.model.get_output_embeddings()
        if self.logits_at_once is None and self._kept(head):
            return self.kept(self.model.base_model(tokens)[0], head.weight, targets)
        if self.logits_at_once is None or targets.numel() * len(head.weight) <= self.logits_at_once:
            with self.autocast():
                logits = self.model(tokens).logits
            return F.cross_entropy(logits.float().flatten(0, 1), targets)
        with self.autocast():
            hidden = self.model.base_model(tokens)[0].flatten(0, 1)
            return chunked_cross_entropy(head, hidden, targets, max(1, self.logits_at_once // len(head.weight)))

    def _kept(self, head: nn.Module) -> bool:
        """Whether `head` is no more than a matrix product in float32 on the CPU, and nobody watches it."""
        if type(head) is not nn.Linear or head.bias is not None or head._forward_hooks or head._forward_pre_hooks:
            return False
        with self.autocast():
            return (
                head.weight.device.type == "cpu" and head.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
            )


class KeptLogits:
    """`F.cross_entropy(F.linear(hidden, weight), targets)` and its gradients, to the bit, in two (n, V) buffers of its own.

    Large blocks that are freed go back to the system, which clears every page of them before it hands them out anew: at a
    vocabulary of 50,000 that takes about as long as the arithmetic on them. The buffers stay for the next call of that
    size. A loss has to have gone backward before the next one is made; RuntimeError otherwise.
    """

    def __init__(self) -> None:
        self.calls = 0
        self._log_p = self._slope = torch.empty(0, 0)

    def __call__(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Of states (..., d), a table (V, d) and token ids (n,), float32 on the CPU: a 0-dimensional tensor in nats."""
        return _InKept.apply(hidden, weight, targets, self)  # type: ignore[no-any-return]

    def buffers(self, n: int, V: int) -> tuple[Tensor, Tensor]:
        """Two (n, V): one for log-probabilities and then for the logits' gradient, and one of zeros, to be left so."""
        if len(self._log_p) < n or self._log_p.shape[1] != V:
            self._log_p, self._slope = torch.empty(n, V), torch.zeros(n, V)
        return self._log_p[:n], self._slope[:n]


class _InKept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, kept: KeptLogits) -> Tensor:
        states = hidden.flatten(0, -2)
        kept.calls += 1
        ctx.kept, ctx.call = kept, kept.calls
        ctx.save_for_backward(hidden, weight, targets)
        log_p, _ = kept.buffers(len(states), len(weight))
        torch.log_softmax(torch.mm(states, weight.t(), out=log_p), 1, out=log_p)
        return F.nll_loss(log_p, targets)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, weight, targets = ctx.saved_tensors
        if ctx.kept.calls != ctx.call:
            raise RuntimeError(
                "backward: what it needs was overwritten by a later loss; call backward once, and before the next"
            )
        ctx.kept.calls += 1
        slope, given = ctx.kept.buffers(len(targets), len(weight))
        rows = torch.arange(len(targets))
        given[rows, targets] = -grads[0] / len(targets)
        torch.ops.aten._log_softmax_backward_data.out(given, slope, 1, torch.float32, out=slope)
        given[rows, targets] = 0
        return slope.mm(weight).view_as(hidden), slope.t().mm(hidden.flatten(0, -2)), None, None


def chunked_cross_entropy(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, rows: int) -> Tensor:
    """Mean of `F.cross_entropy(head(hidden), targets)` in nats, with exact gradients and `rows` x V logits at a time.

    `hidden` (n, d) holds the states that `head` turns into logits (n, V), `targets` (n,) their token ids. Logits are made
    once more in the backward pass in place of being kept. Raises ValueError for `rows` below 1 or lengths that differ.
    """
    positive("rows", rows)
    if len(hidden) != len(targets):
        raise ValueError(f"hidden and targets: equal lengths are needed, got {len(hidden)} and {len(targets)}")

    def summed(part: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(head(part).float(), wanted, reduction="sum")

    total = torch.zeros((), device=hidden.device)
    for part, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
        # Nothing here draws random numbers, and asking a GPU for its generator's state would make the host wait.
        total = total + checkpoint(summed, part, wanted, use_reentrant=False, preserve_rng_state=False)
    return total / len(targets)
