"""An untied and a tied model of Python source, trained in seconds: to look at one token in, or to change a number of."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from tying_utils.base.checks import positive
from tying_utils.corpora.corpus import Corpus
from tying_utils.measures.neighbors import nearest
from tying_utils.study import arms
from tying_utils.training.config import TrainConfig
from tying_utils.training.run_store import Run

# Beside the defaults of TrainConfig: ten seconds for both models on two cores.
SIZE: dict[str, Any] = {"d_model": 64, "n_layers": 2, "n_heads": 2, "context": 64, "steps": 200}
_OF_ONE_TABLE = ("input_scale", "output_scale", "remedy")  # these change the tied model alone


@dataclass(frozen=True)
class Small:
    """A small untied and a small tied run, trained on the same batches from independent starts, and their corpus."""

    untied: Run
    tied: Run
    corpus: Corpus

    @cached_property
    def used(self) -> Tensor:
        """Return the tokens that occur in the training text, (rows,) int64."""
        return torch.from_numpy(self.corpus.counts.nonzero()[0])

    @cached_property
    def tables(self) -> dict[str, Tensor]:
        """Return the rows of the used tokens, (rows, d) float32, of "E", "U" (untied input and output) and "W" (tied)."""
        untied, tied = self.untied.tables(), self.tied.tables()
        return {"E": untied.input[self.used], "U": untied.output[self.used], "W": tied.table[self.used]}

    def words(self, tokens: Iterable[int] | Tensor) -> list[str]:
        """Return tokens as text; what is not whole UTF-8 by itself shows as a replacement character."""
        return [self.corpus.tokenizer.decode([int(token)]) for token in tokens]

    def token(self, word: str) -> int:
        """Return the token that is `word`, as " return" with its space. Raises ValueError for a text of several tokens."""
        ids = self.corpus.tokenizer.encode(word).ids
        if len(ids) != 1:
            raise ValueError(f"word: one token is needed, got {word!r}, which is {self.words(ids)}; choose another")
        return ids[0]

    def row(self, word: str) -> int:
        """Return the row of `word` in `tables`. Raises ValueError for several tokens, and for one that never occurs."""
        found = (self.used == self.token(word)).nonzero()
        if not len(found):
            raise ValueError(f"word: a token that occurs in the training text is needed, got {word!r}; choose another")
        return int(found[0])

    def nearest(self, word: str, k: int = 5) -> pd.DataFrame:
        """Return the `k` tokens nearest to `word` by cosine, nearest first: a column per table, each as repr shows it."""
        row, k = self.row(word), positive("k", k)
        found = {name: self.words(self.used[nearest(table, k)[row]]) for name, table in self.tables.items()}
        return pd.DataFrame({name: map(repr, words) for name, words in found.items()}, index=range(1, k + 1))


def small(progress: bool = True, **changes: Any) -> Small:
    """Train both models, or load them where they are finished; `changes` are fields of `TrainConfig`.

    Scales and a remedy change the tied model alone. Takes about ten seconds on two cores, and as long again where the text
    was never tokenised on this machine. Raises ValueError as `TrainConfig` and `train_all` do.
    """
    from tying_utils.training.pool import train_all

    both = {**SIZE, **{name: value for name, value in changes.items() if name not in _OF_ONE_TABLE}}
    both.setdefault("warmup_steps", positive("steps", both["steps"]) // 4)
    for every in ("checkpoint_every", "validation_every"):
        both.setdefault(every, both["steps"])
    one = {name: changes[name] for name in _OF_ONE_TABLE if name in changes}
    untied = TrainConfig(**both, tied=False, init_seed=arms.AS_UNTIED)
    tied = TrainConfig(**both, **one, init_seed=arms.AS_TIED)
    return Small(*train_all([untied, tied], progress=progress), corpus=tied.load_corpus())
