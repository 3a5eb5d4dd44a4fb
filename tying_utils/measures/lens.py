"""How far each layer is from the model's own prediction: tuned lens and logit lens (Belrose et al., arXiv 2303.08112).

A lens reads a hidden state as if it were the last one. The lenses are tuned-lens' own classes, over an `Unembed` that takes
any Hugging Face causal LM whose logits are head(norm(state)), scaled or capped or not; `causal.final_norm` says which are not
so and are refused. An `Unembed` is a frozen copy of the model's final norm and head: it goes stale if the model
trains on, and `kl_by_layer` refuses a stale one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from tying_utils.base.checks import above_zero, integer, positive
from tying_utils.base.checks import seed as checked_seed
from tying_utils.base.console import tqdm
from tying_utils.base.precision import plain
from tying_utils.measures.causal import Head, Reader, evaluating, final_norm, some_tokens, text_config, token_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from tuned_lens.nn.lenses import Lens, LogitLens, TunedLens
    from tuned_lens.nn.unembed import Unembed

Indexing = Literal["matched", "published"]
_TOKENS_AT_ONCE = 4096  # of a forward pass
_LOGITS_AT_ONCE = 2**24  # entries of a (tokens, V) block: 64 MB in float32


@cache
def _unembed_class() -> type[Unembed]:
    # Loading tuned_lens takes seconds (it loads transformer_lens), so that waits until a lens is asked for.
    from tuned_lens.nn.unembed import Unembed

    class CausalUnembed(Unembed):
        """tuned-lens' Unembed for any Hugging Face causal LM, in float32; see `unembed`."""

        def __init__(self, model: PreTrainedModel) -> None:
            nn.Module.__init__(self)  # the parent's own initialiser refuses most architectures, and has no switch for it
            self.final_norm = copy.deepcopy(final_norm(model)).float()
            self.unembedding = Head(model)
            self.requires_grad_(False)

    return CausalUnembed


