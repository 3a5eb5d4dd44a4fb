"""What a model's loss becomes without one of its layers, or without its token embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from tying_utils.base.precision import plain
from tying_utils.measures.causal import blocks, check_causal, depth, stream
from tying_utils.measures.perplexity import read

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Part(NamedTuple):
    layer: int
    component: str
    module: nn.Module


@plain()
def loss_without_layers(model: PreTrainedModel, tokens: ArrayLike | Tensor, *, batch_size: int | None = None) -> pd.DataFrame:
    """Return the loss of `model` without each of its blocks, and without its token embedding, one at a time.

    What a part adds to the residual stream at each position is replaced by a constant: by zero, or by the mean of what it
    adds over all positions that are read (mean ablation, Wang et al., arXiv 2211.00593, section 2), which takes away only
    what it says of the text at hand. All that comes after runs on the stream so changed. It asks what arXiv 2603.26663 infers
    from a lens: whether the early layers of a tied model contribute less.

    A block adds its output minus its input, attention and MLP together, wherever it norms them. The embedding is the token
    table's row alone: positions that are learned and added to it (GPT-2, GPT-Neo) stay.

    Args:
        model: a Hugging Face causal LM with L blocks in one torch.nn.ModuleList, which hand one stream (n, T, d) on from each
            to the next. It is read as it is, on its device, without dropout or gradient, and left as it was.
        tokens: integers (n, length), held-out text, read as `perplexity` reads it.
        batch_size: windows at once (default: as many as hold 4,096 tokens).

    Returns:
        Two rows for each part, 2 (L + 1) in the order of the stream, with the columns
        layer: 0 .. L-1; -1 for the embedding.
        component: "embedding", "block".
        how: "zero", "mean".
        loss: nats per predicted token, without the part; sums are float64.
        increase: loss minus that of the whole model, nats per token; exactly 0 where the part adds nothing.

    Raises:
        ValueError: what `perplexity` refuses, or a model whose blocks are not found, or are not such a list.
    """
    parts, sums = _parts(model), dict[int, Any]()
    last: tuple[int, Tensor | None] = -1, None  # the part that was run last, and the stream after it

    def add(part: _Part, before: Tensor, after: Tensor) -> None:
        nonlocal last
        handed_on = part.layer < 1 or (last[1] is not None and torch.equal(before, last[1]))
        if part.layer >= 0 and (last[0] != part.layer - 1 or not handed_on):
            raise _unlike(model, f"block {part.layer} does not go on from where the part before it ended")
        # In float64 on the CPU, as not every device has it.
        added = (after.cpu().double() - before.cpu().double()).flatten(0, 1).sum(0)
        sums[part.layer], last = sums.get(part.layer, 0) + added, (part.layer, after)

    with ExitStack() as hooks:
        for part in parts:
            hooks.enter_context(_hooked(model, part, add))
        whole = read(model, tokens, batch_size, progress=False)
    if len(sums) < len(parts):
        raise _unlike(model, f"only {len(sums)} of its {len(parts)} parts were run")
    check_causal(model)

    rows = []
    for part in parts:
        mean = sums[part.layer] / whole.tokens  # a window's last token is not read, so as many are read as are predicted
        for how, constant in (("zero", torch.zeros_like(mean)), ("mean", mean)):
            with _hooked(model, part, lambda part, before, after, constant=constant: before + constant.to(after)):
                loss = read(model, tokens, batch_size, progress=False).loss
            rows.append((part.layer, part.component, how, loss, loss - whole.loss))
    return pd.DataFrame(rows, columns=["layer", "component", "how", "loss", "increase"])


def _unlike(model: PreTrainedModel, what: str) -> ValueError:
    return ValueError(
        f"model: {what} in {type(model.base_model).__name__}; a causal LM is needed with one torch.nn.ModuleList of "
        f"{depth(model)} blocks, each of which takes the stream (n, T, d) first and returns it alone or first"
    )


def _parts(model: PreTrainedModel) -> list[_Part]:
    """Return the token embedding and each block, in the order of the stream."""
    if (found := blocks(model)) is None:
        raise _unlike(model, "no list of blocks was found")
    embedding = _Part(-1, "embedding", model.get_input_embeddings())
    return [embedding, *(_Part(i, "block", block) for i, block in enumerate(found))]


@contextmanager
def _hooked(model: PreTrainedModel, part: _Part, then: Callable[[_Part, Tensor, Tensor], Tensor | None]) -> Iterator[None]:
    """Give `then` the stream (n, T, d) before and after `part` whenever it is run, and go on with what it returns, if any."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        after: Any = output[0] if isinstance(output, tuple) and output else output
        before = stream(args, kwargs)
        if part.component == "embedding":  # the first to write to the stream
            before = torch.zeros_like(after)
        if not (isinstance(before, Tensor) and isinstance(after, Tensor) and before.shape == after.shape):
            raise _unlike(model, f"{part.component} {part.layer} returns no stream of the shape that it was given")
        changed = then(part, before, after)
        return (changed, *output[1:]) if changed is not None and isinstance(output, tuple) else changed

    handle = part.module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
