"""The training loss as a module, so that whatever wraps a model for several devices wraps the loss with it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NextTokenLoss(nn.Module):
    """Mean cross-entropy of `model` in nats a token; logits are made under `autocast`, their loss in float32."""

    def __init__(self, model: "PreTrainedModel", autocast: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        super().__init__()
        self.model, self.autocast = model, autocast

    def forward(self, windows: Tensor) -> Tensor:
        """Over windows (n, context + 1) of token ids, a 0-dimensional tensor."""
        with self.autocast():
            logits = self.model(windows[:, :-1]).logits
        return F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
