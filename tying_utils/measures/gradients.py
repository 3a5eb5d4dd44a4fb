"""How much each path of a tied table says: norms, cosine and shares of gradients and of Adam updates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from tying_utils.base.checks import differentiable, positive
from tying_utils.base.console import tqdm
from tying_utils.base.precision import plain
from tying_utils.measures.causal import check_causal, evaluating, text_config
from tying_utils.measures.perplexity import checked_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PART = 2**18  # logits that become their own gradient at a time: 1 MiB stays in a cache


def output_share(input_norm: Tensor, output_norm: Tensor) -> Tensor:
    """Return ||output|| / (||input|| + ||output||), in [0, 1]; NaN where both are 0.

    Figure 4 of arXiv 2603.26663 draws this share. There the input norm is of the activation gradient of one micro-batch and
    the output norm of a weight gradient; on the weight gradients of both paths it compares like with like.
    """
    return output_norm / (input_norm + output_norm)


def path_statistics(input_gradient: Tensor, output_gradient: Tensor) -> dict[str, Tensor]:
    """Return the Frobenius norms of both path gradients (V, d), their cosine in [-1, 1], and the output share in [0, 1].

    Each is a 0-dimensional tensor on the gradients' device: nothing waits for the device. Raises ValueError if the shapes
    differ.
    """
    if input_gradient.shape != output_gradient.shape:
        raise ValueError(
            f"input_gradient and output_gradient: equal shapes are needed, got {tuple(input_gradient.shape)} and "
            f"{tuple(output_gradient.shape)}"
        )
    wide = torch.promote_types(input_gradient.dtype, torch.float32)  # half precision keeps three digits, and float16 no squares
    source, target = (torch.linalg.vector_norm(path, dtype=wide) for path in (input_gradient, output_gradient))
    dot = torch.dot(input_gradient.flatten().to(wide), output_gradient.flatten().to(wide))
    return {
        "input_norm": source,
        "output_norm": target,
        "cosine": dot / (source * target),
        "output_share": output_share(source, target),
    }


def inverse_scale(second_moment: Tensor, step: int, beta2: float, eps: float, *, out: Tensor | None = None) -> Tensor:
    """Return what Adam multiplies its first moment by (up to the learning rate and the first moment's own bias correction).

    1 / (sqrt(v / (1 - beta2^step)) + eps), elementwise (V, d); arXiv 1412.6980, algorithm 1. It is shared by the two paths
    of a tied table, while the first moment is linear in the gradient and splits exactly. `out` (V, d) spares an allocation.
    """
    return torch.div(second_moment, 1 - beta2**step, out=out).sqrt_().add_(eps).reciprocal_()


@dataclass(frozen=True)
class PathShare:
    """What `share_of` gives, of the gradient of the mean loss with respect to the tied table (V, d).

    - input_norm, output_norm, cosine, output_share: of the two paths, as in `path_statistics`.
    - loss: nats per token; tokens: how many were predicted.
    - positions: [start, stop) in the window at which the table is used: a token is read there, and the next one predicted.
    - groups: the same for each group of positions, where more than one was asked for: of the parts of both gradients that
      arise there, which add up to the whole ones; loss and tokens are the group's own.
    """

    input_norm: float
    output_norm: float
    cosine: float
    output_share: float
    loss: float
    tokens: int
    positions: tuple[int, int]
    groups: tuple[PathShare, ...] = field(default=(), repr=False)


@plain()
@torch.inference_mode(False)  # which also turns gradients on
def share_of(
    model: PreTrainedModel, batches: Iterable[ArrayLike | Tensor], *, groups: int = 1, progress: bool = True
) -> PathShare:
    """Measure both path gradients of a tied causal LM at its present weights, over all `batches` as in one optimizer step.

    The loss is next-token cross-entropy, averaged over all predicted tokens of all batches, with no mask: leave padding out.
    The input path's gradient is that of the lookup's output, added up by token; the output path's is that of the logits,
    softmax minus one-hot, times the final states. No other weight gets one, so that this takes less time and memory than a
    plain backward pass. How windows are split into batches changes nothing but rounding.

    Args:
        model: of transformers, with a linear output layer, on any device and in any floating dtype, its table frozen or not.
            It is read without dropout and left as it was (weights, gradients, requires_grad, mode, tie), after an error too.
        batches: micro-batches of integers (n, length), which go through the model one at a time; a length from 2 to the
            model's context and one more, as the last token is only predicted.
        groups: of neighbouring positions, into which both gradients are split; above 1, windows are of one length.
        progress: show a bar.

    Returns:
        `PathShare`. Gradients add up in float32 (float64 of a float64 model), two of (V, d) for each group.

    Raises:
        ValueError: a model that is untied, has no token table at one of its ends, embeds by more than a lookup times a number,
            sees the tokens that it is to predict, or was built in inference mode; no batch, or one that it cannot read; groups
            that do not fit the windows; a loss that is not finite.
    """
    embedding, head = _ends(model)
    if not isinstance(batches, Iterable):
        raise ValueError(f"batches: an iterable of integer windows (n, length) is needed, got {type(batches).__name__}")
    dtype, device = torch.promote_types(head.weight.dtype, torch.float32), head.weight.device
    length, losses = 0, torch.zeros(positive("groups", groups), dtype=torch.float64)
    source, target = (torch.zeros(groups, *head.weight.shape, dtype=dtype, device=device) for _ in range(2))
    counts = torch.zeros(groups, dtype=torch.int64)
    with _prepared(model, embedding, head) as caught, tqdm(batches, unit="batch", disable=not progress, leave=False) as bar:
        for number, batch in enumerate(bar):
            windows = _batch(model, batch, number, groups, length).to(device)
            length = windows.shape[1] - 1
            loss, rows, logits = _gradients(model, embedding, windows, caught, dtype)
            for group, (start, stop) in enumerate(_spans(length, groups)):
                span = slice(start, stop)
                losses[group] += loss[:, span].sum(dtype=torch.float64).cpu()
                counts[group] += loss[:, span].numel()
                source[group].index_add_(0, windows[:, span].flatten(), rows[:, span].flatten(0, 1))
                target[group].addmm_(logits[:, span].flatten(0, 1).T, caught["states"][:, span].flatten(0, 1).to(dtype))
            caught.clear()
            del rows, logits  # or those of the next batch would be made beside them
    if not length:
        raise ValueError("batches: at least one of windows (n, length) is needed, got none; a generator serves only once")
    if not math.isfinite(total := float(losses.sum())):
        raise ValueError(f"model: a finite loss is needed, on these batches it adds up to {total}")
    spans, tokens = _spans(length, groups), int(counts.sum())

    def made(group: int, loss: float, count: int, span: tuple[int, int], parts: tuple[PathShare, ...] = ()) -> PathShare:
        values = {name: float(value) for name, value in path_statistics(source[group], target[group]).items()}
        values |= {name: values[name] / tokens for name in ("input_norm", "output_norm")}  # of the mean loss, not the sum
        return PathShare(**values, loss=loss / count, tokens=count, positions=span, groups=parts)

    parts = [made(group, float(losses[group]), int(counts[group]), span) for group, span in enumerate(spans)]
    for group in range(1, groups):
        source[0] += source[group]
        target[0] += target[group]
    return parts[0] if groups == 1 else made(0, total, tokens, (0, length), tuple(parts))


def _ends(model: PreTrainedModel) -> tuple[nn.Embedding, nn.Linear]:
    """Return the two modules that use the tied table, or raise ValueError."""
    text_config(model)  # of a transformers model
    ends: tuple[Any, Any] = model.get_input_embeddings(), model.get_output_embeddings()
    if not (isinstance(ends[0], nn.Embedding) and isinstance(ends[1], nn.Linear)):
        kinds = " and ".join(type(end).__name__ for end in ends)
        raise ValueError(f"model: a causal LM with an Embedding and a Linear output layer is needed, got {kinds}")
    if ends[0].scale_grad_by_freq or ends[0].max_norm is not None:
        raise ValueError(
            "model: an embedding that only looks up is needed, this one's scale_grad_by_freq or max_norm depends on the batch; "
            "build it without"
        )
    if ends[0].weight.is_meta:
        raise ValueError("model: its weights are on the device meta and hold no values; load them first")
    if ends[0].weight.data_ptr() != ends[1].weight.data_ptr():
        raise ValueError(
            "model: a tied model is needed, the tables of this one are two storages; where it should be tied, call "
            "model.tie_weights(), and of an untied model take each table's own gradient after loss.backward()"
        )
    differentiable("model", ends[1].weight)
    check_causal(model)
    return ends


def _spans(length: int, groups: int) -> list[tuple[int, int]]:
    return [(length * group // groups, length * (group + 1) // groups) for group in range(groups)]


def _batch(model: PreTrainedModel, batch: Any, number: int, groups: int, length: int) -> Tensor:
    """Return a micro-batch as windows that the model can read and that fit the groups and those before them, or ValueError."""
    try:
        windows = checked_windows(model, batch)
    except ValueError as error:
        raise ValueError(f"batches: in number {number} (from 0), {error}") from error
    if groups > 1 and length and windows.shape[1] != length + 1:
        raise ValueError(f"batches: groups need windows of one length, got {length + 1} tokens and then {windows.shape[1]}")
    if windows.shape[1] <= groups:
        raise ValueError(f"groups: at most one for each predicted token of a window, {windows.shape[1] - 1}, got {groups}")
    return windows


@contextmanager
def _prepared(model: PreTrainedModel, embedding: nn.Embedding, head: nn.Linear) -> Iterator[dict[str, Tensor]]:
    """Freeze the model, and catch what its lookup gives (as a leaf that asks for a gradient) and its head takes and gives."""
    caught: dict[str, Tensor] = {}

    def read(_: nn.Module, inputs: Any, rows: Tensor) -> Tensor:
        caught["rows"] = rows.detach().requires_grad_()
        return caught["rows"]

    def said(_: nn.Module, inputs: Any, logits: Tensor) -> None:
        caught["states"], caught["logits"] = inputs[0].detach(), logits

    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    # First, so that what a hook of the caller's does to the logits comes after what is caught here, and autograd sees it.
    hooks = [embedding.register_forward_hook(read), head.register_forward_hook(said, prepend=True)]
    try:
        model.requires_grad_(False)
        with evaluating(model):
            yield caught
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, was in asked:
            parameter.requires_grad_(was)


def _gradients(
    model: PreTrainedModel, embedding: nn.Embedding, windows: Tensor, caught: dict[str, Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses (n, T) in nats, and their sum's gradients at the rows read (n, T, d) and the head's logits (n, T, V)."""
    ids = windows[:, :-1]
    logits = model(ids).logits
    # Gemma and others read their rows times a number, which the gradient of what is read lacks.
    scale = getattr(embedding, "embed_scale", 1.0)
    if not torch.allclose(caught["rows"], (embedding.weight[ids] * scale).to(caught["rows"].dtype), rtol=0.02):
        raise ValueError(
            f"model: its {type(embedding).__name__} is no lookup times a number; the input path has no closed form"
        )
    # The graph does not hold the logits that a linear layer gave, so that their gradient takes their place.
    slope = logits.detach()
    if slope.dtype != dtype or logits is not caught["logits"]:
        slope = slope.to(dtype, copy=True)
    losses = _differentiate(slope.flatten(0, 1), windows[:, 1:].flatten()).view_as(ids)
    # Between the head's logits and the model's there may be a scale or a soft cap.
    rows, of_head = torch.autograd.grad(logits, [caught["rows"], caught["logits"]], slope.to(logits.dtype))
    rows = rows.to(dtype) * scale
    if embedding.padding_idx is not None:  # whose row autograd gives nothing
        rows.masked_fill_((ids == embedding.padding_idx)[..., None], 0)
    return losses, rows, slope if logits is caught["logits"] else of_head.to(dtype)


def _differentiate(logits: Tensor, targets: Tensor) -> Tensor:
    """Turn logits (n, V) into softmax minus one-hot in place, and return the losses (n,) that this is the gradient of."""
    rows, losses = max(1, _PART // logits.shape[1]), []
    for part, wanted in zip(logits.split(rows), targets[:, None].split(rows), strict=True):
        top = part.logsumexp(1, keepdim=True)
        losses.append((top - part.gather(1, wanted)).squeeze(1))
        part.sub_(top).exp_().scatter_add_(1, wanted, part.new_full(wanted.shape, -1))
    return torch.cat(losses)
