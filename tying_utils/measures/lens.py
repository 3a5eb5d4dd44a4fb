"""How far each layer is from the model's own prediction: tuned lens and logit lens (Belrose et al., arXiv 2303.08112).

A lens reads a hidden state as if it were the last one: tuned-lens' classes are used as they are, over an `Unembed` that
knows any Hugging Face causal LM. An `Unembed` is a frozen copy of the model's final norm and output table: it goes stale
if the model trains on, and `kl_by_layer` refuses a stale one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from tying_utils.measures._checks import positive

if TYPE_CHECKING:
    from tuned_lens.nn.lenses import LogitLens, TunedLens
    from tuned_lens.nn.unembed import Unembed

Indexing = Literal["matched", "published"]
_LOGITS_AT_ONCE = 2**24  # entries of one (tokens, V) block, 64 MB in float32


def final_norm(model: PreTrainedModel) -> nn.Module:
    """The norm between the last block and the head; ValueError if the base model has none by a known name."""
    for name in ("norm", "ln_f", "final_layer_norm"):
        if isinstance(norm := getattr(model.base_model, name, None), nn.Module):
            return norm
    raise ValueError(
        f"model: no final norm in {type(model.base_model).__name__}; a causal LM whose base model names it "
        "norm, ln_f or final_layer_norm is needed"
    )


def token_batch(model: PreTrainedModel, tokens: ArrayLike | Tensor) -> Tensor:
    """Return `tokens` as an int64 tensor (n, T) that `model` can read, else raise ValueError."""
    ids = tokens if isinstance(tokens, Tensor) else torch.from_numpy(np.array(tokens))
    vocab, context = model.config.vocab_size, getattr(model.config, "max_position_embeddings", None)
    if ids.ndim != 2 or ids.numel() == 0:
        raise ValueError(f"tokens: a non-empty array of shape (n, T) is needed, got shape {tuple(ids.shape)}")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"tokens: integers are needed, got {ids.dtype}")
    ids = ids.long()
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab:
        raise ValueError(f"tokens: ids from 0 to {vocab - 1} are needed, got {low} to {high}")
    if context is not None and ids.shape[1] > context:
        raise ValueError(f"tokens: the model reads at most {context} tokens a row, got {ids.shape[1]}; cut the rows")
    return ids


@cache
def _unembed_class() -> type[Unembed]:
    # tuned_lens loads transformer_lens, which takes seconds: neither is loaded before a lens is asked for.
    from tuned_lens.nn.unembed import Unembed

    class CausalUnembed(Unembed):
        """tuned-lens' Unembed for any Hugging Face causal LM, in float32; see `unembed`."""

        def __init__(self, model: PreTrainedModel) -> None:
            nn.Module.__init__(self)  # the parent's own __init__ knows few architectures
            self.final_norm = copy.deepcopy(final_norm(model)).float()
            self.unembedding = copy.deepcopy(model.get_output_embeddings()).float()
            self.requires_grad_(False)

    return CausalUnembed


def unembed(model: PreTrainedModel) -> Unembed:
    """A frozen float32 copy of the model's final norm and head: state before the final norm (..., d) -> logits (..., V).

    Raises:
        ValueError: the model has no final norm, or its logits are not head(norm(state)), as with a scaled head.
    """
    copied = _unembed_class()(model)
    probe = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with _evaluating(model), torch.no_grad():
        ours, theirs = copied(_states(model, probe)[-1]), model(probe).logits[0].float()
    if not torch.allclose(ours, theirs, rtol=0.05, atol=0.05 * float(theirs.std())):  # wide enough for bfloat16
        raise ValueError(f"model: the logits of {type(model).__name__} are not its head applied to its final norm")
    return copied


def logit_lens(model: PreTrainedModel) -> LogitLens:
    """tuned-lens' LogitLens: every hidden state goes to the model's own final norm and head, untranslated."""
    from tuned_lens.nn.lenses import LogitLens

    return LogitLens(unembed(model))


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout; every module's training mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def _states(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Float32 states (L + 1, n * T, d): hidden_states[0 .. L-1], then the last one before the final norm."""
    # Hugging Face's hidden_states[L] is after the norm, so the state before it is caught on its way in.
    caught: list[Tensor] = []
    hook = final_norm(model).register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    try:
        out = model.base_model(input_ids=tokens.to(model.device), output_hidden_states=True, use_cache=False)
    finally:
        hook.remove()
    return torch.stack([state.float().flatten(0, 1) for state in (*out.hidden_states[:-1], caught[0])])


