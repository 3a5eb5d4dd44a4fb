"""One training condition, as a frozen dataclass."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tying_utils.base import checks
from tying_utils.base.checks import positive
from tying_utils.corpora import store, two_role
from tying_utils.corpora.corpus import Corpus
from tying_utils.models import architectures, balance

DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run. Sizes are counts, the learning rate is per AdamW step, a batch is per optimizer step.

    The defaults of the optimizer are the paper's (arXiv 2603.26663, appendix: betas 0.9 and 0.95, weight decay 0.1, clipping
    at 1.0, cosine to a tenth) except the learning rate and warmup, which fit small models. Raises ValueError on
    construction for anything that cannot train.
    """

    corpus: str = "python"
    path: str | None = None  # of a local text, or of prepared shards; the run is keyed by the content, not by its place
    language: two_role.Settings | None = None  # of the corpus "two-role", where None means the defaults; a mapping will do too
    vocab_size: int = 2048
    arch: str = "olmo"
    tied: bool = True
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    context: int = 128
    steps: int = 400
    batch_size: int = 8  # sequences of `context` tokens
    micro_batches: int = 1  # the batch is passed in so many parts, whose gradients add up
    learning_rate: float = 2e-3
    warmup_steps: int = 40
    final_learning_rate: float = 0.1  # as a fraction of the peak, at the end of the cosine
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    adam_eps: float = 1e-8
    clip: float = 1.0  # of the whole model's gradient norm, after the two paths are combined
    input_scale: float = 1.0
    output_scale: float = 1.0
    remedy: balance.Remedy | None = None  # of `balance.REMEDIES`; a name or a mapping {"name": ..., **parameters} will do
    start: "TrainConfig | None" = None  # the run whose finished weights this one goes on from; a mapping will do too
    init_seed: int = 0
    data_seed: int = 0
    table_snapshots: int = 20  # log-spaced steps at which the tables are kept
    checkpoint_every: int = 100
    validation_every: int = 100
    validation_sequences: int = 64
    threads: int = 1  # of the CPU; it decides the last bits of every sum, so it is part of the run
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.language, Mapping):
            object.__setattr__(self, "language", two_role.Settings.from_dict(self.language))
        if not isinstance(self.path, str | None):
            raise ValueError(f"path: a string or None is needed, got {self.path!r}")
        store.check(self.corpus, self.vocab_size, self.path, self.language, argument="corpus")
        if self.corpus == "two-role" and self.language is None:
            object.__setattr__(self, "language", two_role.Settings())
        checks.flag("tied", self.tied)
        architectures.check_sizes(self.arch, **self.sizes)
        for name, value in self.sizes.items():
            object.__setattr__(self, name, int(value))  # numpy's 5 and 5 are one condition, too
        try:
            torch.device("cpu" if self.device == "auto" else str(self.device))
        except RuntimeError as error:
            raise ValueError(f"device: {self.device!r} is unknown; use 'auto', 'cpu', 'cuda' or 'mps'") from error
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: {self.dtype!r} is unknown; choose one of {', '.join(map(repr, DTYPES))}")
        counts = ("steps", "batch_size", "micro_batches")
        counts += ("table_snapshots", "checkpoint_every", "validation_every", "validation_sequences", "threads")
        for name in counts:
            object.__setattr__(self, name, positive(name, getattr(self, name)))
        object.__setattr__(self, "warmup_steps", checks.integer("warmup_steps", self.warmup_steps, 0))
        for name in ("init_seed", "data_seed"):
            object.__setattr__(self, name, checks.seed(name, getattr(self, name)))
        for name in ("input_scale", "output_scale", "weight_decay", "final_learning_rate"):
            # 5 and 5.0 are one condition and must be one key.
            object.__setattr__(self, name, checks.scale(name, getattr(self, name)))
        for name in ("learning_rate", "clip", "adam_eps"):
            object.__setattr__(self, name, checks.above_zero(name, getattr(self, name)))
        for name in ("beta1", "beta2"):
            value = checks.scale(name, getattr(self, name))
            if value >= 1:
                raise ValueError(f"{name}: a number from 0 up to but not 1 is needed, got {value!r}")
            object.__setattr__(self, name, value)
        if self.batch_size % self.micro_batches:
            raise ValueError(
                f"micro_batches: {self.micro_batches} parts do not divide a batch of {self.batch_size} sequences; "
                f"try {math.gcd(self.micro_batches, self.batch_size)}"
            )
        if self.remedy is not None:
            object.__setattr__(self, "remedy", balance.get(self.remedy))
            balance.check(self.remedy, tied=self.tied, d_model=self.d_model)
            if (self.input_scale, self.output_scale) != (1.0, 1.0):
                raise ValueError(
                    f"input_scale and output_scale: the remedy {self.remedy.name!r} takes their place, got "
                    f"{self.input_scale} and {self.output_scale}; use 1.0 for both, or no remedy"
                )
        if not self.tied and (self.input_scale, self.output_scale) != (1.0, 1.0):
            raise ValueError(
                f"input_scale and output_scale: they weigh the two paths of one tied table, got {self.input_scale} and "
                f"{self.output_scale} with tied=False; use 1.0 for both or tied=True"
            )

        if isinstance(self.start, Mapping):
            object.__setattr__(self, "start", TrainConfig.from_dict(self.start))
        if self.start is not None:
            self._check_start(self.start)

    def _check_start(self, start: "TrainConfig") -> None:
        if not isinstance(start, TrainConfig):
            raise ValueError(f"start: a TrainConfig, a mapping of its fields or None is needed, got {start!r}")
        for name, value in {"arch": start.arch, **start.sizes, "tied": start.tied_after(start.steps)}.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name}: the run to start from ends with {name}={value!r}, got {getattr(self, name)!r}; use {value!r}, or "
                    "another start"
                )
        if (self.corpus == "two-role") != (start.corpus == "two-role"):
            raise ValueError(
                f"corpus: the tokens of {start.corpus!r}, which the run to start from knows, are none of {self.corpus!r}; go "
                "from a text to a text, or from one two-role language to another"
            )
        table = torch.empty(self.vocab_size, self.d_model, device="meta")
        if self.remedy is not None and self.remedy.tables(table, 0) is not None:
            raise ValueError(
                f"remedy: {self.remedy.name!r} makes the tables of weights that a finished run does not hold; choose another "
                "for a run with a start"
            )

    @property
    def title(self) -> str:
        """Return what a progress bar or an error calls the run."""
        if self.start:
            return f"{self.start.title}, then {self.corpus}"
        words = "tied" if self.tied else "untied"
        if self.remedy:
            words += f", {self.remedy.name}"
        if (self.input_scale, self.output_scale) != (1.0, 1.0):
            words += f" x{self.input_scale:g}/{self.output_scale:g}"
        return f"{words}, seed {self.data_seed}"

    @property
    def text(self) -> tuple[Any, ...]:
        """Return what decides the corpus: configurations with one text share it."""
        return self.corpus, self.path, self.vocab_size, self.language, self.start and self.start.text

    @property
    def table_steps(self) -> list[int]:
        """Return steps after which the tables are kept: 0, about `table_snapshots` log-spaced ones, and every checkpoint."""
        count = self.table_snapshots
        spaced = {round(self.steps ** (i / max(1, count - 1))) for i in range(count)}
        return sorted({0, self.steps, *spaced, *self.checkpoint_steps})

    @property
    def checkpoint_steps(self) -> list[int]:
        """Return steps after which the whole model is kept: every `checkpoint_every`, and the last."""
        return sorted({*range(self.checkpoint_every, self.steps + 1, self.checkpoint_every), self.steps})

    @property
    def sizes(self) -> dict[str, int]:
        """Return the sizes of the model by name, as `models.build` takes them."""
        return {name: getattr(self, name) for name in ("vocab_size", "d_model", "n_layers", "n_heads", "context")}

    @property
    def table_parameters(self) -> int:
        """Return how many weights a run spends on its tables, at its end: a tied table once, with what a remedy adds."""
        added = self.remedy.added_parameters(self.vocab_size, self.d_model) if self.remedy else 0
        return (1 if self.tied else 2) * self.vocab_size * self.d_model + added

    def tied_after(self, step: int) -> bool:
        """Return whether the model has one table after `step` steps: a remedy may give a tied one two, at once or later."""
        return self.tied if self.remedy is None else self.remedy.tied_after(self.tied, step, self.steps)

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of `step`, from 1: linear warmup, then a cosine to `final_learning_rate` of the peak."""
        if step <= self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        low = self.final_learning_rate
        return self.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done)))

    def load_corpus(self) -> Corpus:
        """Return the corpus that the run trains on and is keyed by; with a `start`, in the tokens of that one's text.

        Raises ValueError as `corpora.load` does, and for a text shorter than one context.
        """
        vocabulary = self.start.load_corpus() if self.start and self.corpus != "two-role" else None
        options: dict[str, Any] = {"path": self.path, "language": self.language, "vocabulary": vocabulary}
        corpus = store.load(self.corpus, vocab_size=self.vocab_size, **options)
        for part, tokens in (("training", corpus.train), ("validation", corpus.validation)):
            if len(tokens) < self.context + 1:
                raise ValueError(
                    f"corpus: the {part} part of {self.corpus!r} holds {len(tokens)} tokens, shorter than one context of "
                    f"{self.context} and its next token; use more text or a shorter context"
                )
        return corpus

    def as_dict(self) -> dict[str, Any]:
        """Return every field by name, as plain values; the language, the remedy and the start as dictionaries of their own."""
        parts = ("language", "remedy", "start")
        return dataclasses.asdict(self) | {name: part and part.as_dict() for name in parts for part in (getattr(self, name),)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Return the configuration that `as_dict` gave; ValueError for a name that is no field, and for no mapping."""
        return cls(**checks.fields("values", values, (field.name for field in dataclasses.fields(cls)), "TrainConfig"))

    def replace(self, **changes: Any) -> "TrainConfig":
        """Return a copy with some fields changed, checked anew; ValueError as `from_dict`."""
        known = [field.name for field in dataclasses.fields(self)]
        return dataclasses.replace(self, **checks.fields("changes", changes, known, "TrainConfig"))
