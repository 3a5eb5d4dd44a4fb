"""Both path gradients of a finished model beside a plain forward and backward pass, at the shape of SmolLM2-135M.

The weights and tokens are random: neither matters to what a pass costs.
"""

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.turns import Contest, Turn, device
from tying_utils import models
from tying_utils.measures.gradients import share_of

OURS, PLAIN = "share_of", "plain forward and backward pass"
CONTEXT = 256


def contests(quick: bool) -> list[Contest]:
    """At the shape of the real model, or a small one."""
    small, real = {"V": 8_192, "d": 128, "layers": 4, "tokens": 1024}, {"V": 49_152, "d": 576, "layers": 30, "tokens": 1024}
    words = "path gradients of a tied model at its present weights"
    return [Contest("share", words, (OURS, PLAIN), share, small if quick else real, same, 3 if quick else 5)]


def share(way: str, V: int, d: int, layers: int, tokens: int) -> Turn:
    """Path gradients, or all gradients, of batches of 256 tokens; the turn returns the mean loss, nats per token."""
    heads = max(1, d // 64)
    made = models.build("llama", tied=True, vocab_size=V, d_model=d, n_layers=layers, n_heads=heads, context=CONTEXT, seed=0)
    model = made.to(device())  # type: ignore[arg-type]
    context = min(CONTEXT, tokens)
    drawn = torch.randint(0, V, (tokens // context, 1, context + 1), generator=torch.Generator().manual_seed(0))
    batches = [*drawn.to(device())]

    def plain() -> float:
        model.zero_grad()
        total = 0.0
        for batch in batches:
            loss = F.cross_entropy(model(batch[:, :-1]).logits.flatten(0, 1).float(), batch[:, 1:].flatten()) / len(batches)
            loss.backward()
            total += float(loss.detach())
        return total

    return {OURS: lambda: share_of(model, batches, progress=False).loss, PLAIN: plain}[way]


def same(values: dict[str, float]) -> None:
    """Equal losses."""
    np.testing.assert_allclose(values[OURS], values[PLAIN], rtol=1e-4)
