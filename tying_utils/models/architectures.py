"""A tied or untied causal language model by architecture name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tying_utils.base import checks
from tying_utils.base.checks import positive
from tying_utils.base.precision import plain

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Tables:
    """The token tables of a model: views of the raw weights, each (V, d), a row per token.

    `input` and `output` are one storage where `tied` is true.
    """

    input: Tensor
    output: Tensor
    tied: bool

    @property
    def table(self) -> Tensor:
        """Return the tied table W (V, d). Raises ValueError on an untied model, which has two tables."""
        if not self.tied:
            raise ValueError("table: a tied model is needed, this one is untied; use .input or .output")
        return self.input


# transformers' name of each family, and all its dropouts.
_FAMILIES = {
    "olmo": ("Olmo", ("attention_dropout",)),
    "olmo2": ("Olmo2", ("attention_dropout",)),
    "llama": ("Llama", ("attention_dropout",)),
    "qwen3": ("Qwen3", ("attention_dropout",)),
    "gpt_neox": ("GPTNeoX", ("attention_dropout", "hidden_dropout")),
    "gpt_neo": ("GPTNeo", ("resid_dropout", "embed_dropout", "attention_dropout")),
    "gpt2": ("GPT2", ("resid_pdrop", "embd_pdrop", "attn_pdrop")),
}

ARCHITECTURES = tuple(_FAMILIES)


def check_sizes(arch: str, *, vocab_size: int, d_model: int, n_layers: int, n_heads: int, context: int) -> None:
    """Raise the ValueError that `build` raises for an architecture or sizes that it cannot build."""
    if not isinstance(arch, str) or arch not in _FAMILIES:
        raise ValueError(f"arch: {arch!r} is unknown; choose one of {', '.join(ARCHITECTURES)}")
    sizes = {"vocab_size": vocab_size, "d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "context": context}
    for name, value in sizes.items():
        positive(name, value)
    unit = 1 if arch in ("gpt2", "gpt_neo") else 2  # a head that rotates positions has an even width
    if d_model % unit:
        raise ValueError(f"d_model: {arch} needs an even width, got {d_model}; try {d_model + 1}")
    if d_model % (unit * n_heads):
        fitting = next(heads for heads in range(min(n_heads, d_model), 0, -1) if d_model % (unit * heads) == 0)
        words = "of even width " if unit == 2 else ""
        raise ValueError(f"n_heads: {n_heads} heads {words}do not divide d_model = {d_model}; try n_heads = {fitting}")


@plain()
def build(
    arch: str = "olmo",
    *,
    tied: bool,
    vocab_size: int,
    d_model: int = 128,
    n_layers: int = 4,
    n_heads: int = 4,
    context: int = 128,
    seed: int = 0,
) -> PreTrainedModel:
    """Return a freshly initialised Hugging Face causal language model, float32, on the CPU, in training mode.

    `arch` is one of `ARCHITECTURES`; "olmo" is the paper's (arXiv 2603.26663, appendix: non-parametric LayerNorm, SwiGLU,
    RoPE). Dropout is off in all of them. Tables are (vocab_size, d_model), one storage in a tied model. The weights depend on
    `seed` alone (torch's global generator is left as it was); both arms of one seed start from the same input table and trunk.

    Raises ValueError for an unknown architecture, a seed that is no integer from 0 to 2^63 - 1, sizes below 1, heads that do
    not divide d_model, or, where the architecture rotates positions, a head of odd width.
    """
    sizes = {"vocab_size": vocab_size, "d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "context": context}
    checks.flag("tied", tied)
    seed = checks.seed("seed", seed)
    config = configured(arch, tied=tied, **sizes)
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    if tables(model).tied is not tied:
        raise ValueError(f"tied: the model came out tied = {not tied}; {arch} does not honour the setting here")
    return model.train()


def configured(
    arch: str, *, tied: bool, vocab_size: int, d_model: int, n_layers: int, n_heads: int, context: int
) -> PretrainedConfig:
    """Return the transformers configuration that `build` builds from. Raises ValueError as there."""
    check_sizes(arch, vocab_size=vocab_size, d_model=d_model, n_layers=n_layers, n_heads=n_heads, context=context)
    import transformers

    # transformers takes no integer of numpy's.
    vocab_size, d_model, n_layers, n_heads, context = map(int, (vocab_size, d_model, n_layers, n_heads, context))
    name, dropouts = _FAMILIES[arch]
    # GPT-2 and GPT-Neo take the common names for their own, by their attribute_map.
    values: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": d_model,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
        "use_cache": False,
        # The families' default ids of special tokens lie outside a small vocabulary.
        **{"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0},
        **dict.fromkeys(dropouts, 0.0),
    }
    # Every family's blocks are 4 d wide inside, as in OLMo-1B (2048 -> 8192); GPT-2 by default.
    if arch != "gpt2":
        values["intermediate_size"] = 4 * d_model
    if arch in ("olmo", "olmo2", "llama", "qwen3"):
        values["num_key_value_heads"] = n_heads
    if arch == "qwen3":
        values["head_dim"] = d_model // n_heads
    if arch == "gpt_neo":
        values["attention_types"] = [[[("global", "local")[i % 2] for i in range(n_layers)], 1]]
        values["num_layers"] = values.pop("num_hidden_layers")  # checked against the attention types at once
    return getattr(transformers, f"{name}Config")(**values)


def tables(model: PreTrainedModel) -> Tables:
    """Return the raw input and output tables of `model`, (V, d) views in its own dtype, on its own device.

    Raises ValueError where the configuration says tied and the tables are not one storage, or the other way round.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None:
        raise ValueError(f"model: {type(model).__name__} has no token table at one of its ends; a causal LM is needed")
    source, target = embedding.weight.detach(), head.weight.detach()  # type: ignore[union-attr]
    tied = source.data_ptr() == target.data_ptr()
    config: PretrainedConfig = model.config
    if tied != bool(getattr(config, "tie_word_embeddings", tied)):
        advice = "call model.tie_weights() after moving or copying a tied model"
        if source.shape != target.shape:  # as in Mllama, whose input table has rows for images, too
            advice = f"of shapes {tuple(source.shape)} and {tuple(target.shape)} they cannot be one; set it to False"
        raise ValueError(
            f"model: its configuration says tie_word_embeddings = {config.tie_word_embeddings}, its tables are "
            f"{'one storage' if tied else 'two storages'}; {advice}"
        )
    return Tables(source, target, tied)
