"""The public models of the paper (arXiv 2603.26663) and their relatives: where they lie, how they are built, who is paired.

Adding a model is one entry of `MODELS`, adding a pair one entry of `_FAMILIES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Model:
    """A public causal language model by the numbers of its configuration; nothing of it is loaded.

    - source, revision: on the hub. Checkpoints during training are other revisions of it (see `checkpoints.steps`).
    - arch: of `models.ARCHITECTURES`. tied: as published; what a checkpoint holds is read from it.
    - rows, tokens: rows of its tables, and tokens of its tokenizer, where known: rows beyond them were never trained.
    - d_model, n_layers, n_heads, n_kv_heads, d_ff, head_dim: as in its configuration; 0 stands for the family's default.
    - dtype, shards: how its weights are stored: float32, float16 or bfloat16, in one file or in several.
    """

    name: str
    source: str
    arch: str
    tied: bool
    rows: int
    tokens: int = 0
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    n_kv_heads: int = 0
    head_dim: int = 0
    context: int = 2048
    dtype: str = "float32"
    shards: bool = False
    revision: str = "main"


@dataclass(frozen=True)
class Family:
    """A tied and an untied model that the paper compares, and the models whose training it follows.

    `published` are the names under which the paper's numbers stand (see `published`).
    """

    name: str
    tied: Model
    untied: Model
    evolution: tuple[Model, ...] = ()

    @property
    def models(self) -> tuple[Model, ...]:
        """Return each of them once, the tied one first."""
        return tuple(dict.fromkeys((self.tied, self.untied, *self.evolution)))


def _sizes(d: int, layers: int, heads: int, d_ff: int, rows: int, tokens: int = 0) -> dict[str, Any]:
    return {"d_model": d, "n_layers": layers, "n_heads": heads, "d_ff": d_ff, "rows": rows, "tokens": tokens}


def _olmo(name: str, d: int, layers: int, d_ff: int, tied: bool, **more: Any) -> Model:
    sizes = _sizes(d, layers, d // 128, d_ff, 50304, 50280)
    return Model(name=name, source=f"allenai/{name}-hf", arch="olmo", tied=tied, **sizes, **more)


def _olmo2(name: str, source: str, d: int, layers: int, heads: int, d_ff: int, kv: int = 0) -> Model:
    sizes = _sizes(d, layers, heads, d_ff, 100352)
    more: dict[str, Any] = {"n_kv_heads": kv, "context": 4096, "shards": True}
    return Model(name=name, source=f"allenai/{source}", arch="olmo2", tied=False, **sizes, **more)


def _pythia(size: str, d: int, layers: int, heads: int, rows: int = 50304) -> Model:
    sizes = _sizes(d, layers, heads, 4 * d, rows, 50277)
    stored: dict[str, Any] = {"dtype": "float16", "shards": d > 2560}
    return Model(
        name=f"Pythia-{size}", source=f"EleutherAI/pythia-{size.lower()}", arch="gpt_neox", tied=False, **sizes, **stored
    )


def _qwen3(size: str, d: int, layers: int, heads: int, d_ff: int, *, tied: bool) -> Model:
    sizes, source = _sizes(d, layers, heads, d_ff, 151936, 151669), f"Qwen/Qwen3-{size}"
    more: dict[str, Any] = {"n_kv_heads": 8, "head_dim": 128, "context": 40960, "dtype": "bfloat16", "shards": size != "0.6B"}
    return Model(name=f"Qwen3-{size}", source=source, arch="qwen3", tied=tied, **sizes, **more)


MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        _olmo("OLMo-1B", 2048, 16, 8192, tied=True),
        _olmo("OLMo-1B-0724", 2048, 16, 8192, tied=False, context=4096),
        _olmo("OLMo-7B-0424", 4096, 32, 11008, tied=False, context=4096, shards=True),
        _olmo2("OLMo-2-1B", "OLMo-2-0425-1B", 2048, 16, 16, 8192),
        _olmo2("OLMo-2-7B", "OLMo-2-1124-7B", 4096, 32, 32, 11008),
        _olmo2("OLMo-2-13B", "OLMo-2-1124-13B", 5120, 40, 40, 13824),
        _olmo2("OLMo-2-32B", "OLMo-2-0325-32B", 5120, 64, 40, 27648, kv=8),
        Model(
            name="GPT-Neo-2.7B",
            source="EleutherAI/gpt-neo-2.7B",
            arch="gpt_neo",
            tied=True,
            **_sizes(2560, 32, 20, 10240, 50257, 50257),
        ),
        _pythia("70M", 512, 6, 8),
        _pythia("160M", 768, 12, 12),
        _pythia("410M", 1024, 24, 16),
        _pythia("1B", 2048, 16, 8),
        _pythia("1.4B", 2048, 24, 16),
        _pythia("2.8B", 2560, 32, 32),
        _pythia("6.9B", 4096, 32, 32, rows=50432),
        _pythia("12B", 5120, 36, 40, rows=50688),
        _qwen3("0.6B", 1024, 28, 16, 3072, tied=True),
        _qwen3("1.7B", 2048, 28, 16, 6144, tied=True),
        _qwen3("4B", 2560, 36, 32, 9728, tied=True),
        _qwen3("8B", 4096, 36, 32, 12288, tied=False),
        _qwen3("14B", 5120, 40, 40, 17408, tied=False),
        _qwen3("32B", 5120, 64, 64, 25600, tied=False),
    )
}

# Name, tied, untied, and those whose training is followed: names of MODELS.
_FAMILIES: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("OLMo", "OLMo-1B", "OLMo-1B-0724", ("OLMo-1B-0724", "OLMo-7B-0424")),
    ("GPT-Neo/Pythia", "GPT-Neo-2.7B", "Pythia-2.8B", ("Pythia-1B",)),
    ("Qwen3", "Qwen3-4B", "Qwen3-8B", ()),
)


def families() -> dict[str, Family]:
    """Return the paper's pairs of a tied and an untied model by name, with the models whose training it follows."""
    return {
        name: Family(name, MODELS[tied], MODELS[untied], tuple(MODELS[followed] for followed in evolution))
        for name, tied, untied, evolution in _FAMILIES
    }
