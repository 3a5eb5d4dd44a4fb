"""Count how many of a model's parameters its token tables hold, from a configuration without weights.

Source: arXiv 2603.26663, Tables 3 and 4: tying saves most where models are small.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from tying_utils.models import architectures
from tying_utils.models.families import MODELS, Model
from tying_utils.training.config import TrainConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Parameters:
    """The parameters of a model: `trunk` without the token tables, `table` of one of them; `tied` as it is configured."""

    trunk: int
    table: int
    tied: bool

    @property
    def parameters(self) -> int:
        """Return how many there are in all, as it is configured."""
        return self.trunk + self.table * (1 if self.tied else 2)

    def table_fraction(self, *, tied: bool) -> float:
        """Return the fraction of all parameters, in (0, 1), that the tables hold if the model is tied, or untied."""
        tables = self.table * (1 if tied else 2)
        return tables / (self.trunk + tables)


def count(config: TrainConfig | Model | PretrainedConfig) -> Parameters:
    """Return the parameters that a model of `config` has, counted on a model without storage.

    config: a condition of training, a public model of `families.MODELS`, or any configuration of a causal language model that
    transformers knows, as AutoConfig.from_pretrained gives it. Raises ValueError for a model without a token table at both
    ends.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if isinstance(config, TrainConfig):
        made = architectures.configured(config.arch, tied=config.tied, **config.sizes)
    else:
        made = transformers_config(config) if isinstance(config, Model) else config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None:
        raise ValueError(f"config: {type(made).__name__} has no token table at one of its ends; a causal LM is needed")
    ends = {id(embedding.weight), id(head.weight)}
    trunk = sum(p.numel() for p in model.parameters() if id(p) not in ends)
    return Parameters(trunk, embedding.weight.numel(), len(ends) == 1)


def transformers_config(model: Model) -> PretrainedConfig:
    """Return the transformers configuration that a public model has, as far as its shape goes."""
    sizes = {"vocab_size": model.rows, "d_model": model.d_model, "n_layers": model.n_layers, "n_heads": model.n_heads}
    config = architectures.configured(model.arch, tied=model.tied, context=model.context, **sizes)
    config.intermediate_size = model.d_ff
    if model.n_kv_heads:
        config.num_key_value_heads = model.n_kv_heads
    if model.head_dim:
        config.head_dim = model.head_dim
    return config


def table(names: Iterable[str] = tuple(MODELS)) -> pd.DataFrame:
    """Return a row per public model: model, tied, d_model, parameters, table (of one), share_tied, share_untied (fractions)."""
    rows = []
    for name in names:
        model, counted = MODELS[name], count(MODELS[name])
        rows.append(
            {
                "model": name,
                "tied": counted.tied,
                "d_model": model.d_model,
                "parameters": counted.parameters,
                "table": counted.table,
                "share_tied": counted.table_fraction(tied=True),
                "share_untied": counted.table_fraction(tied=False),
            }
        )
    return pd.DataFrame(rows)
