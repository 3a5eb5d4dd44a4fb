"""After pretraining: how soon a run learns a second text, what it forgets of the first, and what can be read off its tables.

`transfer_outcomes` says what their tables come to. A fine-tuned arm starts from the finished run of another arm of its profile
(`Profile.starts`) and trains with the ordinary gradient, so that what differs between arms is the start alone.
"""

import keyword
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from tying_utils.corpora.corpus import Corpus
from tying_utils.measures import perplexity, probe
from tying_utils.study import columns
from tying_utils.study.arms import Arm
from tying_utils.study.profile import Profile
from tying_utils.study.trained import Trained, each, models_side_by_side, side_by_side

CATEGORIES = ("keyword", "identifier part", "whitespace", "number", "punctuation")
FOLDS = 5  # of a probe


def category(text: str) -> str | None:
    """Return what kind of Python token `text`, a token of a BPE, is or is a part of: one of `CATEGORIES`, spaces aside.

    None for a mixture of kinds, for bytes that make no character, and for the separator of documents.
    """
    word = text.strip()
    if not word:
        return "whitespace" if text else None
    if keyword.iskeyword(word):
        return "keyword"
    if word.isdecimal():
        return "number"
    if word.isidentifier():
        return "identifier part"
    return "punctuation" if set(word) <= set(string.punctuation) else None


def categories(corpus: Corpus) -> np.ndarray:
    """Return the place in `CATEGORIES` of every token of a text's vocabulary, -1 where it has none, (V,), int64."""
    texts = (corpus.tokenizer.decode([token], skip_special_tokens=False) for token in range(corpus.vocab_size))
    kinds = map(category, texts)
    return np.array([-1 if kind is None else CATEGORIES.index(kind) for kind in kinds])


def token_bytes(corpus: Corpus) -> np.ndarray:
    """Return the bytes of text that each token of a byte-level BPE stands for, (V,), int64; 0 for the separator."""
    names = [corpus.tokenizer.id_to_token(token) for token in range(corpus.vocab_size)]
    return np.array([0 if name == corpus.separator else len(name) for name in names])  # a character of a name is a byte


def _probes(run: Trained, profile: Profile) -> pd.DataFrame:
    """Return how well a token's category, in a text, or else its two roles are read off each table."""
    rows, used, permutations = [], run.used.numpy(), max(2, profile.permutations // 10)
    language = run.language
    roles = {"source role": language.source, "target role": language.target} if language else {}
    for question, answers in (roles or {"category": categories(run.corpus)}).items():
        own = answers[used]
        known = (own >= 0) & (np.bincount(own[own >= 0], minlength=own.max() + 1)[own] >= FOLDS)  # a rare kind is left out
        for name, table in run.tables().items():
            score = probe.probe(
                table[torch.from_numpy(known)], own[known], folds=FOLDS, permutations=permutations, seed=run.seed
            )
            rows.append({**run.labels, "table": name, "question": question, **columns.scores(score)})
            rows[-1] |= {"classes": score.classes, "tokens": score.tokens}
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Tuning:
    """A fine-tuned run, and the one that it started from, by whose arm its rows are labelled."""

    before: Trained
    after: Trained

    @property
    def arm(self) -> Arm:
        return self.after.arm

    @property
    def seed(self) -> int:
        return self.after.seed

    @property
    def labels(self) -> dict[str, Any]:
        return self.before.labels | {"to": self.arm.to}


def _tunings(runs: Sequence[Trained]) -> list[_Tuning]:
    starts = {(run.arm, run.seed): run for run in runs}
    return [_Tuning(starts[run.arm.start, run.seed], run) for run in runs if run.arm.start]


def _losses(tuning: _Tuning, profile: Profile) -> pd.DataFrame:
    """Return the held-out loss on the new text by step of fine-tuning, from step 0, which is the start as it was."""
    after, config = tuning.after, tuning.after.run.config
    windows = after.corpus.windows("validation", config.validation_sequences, config.context + 1)
    known = after.run.metrics.dropna(subset="validation_loss")
    return pd.DataFrame(
        {
            **tuning.labels,
            "step": [0, *known["step"]],
            "loss": [_loss(tuning.before, windows), *known["validation_loss"]],
            "floor": after.floor,
            "bytes_per_token": np.nan if after.language else token_bytes(after.corpus)[windows[:, 1:]].mean(),
        }
    )


def _forgetting(tuning: _Tuning, profile: Profile) -> pd.DataFrame:
    """Return the held-out loss on the old text, before fine-tuning and after it."""
    before, config = tuning.before, tuning.before.run.config
    windows = before.corpus.windows("validation", config.validation_sequences, config.context + 1)
    return pd.DataFrame([{**tuning.labels, "before": _loss(before, windows), "after": _loss(tuning.after, windows)}])


def _loss(run: Trained, windows: np.ndarray) -> float:
    """Return the mean loss of a finished run's model on `windows`, nats per token."""
    return perplexity.perplexity(run.model(), windows, progress=False).loss


losses, forgetting = each(_losses, models_side_by_side, _tunings), each(_forgetting, models_side_by_side, _tunings)
probes = each(_probes, side_by_side)
