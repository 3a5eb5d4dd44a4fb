"""How well a model predicts held-out text: loss, perplexity and bits per byte, with what other text would change of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from tying_utils.base.checks import positive
from tying_utils.base.console import tqdm
from tying_utils.base.precision import plain
from tying_utils.measures.causal import as_array, check_causal, context_of, evaluating, token_batch
from tying_utils.measures.statistics import Interval, Range, mean_interval

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS_AT_ONCE = 4096  # of a forward pass


@dataclass(frozen=True)
class Perplexity:
    """What `perplexity` gives. The standard error and the 95 % interval (Student t) tell what other windows would do.

    - loss, standard_error, interval: nats per predicted token; the last two are nan for one window.
    - tokens: how many were predicted: all but the first of each window.
    - losses: float64 (n,), nats per token in each window; loss is their mean, as windows are of one length.
    - windows: 16 hexadecimal digits of the sha256 of the windows' ids, by which `paired` knows them again.
    """

    loss: float
    standard_error: float
    interval: Range
    tokens: int
    losses: NDArray[np.float64] = field(repr=False, compare=False)
    windows: str = field(repr=False)

    @property
    def perplexity(self) -> float:
        """Return exp(loss): among how many equally likely tokens such a model chooses."""
        return float(np.exp(self.loss))

    @property
    def perplexity_interval(self) -> Range:
        """Return exp of `interval`, so it is not symmetric about `perplexity`."""
        return Range(float(np.exp(self.interval.low)), float(np.exp(self.interval.high)))

    @property
    def nats(self) -> float:
        """Return the loss of all predicted tokens together, as `bits_per_byte` takes it."""
        return self.loss * self.tokens


@plain()
def perplexity(
    model: PreTrainedModel, tokens: ArrayLike | Tensor, *, batch_size: int | None = None, progress: bool = True
) -> Perplexity:
    """Return the held-out next-token loss of `model` and its perplexity, exp(loss).

    Each window is read by itself: its first token is given, every other is predicted from those before it. Tokens early in a
    window have little to go by, so longer windows score better: compare models on windows of one length. The unit of the
    standard error is the window; neighbouring windows of one text are alike, which makes it too small if anything.

    Args:
        model: a Hugging Face causal LM, read as it is, on its device, without dropout; left as it was.
        tokens: integers (n, length), as `Corpus.windows` gives them; a length from 2 to the model's context and one more,
            as the last token is only predicted.
        batch_size: windows at once (default: as many as hold 4,096 tokens).
        progress: show a bar.

    Returns:
        `Perplexity`. Log-softmax is computed in float32 from the logits of the model's own dtype; sums are float64.

    Raises:
        ValueError: tokens that the model cannot read or windows of one token, a batch size that is not positive, a model that
            sees the tokens that it is to predict (BERT), or one whose loss is not finite.
    """
    check_causal(model)
    return read(model, tokens, batch_size, progress)


def read(model: PreTrainedModel, tokens: ArrayLike | Tensor, batch_size: int | None, progress: bool) -> Perplexity:
    """Return what `perplexity` does, of a model that is known to be causal: nothing else runs through it, and its hooks."""
    ids, sums = checked_windows(model, tokens), []
    for losses in _token_losses(model, ids, batch_size, progress):
        sums.append(losses.double().sum())
    losses = torch.stack(sums).numpy() / (ids.shape[1] - 1)
    if not np.isfinite(losses).all():
        bad = int((~np.isfinite(losses)).sum())
        raise ValueError(
            f"model: a finite loss is needed, got NaN or infinity in {bad} of {len(losses)} windows; try model.float()"
        )
    over = mean_interval(losses)
    error = float(losses.std(ddof=1) / math.sqrt(len(losses))) if len(losses) > 1 else math.nan
    digest = hashlib.sha256(str(tuple(ids.shape)).encode() + ids.numpy().astype("<i8").tobytes()).hexdigest()[:16]
    return Perplexity(over.mean, error, Range(over.low, over.high), ids[:, 1:].numel(), losses, digest)


@plain()
def by_token(
    model: PreTrainedModel, tokens: ArrayLike | Tensor, *, batch_size: int | None = None, progress: bool = True
) -> NDArray[np.float32]:
    """Return the loss of every predicted token, nats, float32 (n, length - 1); arguments and errors as in `perplexity`."""
    check_causal(model)
    return torch.stack([*_token_losses(model, checked_windows(model, tokens), batch_size, progress)]).numpy()


def _token_losses(model: PreTrainedModel, ids: Tensor, batch_size: int | None, progress: bool) -> Iterator[Tensor]:
    """Yield the losses (length - 1,) of each window, float32 on the CPU."""
    at_once = max(1, _TOKENS_AT_ONCE // ids.shape[1]) if batch_size is None else positive("batch_size", batch_size)
    with (
        evaluating(model),
        torch.inference_mode(),
        tqdm(total=len(ids), unit="window", disable=not progress, leave=False) as bar,
    ):
        for rows in ids.to(model.device).split(at_once):
            # A window at a time, as float32 log-probabilities of a whole batch would take as much memory as its logits.
            for logits, row in zip(model(rows[:, :-1]).logits, rows, strict=True):
                yield cross_entropy(logits.float(), row[1:], reduction="none").cpu()
            bar.update(len(rows))


def paired(first: Perplexity, second: Perplexity) -> Interval:
    """Return the second loss minus the first, nats per token, with its 95 % interval (Student t) over the windows of both.

    What makes a window hard is common to both models and drops out, so the interval is narrower than the two of the models
    would suggest. exp(mean) is the ratio of perplexities. Raises ValueError if the two are not of the same windows.
    """
    if first.windows != second.windows:
        raise ValueError(
            f"first and second: perplexities on the same windows are needed, got {len(first.losses)} windows ({first.windows}) "
            f"and {len(second.losses)} ({second.windows}); for models with unlike tokenizers see bits_per_byte"
        )
    return mean_interval(second.losses - first.losses)


def bits_per_byte(nats: float, size: int) -> float:
    """Return the loss of a text in bits per byte, for models whose tokenizers differ, so that losses per token do not compare.

    Args:
        nats: loss of the whole text, as `Perplexity.nats`.
        size: bytes of UTF-8 of the text that was predicted. The first token of each window is not: leave its bytes out.

    Windows of one number of tokens are unlike spans of text under unlike tokenizers: cut the text itself, and add up the nats
    and the bytes of its pieces. Raises ValueError for nats that are negative or not finite, or a size below 1.
    """
    if isinstance(nats, bool) or not isinstance(nats, Real) or not 0 <= nats < math.inf:
        raise ValueError(f"nats: a finite number of at least 0 is needed, got {nats!r}")
    return nats / math.log(2) / positive("size", size)


def checked_windows(model: PreTrainedModel, tokens: ArrayLike | Tensor) -> Tensor:
    """Return `tokens` as windows (n, length), int64 on the CPU, that `model` can predict from their first on, or ValueError."""
    array = as_array(tokens)
    if array.ndim != 2 or len(array) == 0 or array.shape[1] < 2:
        raise ValueError(f"tokens: windows (n, length) of at least 2 tokens are needed, got shape {tuple(array.shape)}")
    context = context_of(model)
    if context and array.shape[1] > context + 1:
        raise ValueError(
            f"tokens: windows of at most {context + 1} tokens are needed, the context and a next one, got {array.shape[1]}; "
            "cut them"
        )
    return torch.cat((token_batch(model, array[:, :-1]), token_batch(model, array[:, -1:])), 1).cpu()
