"""What a table tells of the tokens around its own: a lean towards the output space that needs no other model to compare with.

An input table has to tell what may follow its token, an output table what may precede it: Bertolotti and Cazzola (ICML 2024)
tie where the two agree. Profiles are positive pointwise mutual information (Levy and Goldberg 2014, arXiv 1402.3722).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tying_utils.base.checks import array, positive
from tying_utils.base.precision import plain

from . import alignment

AT_ONCE = 2**22  # tokens; as int64 pairs they take 32 MB
_LARGEST = 16_384  # tokens of a vocabulary: its two matrices hold 2 GB


@dataclass(frozen=True)
class Neighbours:
    """How much more often than by chance each token is beside each: `before` and `after` it, (V, V), nats, float32."""

    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class Lean:
    """Mean row cosines of held-out tokens, linear map: of a table's image with what comes before and what comes after."""

    before: float
    after: float

    @property
    def difference(self) -> float:
        """Return before - after: above 0 the table serves the output, below 0 the input."""
        return self.before - self.after


def neighbours(tokens: ArrayLike, vocab_size: int) -> Neighbours:
    """Return positive pointwise mutual information of neighbouring tokens of a text, `tokens` (n,) in 0 to vocab_size - 1.

    Row t, column s: max(0, log p(s beside t) / (p(s) p(t))); 0 for tokens that do not occur. Raises ValueError for fewer than 2
    tokens, ids outside the vocabulary, and vocabularies above 16,384 tokens, whose matrices would not fit.
    """
    ids, size = array("tokens", tokens), positive("vocab_size", vocab_size)
    if size > _LARGEST:
        raise ValueError(f"vocab_size: at most {_LARGEST:,} tokens are needed, got {size:,}; a (V, V) matrix would not fit")
    if ids.ndim != 1 or len(ids) < 2 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"tokens: at least 2 integers (n,) are needed, got {ids.dtype} of shape {ids.shape}")
    if ids.min() < 0 or ids.max() >= size:
        raise ValueError(f"tokens: ids from 0 to {size - 1} are needed, got {ids.min()} to {ids.max()}")
    counts = np.zeros(size * size)
    for start in range(0, len(ids) - 1, AT_ONCE):
        part = ids[start : start + AT_ONCE + 1].astype(np.int64)
        counts += np.bincount(part[:-1] * size + part[1:], minlength=size * size)
    pairs = counts.reshape(size, size)
    chance = pairs.sum(1, keepdims=True) * pairs.sum(0, keepdims=True) / pairs.sum()
    ratio = np.divide(pairs, chance, out=np.ones_like(pairs), where=pairs > 0)
    after = torch.from_numpy(np.log(ratio.clip(1)).astype(np.float32))
    return Neighbours(before=after.T.contiguous(), after=after)


@plain()
def lean(table: Tensor, before: Tensor, after: Tensor, *, folds: int = 5, seed: int = 0) -> Lean:
    """Return how well a linear map of `table` (V, d) predicts what comes before and after tokens it was not fitted on.

    before, after (V, any): rows of `Neighbours` for the same tokens. Raises ValueError as `alignment.held_out` does.
    """
    return Lean(
        before=float(alignment.held_out(table, before, "linear", folds=folds, seed=seed).mean()),
        after=float(alignment.held_out(table, after, "linear", folds=folds, seed=seed).mean()),
    )
