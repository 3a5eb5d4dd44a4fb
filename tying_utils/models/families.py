"""The public models of the paper (arXiv 2603.26663) and their relatives: where they lie, how they are built, who is paired.

Adding a model is one entry of `MODELS`, adding a pair one entry of `_FAMILIES`.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial


@dataclass(frozen=True)
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
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    _: KW_ONLY
    arch: str
    tied: bool
    rows: int
    tokens: int = 0
    n_kv_heads: int = 0
    head_dim: int = 0
    context: int = 2048
    dtype: str = "float32"
    shards: bool = False
    revision: str = "main"


@dataclass(frozen=True)
class Family:
    """A tied and an untied model that the paper compares, and the models whose training it follows.

    `published` are the names under which the paper's numbers are stored (see `published`).
    """

    name: str
    tied: Model
    untied: Model
    evolution: tuple[Model, ...] = ()

    @property
    def models(self) -> tuple[Model, ...]:
        """Return each of them once, the tied one first."""
        return tuple(dict.fromkeys((self.tied, self.untied, *self.evolution)))


_olmo = partial(Model, arch="olmo", rows=50304, tokens=50280)
_olmo2 = partial(Model, arch="olmo2", tied=False, rows=100352, context=4096, shards=True)
_neo = partial(Model, arch="gpt_neo", tied=True, rows=50257, tokens=50257)
_pythia = partial(Model, arch="gpt_neox", tied=False, tokens=50277, dtype="float16")
_qwen3 = partial(Model, arch="qwen3", rows=151936, tokens=151669, n_kv_heads=8, head_dim=128, context=40960, dtype="bfloat16")

MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        # Name, source, d_model, n_layers, n_heads, d_ff.
        _olmo("OLMo-1B", "allenai/OLMo-1B-hf", 2048, 16, 16, 8192, tied=True),
        _olmo("OLMo-1B-0724", "allenai/OLMo-1B-0724-hf", 2048, 16, 16, 8192, tied=False, context=4096),
        _olmo("OLMo-7B-0424", "allenai/OLMo-7B-0424-hf", 4096, 32, 32, 11008, tied=False, context=4096, shards=True),
        _olmo2("OLMo-2-1B", "allenai/OLMo-2-0425-1B", 2048, 16, 16, 8192),
        _olmo2("OLMo-2-7B", "allenai/OLMo-2-1124-7B", 4096, 32, 32, 11008),
        _olmo2("OLMo-2-13B", "allenai/OLMo-2-1124-13B", 5120, 40, 40, 13824),
        _olmo2("OLMo-2-32B", "allenai/OLMo-2-0325-32B", 5120, 64, 40, 27648, n_kv_heads=8),
        _neo("GPT-Neo-2.7B", "EleutherAI/gpt-neo-2.7B", 2560, 32, 20, 10240),
        _pythia("Pythia-70M", "EleutherAI/pythia-70m", 512, 6, 8, 2048, rows=50304),
        _pythia("Pythia-160M", "EleutherAI/pythia-160m", 768, 12, 12, 3072, rows=50304),
        _pythia("Pythia-410M", "EleutherAI/pythia-410m", 1024, 24, 16, 4096, rows=50304),
        _pythia("Pythia-1B", "EleutherAI/pythia-1b", 2048, 16, 8, 8192, rows=50304),
        _pythia("Pythia-1.4B", "EleutherAI/pythia-1.4b", 2048, 24, 16, 8192, rows=50304),
        _pythia("Pythia-2.8B", "EleutherAI/pythia-2.8b", 2560, 32, 32, 10240, rows=50304),
        _pythia("Pythia-6.9B", "EleutherAI/pythia-6.9b", 4096, 32, 32, 16384, rows=50432, shards=True),
        _pythia("Pythia-12B", "EleutherAI/pythia-12b", 5120, 36, 40, 20480, rows=50688, shards=True),
        _qwen3("Qwen3-0.6B", "Qwen/Qwen3-0.6B", 1024, 28, 16, 3072, tied=True),
        _qwen3("Qwen3-1.7B", "Qwen/Qwen3-1.7B", 2048, 28, 16, 6144, tied=True, shards=True),
        _qwen3("Qwen3-4B", "Qwen/Qwen3-4B", 2560, 36, 32, 9728, tied=True, shards=True),
        _qwen3("Qwen3-8B", "Qwen/Qwen3-8B", 4096, 36, 32, 12288, tied=False, shards=True),
        _qwen3("Qwen3-14B", "Qwen/Qwen3-14B", 5120, 40, 40, 17408, tied=False, shards=True),
        _qwen3("Qwen3-32B", "Qwen/Qwen3-32B", 5120, 64, 64, 25600, tied=False, shards=True),
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
