"""The training loss as a module, so that whatever wraps a model for several devices wraps the loss with it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tying_utils.measures._checks import positive

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS_AT_ONCE = 2**27  # 512 MiB in float32, of which a backward pass holds about three


class NextTokenLoss(nn.Module):
    """Mean cross-entropy of `model` in nats a token; logits are made under `autocast`, their loss in float32.

    Windows with more logits (tokens x V) than `logits_at_once` go through `chunked_cross_entropy`, so that no more than
    those exist at a time; None, the default, never does: in chunks the last bits of a sum differ.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        logits_at_once: int | None = None,
    ) -> None:
        super().__init__()
        self.model, self.autocast, self.logits_at_once = model, autocast, logits_at_once

    def forward(self, windows: Tensor) -> Tensor:
        """Over windows (n, context + 1) of token ids, a 0-dimensional tensor."""
        tokens, targets = windows[:, :-1], windows[:, 1:].flatten()
        head: Any = self.model.get_output_embeddings()
        if self.logits_at_once is None or targets.numel() * len(head.weight) <= self.logits_at_once:
            with self.autocast():
                logits = self.model(tokens).logits
            return F.cross_entropy(logits.float().flatten(0, 1), targets)
        with self.autocast():
            hidden = self.model.base_model(tokens)[0].flatten(0, 1)
            return chunked_cross_entropy(head, hidden, targets, max(1, self.logits_at_once // len(head.weight)))


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