def _batches(ids: Tensor) -> tuple[Tensor, ...]:
    return ids.split(max(1, _TOKENS_AT_ONCE // ids.shape[1]))


def _shuffled(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(count, generator=generator).split(size)


def _moments(sums: list[tuple[Tensor, Tensor, Tensor]], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means (L + 1, d), covariances (L + 1, d, d), and covariances of the last state with each other one (L, d, d)."""
    first, second, cross = (sum(parts[1:], parts[0]) / count for parts in zip(*sums, strict=True))
    return first, second - first[:, :, None] * first[:, None, :], cross - first[-1][:, None] * first[:-1, None, :]


@torch.enable_grad()
def train_lens(
    model: PreTrainedModel,
    tokens: ArrayLike | Tensor,
    *,
    steps: int = 240,
    tokens_per_step: int = 128,
    learning_rate: float = 1e-2,
    seed: int = 0,
    cache_bytes: int = 2**30,
    progress: bool = True,
) -> TunedLens:
    """doc"""
    from tuned_lens.nn.lenses import TunedLens, TunedLensConfig

    ids = token_batch(model, tokens)
    positive("steps", steps), positive("tokens_per_step", tokens_per_step)
    if not learning_rate > 0:
        raise ValueError(f"learning_rate: a number above 0 is needed, got {learning_rate!r}")
    head, generator = unembed(model), torch.Generator().manual_seed(seed)
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    fits = 4 * (layers + 1) * ids.numel() * width <= cache_bytes

    with _evaluating(model):
        cached, sums = [], []
        for batch in tqdm(_batches(ids), desc="hidden states", disable=not progress, leave=False):
            states = _states(model, batch)
            products = states.sum(1), states.mT @ states, states[-1].mT @ states[:-1]
            sums.append(tuple(product.cpu().double() for product in products))
            if fits:
                cached.append(states)
        pool = torch.cat(cached, 1) if fits else None
        del cached

        # Adam is quick where its coordinates are independent and of one scale: whitened states in, the last state's
        # principal axes out. The start is the least-squares map there.
        mean, covariance, cross = _moments(sums, ids.numel())
        values, vectors = torch.linalg.eigh(covariance)
        values = (values.clamp(min=0) + RIDGE * values.mean(-1, keepdim=True)).clamp(min=1e-12)
        scale = values[-1].mean().sqrt()
        whiten, turn = (vectors[:-1] * values[:-1, None, :].rsqrt()).mT, vectors[-1] * scale
        start = (vectors[-1] / scale).mT @ cross @ whiten.mT

        def here(x): return x.to(model.device, torch.float32)
        weight, bias = here(start).requires_grad_(), here(mean[-1] @ vectors[-1] / scale).repeat(layers, 1, 1).requires_grad_()
        center, whiten, turn = (here(x) for x in (mean[:-1, None], whiten, turn))

        optimizer = torch.optim.Adam([weight, bias], lr=learning_rate, betas=BETAS)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        rows = _shuffled(len(ids), math.ceil(tokens_per_step / ids.shape[1]), generator)
        picks = _shuffled(ids.numel(), tokens_per_step, generator) if fits else rows
        for picked in tqdm(islice(picks, steps), desc="tuned lens", total=steps, disable=not progress):
            states = _states(model, ids[picked]) if pool is None else pool[:, picked.to(pool.device)]
            read = head.final_norm(torch.baddbmm(bias, (states[:-1] - center) @ whiten.mT, weight.mT) @ turn.mT)
            with torch.no_grad():
                truth = head(states[-1]).softmax(-1)
                # d KL / d logits is q - p: writing it down is 1.6 times as fast as differentiating the loss.
                gradient = [(head.unembedding(x).softmax(-1) - truth) @ head.unembedding.weight for x in read]
            optimizer.zero_grad()
            read.backward(torch.stack(gradient) / len(truth))
            optimizer.step()
            schedule.step()

    with torch.device("meta"):  # so that initial values, which are not used, draw nothing from the global generator
        lens = TunedLens(head, TunedLensConfig(model.config.name_or_path, d_model=width, num_hidden_layers=layers))
    lens.layer_translators.to_empty(device=model.device)
    with torch.no_grad():
        maps = turn @ weight @ whiten
        for i, t in enumerate(lens.layer_translators):
            t.weight.copy_(maps[i] - torch.eye(width))
            t.bias.copy_(turn @ bias[i,0] - maps[i] @ center[i,0])
    return lens
RIDGE, BETAS = 0.1, (0.8, 0.99)
_TOKENS_AT_ONCE=4096
