"""What the measures read of a Hugging Face causal language model: its blocks, final norm and head, and the states between."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from tying_utils.base.precision import plain
from tying_utils.base.quiet import quiet

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# What an architecture multiplies (1) or divides (-1) its logits by, and the cap c of c tanh(logits / c), by name in its
# configuration: Cohere, Falcon-H1, Muse, Granite; Gemma 2 and its relatives, RecurrentGemma, xLSTM.
_SCALES = {"logit_scale": 1, "lm_head_multiplier": 1, "output_multiplier": 1, "logits_scaling": -1}
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def text_config(model: PreTrainedModel) -> PretrainedConfig:
    """Return the configuration of the language model in `model`: of a multimodal one a part of its own. ValueError for none."""
    if not hasattr(getattr(model, "config", None), "get_text_config"):
        raise ValueError(
            f"model: a causal LM of transformers is needed, got {type(model).__name__}; of a wrapper, give .module"
        )
    return model.config.get_text_config(decoder=True)


def depth(model: PreTrainedModel) -> int:
    """Return the number of blocks L that `model` runs text through."""
    config = text_config(model)
    return getattr(config, "decoder_layers", None) or config.num_hidden_layers  # BART's relatives count the encoder's there


def context_of(model: PreTrainedModel) -> int | None:
    """Return how many tokens `model` reads at most; None where its configuration names no limit (XLNet's is -1)."""
    context = getattr(text_config(model), "max_position_embeddings", None)
    return context if context and context > 0 else None


def token_batch(model: PreTrainedModel, tokens: ArrayLike | Tensor) -> Tensor:
    """Return `tokens` as an int64 tensor (n, T) that `model` can read, else raise ValueError."""
    array = as_array(tokens)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"tokens: a non-empty array of shape (n, T) is needed, got shape {tuple(array.shape)}")
    if "int" not in str(array.dtype):  # of numpy or torch
        raise ValueError(f"tokens: integers are needed, got {array.dtype}")
    ids = array.long() if isinstance(array, Tensor) else torch.from_numpy(array.astype(np.int64))
    low, high, vocab = int(ids.min()), int(ids.max()), text_config(model).vocab_size
    if low < 0 or high >= vocab:
        raise ValueError(f"tokens: ids from 0 to {vocab - 1} are needed, got {low} to {high}")
    context = context_of(model)
    if context and ids.shape[1] > context:
        raise ValueError(f"tokens: rows of at most {context} tokens are needed, got {ids.shape[1]}; cut them")
    return ids


def as_array(tokens: ArrayLike | Tensor) -> Any:
    """Return `tokens` as they are, if a tensor, else as an array. Raises ValueError for rows of unequal length."""
    try:
        return tokens if isinstance(tokens, Tensor) else np.array(tokens)
    except ValueError as error:
        raise ValueError("tokens: rows of one length (n, T) are needed, got rows of several; cut or group them") from error


@plain()
@torch.no_grad()
def check_causal(model: PreTrainedModel) -> None:
    """Raise ValueError where `model` sees what it is to predict: another last token changes the logits before it."""
    text_config(model)  # of a model of transformers
    kind = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ValueError(f"model: a causal LM is needed, {kind} reads one text and writes another")
    ids = some_tokens(model, 1, 4).to(model.device)
    other = torch.cat((ids[:, :-1], ids[:, :1]), 1)
    with evaluating(model):
        first, second = (model(given).logits[:, :-1] for given in (ids, other))
    # Experts may meet other numbers of tokens, and round otherwise. NaN, of a model that has diverged, is equal to itself.
    margin = (1e-2 if first.dtype.itemsize < 4 else 1e-4) * float(first.abs().nan_to_num().max())
    if not torch.allclose(first, second, rtol=0, atol=margin, equal_nan=True):
        raise ValueError(f"model: a causal LM is needed, in {kind} a token's logits depend on the tokens after it")


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout off, and hear nothing of missing kernels; every module's training mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with quiet():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def some_tokens(model: PreTrainedModel, rows: int, length: int) -> Tensor:
    """Return ids (rows, length) from all over the vocabulary, at most a context long; none for padding or images."""
    config = text_config(model)
    length = min(length, context_of(model) or length)
    named = (*model.config.to_dict().items(), *config.to_dict().items())
    kept = {value for name, value in named if re.search("_token_(id|index)$", name) and isinstance(value, int)}
    plain = torch.tensor([i for i in range(config.vocab_size) if i not in kept] or [0])
    return plain[torch.linspace(0, len(plain) - 1, rows * length).long()].view(length, rows).T


class _Ran(NamedTuple):
    name: str
    module: nn.Module
    output: Any


@torch.no_grad()
def _trial(model: PreTrainedModel) -> tuple[list[_Ran], Tensor | None]:
    """Return what ran of the base model over a few tokens, in the order in which it ended, and what the head read."""
    ran, read, head = list[_Ran](), list[Tensor](), model.get_output_embeddings()
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name, module in model.base_model.named_modules():

            def keep(module: nn.Module, _: Any, output: Any, name: str = name) -> None:
                ran.append(_Ran(name, module, output))

            stack.callback(module.register_forward_hook(keep).remove)
        if head is not None:
            stack.callback(head.register_forward_pre_hook(lambda _, args: read.append(args[0])).remove)
        model(input_ids=some_tokens(model, 1, 4).to(model.device), use_cache=False)
    return ran, read[0] if read else None


def blocks(model: PreTrainedModel) -> nn.ModuleList | None:
    """Return the list of as many blocks as `model` has layers; of several, the first that text runs (no vision tower)."""
    layers = depth(model)
    # An inner list, as of experts, comes after the one that it lies in.
    lists = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == layers]
    ran = {id(one.module) for one in _trial(model)[0]} if len(lists) > 1 else {id(block) for m in lists for block in m}
    return next((m for m in lists if any(id(block) in ran for block in m)), None)