@torch.no_grad()
def unembed(model: PreTrainedModel, tokens: ArrayLike | Tensor | None = None) -> Unembed:
    """Return a frozen float32 copy of the model's final norm and head: state before the final norm (..., d) -> logits (..., V).

    What the architecture makes of its logits, a scale (Cohere, Granite) or a soft cap (Gemma 2), is in the head's copy.
    It is compared with the model on up to 4 rows of 32 of `tokens` (n, T), and on ids from all over the vocabulary.

    It goes stale if the model trains on. Raises ValueError if the model has no final norm that its head reads (see
    `causal.final_norm`), or if its logits are not so made of it, or not finite.
    """
    text_config(model)  # names what is no model
    frozen, caught = _unembed_class()(model), list[Tensor]()
    own = some_tokens(model, 4, 32) if tokens is None else token_batch(model, tokens)[:, :32].cpu()
    # Beside the caller's, which may all be padding: with a state of 0 any scale agrees.
    ids = torch.cat([own[:: max(1, len(own) // 4)][:4], some_tokens(model, 2, own.shape[1])]).to(model.device)
    hook = final_norm(model).register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        with evaluating(model):
            theirs = model(input_ids=ids, use_cache=False).logits.float()
    finally:
        hook.remove()
    ours = frozen(caught[-1].float())
    if not bool(torch.isfinite(theirs).all()):
        raise ValueError(f"model: finite logits are needed, this {type(model).__name__} gives NaN or infinity; it has diverged")
    near = 0.005 if model.dtype == torch.float32 else 0.05  # of the logits' size: above TF32's, and bfloat16's, rounding
    if not torch.allclose(ours, theirs, rtol=near, atol=near * float(theirs.std())):
        raise ValueError(
            f"model: one whose logits are head(norm(state)), scaled and capped as its configuration says, is needed; those of "
            f"this {type(model).__name__} differ by up to {float((ours - theirs).abs().max()):.2g}"
        )
    return frozen


@plain()
def logit_lens(model: PreTrainedModel, tokens: ArrayLike | Tensor | None = None) -> LogitLens:
    """Return tuned-lens' LogitLens: each hidden state goes straight to `unembed(model, tokens)`. Errors as there."""
    from tuned_lens.nn.lenses import LogitLens

    return LogitLens(unembed(model, tokens))


@plain()
def states(model: PreTrainedModel, tokens: ArrayLike | Tensor) -> Tensor:
    """Return the states that lenses read, float32 (L + 1, n T, d) on the model's device: hidden_states[0 .. L-1], then the
    last one before the final norm. ValueError for `tokens` (n, T) or a `model` that cannot be read."""
    ids, read = token_batch(model, tokens), Reader(model)
    with evaluating(model):
        return torch.cat([read(batch) for batch in _batches(ids)], 1)


def _batches(ids: Tensor) -> tuple[Tensor, ...]:
    return ids.split(max(1, _TOKENS_AT_ONCE // ids.shape[1]))


def _shuffled(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    whole = count - count % size or count  # a last batch of a few would weigh as much as a whole one
    while True:
        yield from torch.randperm(count, generator=generator)[:whole].split(size)


def _least_squares(sums: list[Tensor], count: int) -> tuple[Tensor, ...]:
    """Return the least-squares map from each state to the last one, in coordinates where Adam is fast.

    There, inputs are uncorrelated and of one scale and outputs are the last state's principal axes over its standard
    deviation. From the float64 sums of states, of their products, and of the last state's products with the others:
    weight (L, d, d) and bias (L, 1, d) in those coordinates; mean state (L, 1, d), to_white (L, d, d), from_axes (d, d).
    """
    mean, second, cross = (total / count for total in sums)
    values, axes = torch.linalg.eigh(second - mean[:, :, None] * mean[:, None, :])
    values = values.clamp(min=1e-12)  # rounding makes some negative where states hardly vary
    scale = values[-1].mean().sqrt()
    values = values + 0.1 * values.mean(-1, keepdim=True)  # a ridge, for axes with little variance
    to_white, to_axes = (axes[:-1] * values[:-1, None, :].rsqrt()).mT, axes[-1].mT / scale
    weight = to_axes @ (cross - mean[-1][:, None] * mean[:-1, None, :]) @ to_white.mT
    bias = (to_axes @ mean[-1]).repeat(len(weight), 1, 1)
    return weight, bias, mean[:-1, None], to_white, axes[-1] * scale


@plain()
@torch.inference_mode(False)  # which also turns gradients on
def train_lens(
    model: PreTrainedModel,
    tokens: ArrayLike | Tensor,
    *,
    steps: int = 400,
    tokens_per_step: int = 128,
    learning_rate: float = 1e-2,
    seed: int = 0,
    cache_bytes: int = 2**30,
    progress: bool = True,
) -> TunedLens:
    """Train a tuned lens: translator i maps hidden_states[i], i = 0 .. L-1, so that the model's own final norm and head
    read its final prediction there (arXiv 2303.08112, minimising KL(model || lens) summed over layers).

    Every translator starts from the least-squares map to the last state, and Adam with a falling rate polishes all of them
    together. With 4 layers, d 128 and V 2048 the defaults over 60,000 tokens end within 0.02 bits of a converged lens at
    each layer. What remains falls as one over the number of different tokens that are used.

    Args:
        model: a Hugging Face causal LM; its parameters, their gradients and its training mode are left as they were.
        tokens: integers (n, T), other text than the lens is judged on; about `steps * tokens_per_step` of them or more.
        steps: of the optimizer.
        tokens_per_step: drawn from all rows, without repetition until all have been used. Where the states are not
            cached: as many whole rows as hold them.
        learning_rate: at the start, in units of the last state's standard deviation; falls to 0 linearly.
        seed: of the order of tokens. The global generators are neither read nor written.
        cache_bytes: memory for the float32 states of all tokens, 4 (L + 1) n T d bytes on the model's device. Above that
            they are computed anew at each step, which is slower.
        progress: show a bar.

    Returns:
        tuned-lens' own TunedLens in float32 on the model's device. `lens.save(folder)` keeps its translators, and
        `TunedLens.from_unembed_and_pretrained(unembed(model), folder)` reads them again.

    Raises:
        ValueError: tokens that the model cannot read, a step count, size or rate that is not positive, a model whose logits
            `unembed` does not give, or a rate at which the lens diverged: on the batch that it saw first it
            ends with more than twice the KL that it started with (and 0.1 nats), or with none that is finite.
    """
    from tuned_lens.nn.lenses import TunedLens, TunedLensConfig

    ids = token_batch(model, tokens)
    steps = positive("steps", steps)
    tokens_per_step = positive("tokens_per_step", tokens_per_step)
    learning_rate = above_zero("learning_rate", learning_rate)
    cache_bytes = integer("cache_bytes", cache_bytes, 0)
    generator = torch.Generator().manual_seed(checked_seed("seed", seed))
    frozen, read = unembed(model, ids), Reader(model)
    head, layers = cast(Head, frozen.unembedding), read.layers
    d = head.in_features
    fits = 4 * (layers + 1) * ids.numel() * d <= cache_bytes

    with evaluating(model):
        kept, sums = [], [torch.zeros((), dtype=torch.float64)] * 3
        for batch in tqdm(_batches(ids), desc="hidden states", disable=not progress, leave=False):
            states = read(batch)
            products = states.sum(1), states.mT @ states, states[-1].mT @ states[:-1]
            sums = [total + product.cpu().double() for total, product in zip(sums, products, strict=True)]
            if fits:
                kept.append(states)
        pool = torch.cat(kept, 1) if fits else None
        del kept

        start, start_bias, center, to_white, from_axes = (
            value.to(model.device, torch.float32) for value in _least_squares(sums, ids.numel())
        )
        weight, bias = nn.Parameter(start), nn.Parameter(start_bias)
        optimizer = torch.optim.Adam([weight, bias], lr=learning_rate, betas=(0.8, 0.99))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        rows_per_step = math.ceil(tokens_per_step / ids.shape[1])
        order = _shuffled(*((ids.numel(), tokens_per_step) if fits else (len(ids), rows_per_step)), generator)

        def seen(picked: Tensor) -> tuple[Tensor, Tensor]:
            """Return states (L + 1, n, d), and what the lens makes of all but the last, ready for the unembedding."""
            states = read(ids[picked]) if pool is None else pool[:, picked.to(pool.device)]
            white = (states[:-1] - center) @ to_white.mT
            return states, frozen.final_norm(torch.baddbmm(bias, white, weight.mT) @ from_axes.mT)

        @torch.no_grad()
        def lacking(picked: Tensor) -> list[float]:
            """Return KL(model || lens) by layer, nats per token, on some of the tokens."""
            states, normed = seen(picked)
            log_p = frozen(states[-1]).log_softmax(-1)
            return [float((log_p.exp() * (log_p - head(x).log_softmax(-1))).sum(-1).mean()) for x in normed]

        first, started, done = None, [], 0
        try:
            for picked in tqdm(islice(order, steps), desc="tuned lens", total=steps, disable=not progress):
                if first is None:
                    first, started = picked, lacking(picked)
                states, normed = seen(picked)
                with torch.no_grad():
                    p = frozen(states[-1]).softmax(-1)
                    # d KL / d logits is q - p; to write that down takes 0.6 of the time of differentiating the loss.
                    slopes = [head.gradient(q := head(x), q.softmax(-1) - p) for x in normed]
                optimizer.zero_grad()
                normed.backward(torch.stack(slopes) / len(p))
                optimizer.step()
                schedule.step()
                done += 1
        except KeyboardInterrupt:
            words = f"the lens was interrupted after {done} of {steps} steps and is dropped; the model is as it was"
            raise KeyboardInterrupt(words) from None
        assert first is not None
        ended = lacking(first)
    lost = [i for i, (end, start) in enumerate(zip(ended, started, strict=True)) if not end <= 2 * start + 0.1]
    if lost:
        raise ValueError(
            f"learning_rate: the lens diverged at {learning_rate:g}: at layer {lost[0]} it is {ended[lost[0]]:.3g} nats per "
            f"token from the model's prediction, {started[lost[0]]:.3g} at its start; a lower one would do"
        )

    with torch.device("meta"):  # TunedLens draws initial values; here they neither cost nor move the global generator
        lens = TunedLens(frozen, TunedLensConfig(model.config.name_or_path or "", d_model=d, num_hidden_layers=layers))
    lens.layer_translators.to_empty(device=model.device)
    with torch.no_grad():
        maps = from_axes @ weight @ to_white
        offsets = bias @ from_axes.mT - center @ maps.mT
        for translator, linear, offset in zip(lens, maps, offsets, strict=True):
            cast(nn.Linear, translator).weight.copy_(linear).diagonal().sub_(1)  # translators add to the state
            cast(nn.Linear, translator).bias.copy_(offset[0])
    return lens


def _current(model: PreTrainedModel, lens: Lens, layers: int, ids: Tensor) -> Lens:
    """Return a float32 copy of `lens` on the model's device; ValueError unless it reads the model as it is now."""
    lens = copy.deepcopy(lens).float().to(model.device)
    ours, theirs = unembed(model, ids).state_dict(), lens.unembed.state_dict()
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    translators = getattr(lens, "layer_translators", None)  # a logit lens has none
    if not same or (translators is not None and len(translators) != layers):
        raise ValueError("lens: the lens belongs to another model or an earlier step: train it anew")
    return lens


@plain()
@torch.no_grad()
def kl_by_layer(
    model: PreTrainedModel, lens: Lens, tokens: ArrayLike | Tensor, *, indexing: Indexing = "matched"
) -> NDArray[np.float64]:
    """Return how far each layer is from the model's own prediction, KL(model || lens), mean over all tokens.

    Figure 2 of arXiv 2603.26663.

    Args:
        model: a Hugging Face causal LM with L layers; left as it was.
        lens: of `train_lens` or `logit_lens`, for this model at this step.
        tokens: integers (n, T), text that the lens was not trained on.
        indexing: "matched" reads hidden_states[i] by translator i, as it was trained, for i < L; point L is the model's own
            output, 0 exactly. "published" reproduces the curve as printed: hidden_states[k] is read by translator k - 1 for
            k >= 1, and the last state, already normalised, goes through a lens and the norm again. Point 0 is the same.

    Returns:
        float64 array (L + 1,), bits per token. States and logits are float32, their sum is float64.

    Raises:
        ValueError: an unknown indexing, tokens that the model cannot read, a lens of another model or an earlier step, or one
            that has diverged, whose KL is no finite number.
    """
    if indexing not in get_args(Indexing):
        raise ValueError(f"indexing: one of {', '.join(map(repr, get_args(Indexing)))} is needed, got {indexing!r}")
    if not isinstance(lens, nn.Module) or not hasattr(lens, "unembed"):
        raise ValueError(f"lens: one of train_lens or logit_lens is needed, got {type(lens).__name__}")
    ids, read = token_batch(model, tokens), Reader(model)
    lens, layers = _current(model, lens, read.layers, ids), read.layers
    at_once = max(1, _LOGITS_AT_ONCE // cast(Head, lens.unembed.unembedding).out_features)
    nats = np.zeros(layers + 1)
    with evaluating(model):
        for states in (part for batch in _batches(ids) for part in read(batch).split(at_once, dim=1)):
            log_p = lens.unembed(states[-1]).log_softmax(-1)
            p = log_p.exp()
            if indexing == "published":
                last = lens.unembed.final_norm(states[-1])
                pairs = [(0, states[0]), *((k - 1, states[k]) for k in range(1, layers)), (layers - 1, last)]
            else:
                pairs = list(enumerate(states[:-1]))
            for point, (translator, state) in enumerate(pairs):
                log_q = lens(state, translator).log_softmax(-1)
                nats[point] += float((p * (log_p - log_q)).sum(-1).cpu().double().sum())
    if not np.isfinite(nats).all():
        point = int(np.isfinite(nats).argmin())
        raise ValueError(
            f"lens: its KL at layer {point} is {nats[point]:g}: it has diverged; train it at a lower learning_rate"
        )
    return nats / ids.numel() / math.log(2)
