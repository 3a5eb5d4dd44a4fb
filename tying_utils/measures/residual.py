"""What each component adds to the residual stream, and to the logit of the right next token, through transformer_lens."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tying_utils.base.checks import positive
from tying_utils.base.precision import plain
from tying_utils.measures.causal import Head, depth, final_norm, token_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOLERANCE = 1e-3  # of the largest entry: float32 sums stay far below it, a missing component far above


def _bridge(model: PreTrainedModel) -> Any:
    # transformer_lens takes seconds to load, so that waits until here. It rewrites the model that it is given: a copy.
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    twin = copy.deepcopy(model).float().eval()
    with torch.random.fork_rng(devices=[]):  # where it splits attention weights it draws initial values for nothing
        return build_bridge_from_module(twin, type(model).__name__, hf_config=twin.config)


def _components(layers: int) -> dict[str, tuple[int, str, str]]:
    """Return hook name -> layer, component, label, in the order of the stream."""
    names = {"hook_embed": (-1, "embedding", "embedding"), "hook_pos_embed": (-1, "position", "position embedding")}
    for i in range(layers):
        names[f"blocks.{i}.hook_attn_out"] = (i, "attention", f"attention {i}")
        names[f"blocks.{i}.hook_mlp_out"] = (i, "mlp", f"MLP {i}")
    return names


def _check_sum(model: PreTrainedModel, what: str, parts: Tensor, whole: Tensor) -> None:
    if not bool(whole.isfinite().all()):
        raise ValueError(f"model: finite states are needed, the {what} of this {type(model).__name__} has NaN or infinity")
    if not float((parts - whole).abs().max()) <= _TOLERANCE * float(whole.abs().max()):
        raise ValueError(
            f"model: the components of {type(model).__name__} do not add up to its {what}; an architecture is needed whose "
            "blocks add attention and MLP to the stream, and whose logits are head(norm(stream))"
        )


@plain()
@torch.no_grad()
def contributions(model: PreTrainedModel, tokens: ArrayLike | Tensor, *, batch: int = 8) -> pd.DataFrame:
    """Return what each component adds to the residual stream, and to the logit of the right next token.

    Attribution is direct logit attribution: the component's output through the final norm, with the norm's scale held at
    what the whole stream makes it, dotted with U[next] - mean of U over the vocabulary. The components' outputs add up to
    the stream before the final norm, and the attributions to the mean of logit[next] - mean logit; both are checked.
    (Elhage et al. 2021, A Mathematical Framework for Transformer Circuits; applied to arXiv 2603.26663, section 4.)

    Args:
        model: a Hugging Face causal LM with L layers that transformer_lens knows. A deep copy of it is read, in float32.
        tokens: integers (n, T), T of at least 2.
        batch: rows of `tokens` at once.

    Returns:
        A row per component, in the order of the stream, with the columns
        layer: 0 .. L-1; -1 outside the blocks.
        component: "embedding", "position", "attention", "mlp"; "bias" for the final norm's and the head's own bias, which
            is there only where it is not zero, and has norm 0 as it adds nothing to the stream.
        label: the component in words.
        norm: mean over all tokens of the L2 norm of the component's output.
        share: norm over the sum of all components' norms, 0 to 1.
        attribution: mean over the n (T - 1) positions with a next token, in logits.

    Raises:
        ValueError: tokens that the model cannot read or of one column, a batch that is not positive, or a model whose
            components do not add up; transformer_lens raises its own for an architecture that it does not know.
    """
    ids = token_batch(model, tokens)
    if ids.shape[1] < 2:
        raise ValueError(f"tokens: at least 2 columns are needed, the last as a next token, got shape {tuple(ids.shape)}")
    batch = positive("batch", batch)
    norm, head = final_norm(model), Head(model)  # with the architecture's scale of logits
    if head.cap is not None:
        raise ValueError(f"model: logits that are a sum are needed, {type(model).__name__} caps them at {float(head.cap):g}")
    gain, shift, head_bias = (
        None if value is None else value.float()
        for value in (getattr(norm, "weight", None), getattr(norm, "bias", None), getattr(head, "bias", None))
    )
    centred = head.weight - head.weight.mean(0)

    bridge, names = _bridge(model), _components(depth(model))
    wanted = {*names, "ln_final.hook_in", "ln_final.hook_scale"}
    norms, attributions, bias = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0), 0.0
    for rows in ids.to(model.device).split(batch):
        logits, cache = bridge.run_with_cache(rows, names_filter=lambda name: name in wanted)
        if "hook_pos_embed" not in cache:
            names.pop("hook_pos_embed", None)
        if missing := [name for name in names if name not in cache]:
            kind = type(model).__name__
            raise ValueError(f"model: blocks of attention and MLP are needed, {kind} has no {missing[0]} in transformer_lens")
        following = rows[:, 1:, None]
        # To attribute is to dot with `direction`: gain, scale and centring of the norm are moved over from the component.
        direction = centred[following[..., 0]]
        added = direction @ shift if shift is not None else direction.new_zeros(direction.shape[:-1])
        if head_bias is not None:
            added = added + head_bias[following[..., 0]] - head_bias.mean()
        if gain is not None:
            direction = direction * (1 + gain if bridge.ln_final.uses_weight_offset else gain)
        if not bridge.ln_final.uses_rms_norm:
            direction = direction - direction.mean(-1, keepdim=True)
        direction = direction / cache["ln_final.hook_scale"][:, :-1]

        stream, total = torch.zeros_like(cache["ln_final.hook_in"]), added
        for name in names:
            output = cache[name]
            attribution = (output[:, :-1] * direction).sum(-1)
            norms[name] += float(output.norm(dim=-1).double().sum())
            attributions[name] += float(attribution.double().sum())
            stream, total = stream + output, total + attribution
        bias += float(added.double().sum())
        right = logits[:, :-1].gather(-1, following)[..., 0] - logits[:, :-1].mean(-1)
        _check_sum(model, "residual stream", stream, cache["ln_final.hook_in"])
        _check_sum(model, "logits", total, right)

    table = pd.DataFrame(
        [(*names[name], norms[name] / ids.numel(), attributions[name] / ids[:, 1:].numel()) for name in names]
        + ([(-1, "bias", "bias", 0.0, bias / ids[:, 1:].numel())] if bias else []),
        columns=["layer", "component", "label", "norm", "attribution"],
    )
    table.insert(4, "share", table["norm"] / table["norm"].sum())
    return table