def stream(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a block is given first, the stream (n, T, d), from the arguments of its call."""
    return args[0] if args else kwargs.get("hidden_states")


def final_norm(model: PreTrainedModel) -> nn.Module:
    """Return the norm whose output the head of `model` reads, as a run over a few tokens shows it.

    Raises ValueError where the head reads anything else: a model without a final norm, or whose last norm is a part of its
    last block (BART, Marian, OpenAI's first GPT, OPT-350M); one with a projection between norm and head (OPT with a
    word_embed_proj_dim of its own), or a transform in the head (BERT, RoBERTa, ELECTRA, ModernBERT and their relatives).
    """
    ran, read = _trial(model)
    kind, needed = type(model).__name__, "a causal LM is needed whose logits are head(norm(state)), scaled or capped or not"
    if read is None:
        raise ValueError(f"model: no head of {kind} was run; {needed}")
    same = [one for one in ran if isinstance(one.output, Tensor) and one.output.shape == read.shape]
    # Not those that hand on what a module in them makes. MiniCPM3 scales what its head reads, not its logits. Nan, of a model
    # that has diverged, is equal to itself here.
    same = [one for one in same if not any(one.module.children())]
    wanted = {scale: (read / scale).nan_to_num() for scale in (1.0, _scale(text_config(model)))}
    same = [one for one in same if any(torch.allclose(one.output.nan_to_num(), other) for other in wanted.values())]
    for name, module, _ in reversed(same):
        if "norm" in type(module).__name__.lower() and not re.search(r"(^|\.)\d+(\.|$)", name):
            return module
    found = f"its head reads {same[-1].name}" if same else "its head reads no module's output but one of its own transforms"
    raise ValueError(f"model: no final norm found in {kind}: {found}; {needed}")


def _scale(config: PretrainedConfig) -> float:
    """Return what the architecture multiplies its logits by."""
    scale = 1.0
    for name, power in _SCALES.items():
        if isinstance(value := getattr(config, name, None), int | float) and value:
            # HyperCLOVA X multiplies by what it calls as Granite calls its divisor.
            scale *= float(value) ** (1 if config.model_type.startswith("hyperclovax") else power)
    return scale


class Head(nn.Linear):
    """A frozen float32 copy of a model's head: normed state (..., d) -> logits (..., V), as the architecture makes them.

    `weight` and `bias` hold the architecture's scale of logits; `cap`, where it caps them, is c in c tanh(logits / c).
    """

    cap: Tensor | None

    def __init__(self, model: PreTrainedModel) -> None:
        """Copy the head of `model`. Raises ValueError if it has none, or one that is no plain table."""
        head, config = model.get_output_embeddings(), text_config(model)
        if not isinstance(table := getattr(head, "weight", None), Tensor) or table.ndim != 2:
            raise ValueError(
                f"model: a head with one weight (V, d) is needed, {type(model).__name__} has {type(head).__name__}"
            )
        super().__init__(table.shape[1], table.shape[0], bias=False, device="meta")  # which draws no initial values
        scale = _scale(config)
        self.weight = nn.Parameter(table.detach().float() * scale)
        if (bias := getattr(head, "bias", None)) is not None:
            self.bias = nn.Parameter(bias.detach().float() * scale)
        cap = next((value for name in _CAPS if (value := getattr(config, name, None))), None)
        self.register_buffer("cap", None if cap is None else torch.tensor(float(cap), device=table.device))
        self.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits (..., V) of normed states (..., d)."""
        logits = super().forward(input)
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def gradient(self, logits: Tensor, slopes: Tensor) -> Tensor:
        """Return d loss / d normed state (..., d) from d loss / d logits, `slopes`, at `logits` (..., V)."""
        return (slopes if self.cap is None else slopes * (1 - (logits / self.cap).square())) @ self.weight


class Reader:
    """Reads the states of a model that lenses read; its blocks and final norm are found once. Errors as `final_norm`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.norm, found = model, final_norm(model), blocks(model)
        if found is None:
            raise ValueError(f"model: no list of {depth(model)} blocks was found in {type(model).__name__}")
        self.places, self.layers = [*found, self.norm], len(found)

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        """Return float32 states (L + 1, n T, d): what each of L blocks is given, then what the final norm is given.

        The first L are hidden_states[0 .. L-1] of transformers, but for Mamba and RWKV, where that leaves the first out.
        transformers' hidden_states[L] is after the final norm.
        """
        caught = dict[int, list[Tensor]]()
        with ExitStack() as stack:
            for place, module in enumerate(self.places):

                def catch(_: nn.Module, args: Any, kwargs: Any, place: int = place) -> None:
                    caught.setdefault(place, []).append(stream(args, kwargs))

                stack.callback(module.register_forward_pre_hook(catch, with_kwargs=True).remove)
            self.model.base_model(input_ids=ids.to(self.model.device), use_cache=False)
        if any(len(caught.get(place, ())) > 1 for place in range(self.layers)):
            kind = type(self.model).__name__
            raise ValueError(f"model: blocks that are run once each are needed, {kind} runs some of them more often")
        found = list[Tensor]()
        for place in reversed(range(self.layers + 1)):
            # A block that text skips (Mllama's for images) leaves the stream as it is. NanoChat norms the embedding's output by
            # the same module as the last state: the last time counts.
            found.append(caught[place][-1].float().flatten(0, 1) if place in caught else found[-1])
        return torch.stack(found[::-1])
