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
PART = 2**18  # logits whose loss and gradient are made at a time from those that are kept: 1 MiB stays in a cache


class NextTokenLoss(nn.Module):
    """Mean cross-entropy of `model` in nats per token; logits are made under `autocast`, their loss in float32.

    Windows with more logits (tokens x V) than `logits_at_once` go through `chunked_cross_entropy`, so that no more than
    those exist at a time; None, the default, never does: in chunks the last bits of a sum differ. With `keep_logits` they
    lie in memory that is kept from step to step (`KeptLogits`), which changes no bit: for a model in float32 on the CPU whose
    output layer has neither a bias nor hooks, since it is not called.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        logits_at_once: int | None = None,
        *,
        keep_logits: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.autocast, self.logits_at_once = model, autocast, logits_at_once
        self.kept = KeptLogits() if keep_logits else None

    def forward(self, windows: Tensor) -> Tensor:
        """Return the loss over windows (n, context + 1) of token ids, a 0-dimensional tensor."""
        tokens, targets = windows[:, :-1], windows[:, 1:].flatten()
        head: Any = self.model.get_output_embeddings()
        if self.kept is not None:
            return self.kept(self.model.base_model(tokens)[0], head.weight, targets)
        if self.logits_at_once is None or targets.numel() * len(head.weight) <= self.logits_at_once:
            with self.autocast():
                logits = self.model(tokens).logits
            return F.cross_entropy(logits.float().flatten(0, 1), targets)
        with self.autocast():
            hidden = self.model.base_model(tokens)[0].flatten(0, 1)
            return chunked_cross_entropy(head, hidden, targets, max(1, self.logits_at_once // len(head.weight)))


class KeptLogits:
    """`F.cross_entropy(F.linear(hidden, weight), targets)` and its gradients, to the bit, in one (n, V) buffer of its own.

    Large blocks that are freed go back to the system, which clears every page of them before it hands them out anew: at a
    vocabulary of 50,000 that takes about as long as the arithmetic on them. The buffer stays for the next call of that size
    and holds the logits, then their gradient. A loss has to go backward before the next one is made; RuntimeError otherwise.
    """

    def __init__(self) -> None:
        self.calls = 0
        self._buffer = torch.empty(0, 0)

    def __call__(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss in nats of states (..., d), a table (V, d) and token ids (n,), float32 on the CPU."""
        return _InKept.apply(hidden, weight, targets, self)  # type: ignore[no-any-return]

    def buffer(self, n: int, V: int) -> Tensor:
        """Return the first `n` rows of the buffer, made anew where it is too small or of another width."""
        if len(self._buffer) < n or self._buffer.shape[1] != V:
            self._buffer = torch.empty(n, V)
        return self._buffer[:n]


class _InKept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, kept: KeptLogits) -> Tensor:
        states = hidden.flatten(0, -2)
        kept.calls += 1
        ctx.kept, ctx.call = kept, kept.calls
        ctx.save_for_backward(hidden, weight, targets)
        logits = torch.mm(states, weight.t(), out=kept.buffer(len(states), len(weight)))
        losses = torch.cat([F.cross_entropy(part, wanted, reduction="none") for part, wanted in _parts(logits, targets)])
        # Their mean as cross_entropy takes it: `losses.mean()` adds in another order.
        return F.nll_loss(-losses[:, None], torch.zeros_like(targets))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, weight, targets = ctx.saved_tensors
        if ctx.kept.calls != ctx.call:
            raise RuntimeError(
                "backward: what it needs was overwritten by a later loss; call backward once, and before the next"
            )
        ctx.kept.calls += 1
        slope = ctx.kept.buffer(len(targets), len(weight))
        of_each = grads[0] / len(targets)
        for part, wanted in _parts(slope, targets):
            with torch.enable_grad():
                logits = part.detach().requires_grad_()
                losses = F.cross_entropy(logits, wanted, reduction="none")
            part.copy_(torch.autograd.grad(losses, logits, of_each.expand(len(wanted)))[0])
        return slope.mm(weight).view_as(hidden), slope.t().mm(hidden.flatten(0, -2)), None, None


def _parts(logits: Tensor, targets: Tensor) -> "zip[tuple[Tensor, Tensor]]":
    """Return views of a few rows of logits (n, V), and their targets."""
    rows = max(1, PART // logits.shape[1])
    return zip(logits.split(rows), targets.split(rows), strict=True)


def chunked_cross_entropy(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, rows: int) -> Tensor:
    """Return the mean of `F.cross_entropy(head(hidden), targets)` in nats, with exact gradients, `rows` x V logits at a time.

    `hidden` (n, d) holds the states that `head` turns into logits (n, V), `targets` (n,) their token ids. Logits are made
    once more in the backward pass in place of being kept. Raises ValueError for `rows` below 1 or lengths that differ.
    """
    rows = positive("rows", rows)
    if len(hidden) != len(targets):
        raise ValueError(f"hidden and targets: equal lengths are needed, got {len(hidden)} and {len(targets)}")

    def summed(part: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(head(part).float(), wanted, reduction="sum")

    total = torch.zeros((), device=hidden.device)
    for part, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
        # Nothing here draws random numbers, and asking a GPU for its generator's state would make the host wait.
        total = total + checkpoint(summed, part, wanted, use_reentrant=False, preserve_rng_state=False)
    return total / len(targets)
