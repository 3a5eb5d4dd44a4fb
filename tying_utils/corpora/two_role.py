"""A language whose right answer is known: what may follow a token and after what it may come are two independent classes.

Each token has a *source* class, which alone decides what follows it, and a *target* class, which alone decides after what it
comes: P(next = w' | w) is proportional to p(w') exp(M[source(w), target(w')]), with Zipfian p. An ideal input table needs the
source classes alone and an ideal output table the target classes alone, so the classes of a token's nearest neighbours say
which role a table shows, with no reference model. The entropy rate is known exactly: it is the floor of every loss.
"""

import dataclasses
from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np

from tying_utils.base import checks
from tying_utils.base.checks import integer
from tying_utils.base.names import ROLES

# Part of every fingerprint: raise it when the same settings would give another language or other tokens.
FORMAT = 1
# What the random streams are for: apart, so that a changed setting leaves alone what it does not decide.
_SOURCE, _TARGET, _RANK, _AFFINITY, _SAMPLE, _PERMUTED = range(6)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a language of a given vocabulary, and how many of its tokens a corpus holds.

    Raises ValueError on construction for anything that makes no language.
    """

    classes: int = 16  # of either role
    temperature: float = 0.4  # M is standard normal, divided by it: the lower, the more the roles decide
    zipf: float = 1.0  # exponent s of p(rank r) ~ r^-s, ranks given to tokens at random; 0 is uniform
    agreement: float = 0.0  # share of the tokens whose target class is their source class; of the others by chance
    length: int = 500_000  # training tokens; validation has a twentieth
    seed: int = 0
    permuted: str | None = None  # "source" or "target": that role's classes are dealt to the tokens anew, all else stays

    def __post_init__(self) -> None:
        for name, least in (("classes", 2), ("length", 1000), ("seed", 0)):
            object.__setattr__(self, name, integer(name, getattr(self, name), least))
        # A lower temperature or a larger exponent would round probabilities to 0.
        for name, low, high in (("temperature", 0.05, 1e6), ("zipf", 0.0, 10.0), ("agreement", 0.0, 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:  # type: ignore
                raise ValueError(f"{name}: a number from {low:g} to {high:g} is needed, got {value!r}")
            object.__setattr__(self, name, float(value))  # 1 and 1.0 are one language and must be one key
        if self.permuted not in (None, *ROLES):
            raise ValueError(f"permuted: 'source', 'target' or None is needed, got {self.permuted!r}")

    def as_dict(self) -> dict[str, Any]:
        """Return every field by name, except a `permuted` of None: such a language keeps the key that it had without it."""
        values = dataclasses.asdict(self)
        return values if self.permuted else {name: value for name, value in values.items() if name != "permuted"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Settings":
        """Return the settings that `as_dict` gave; ValueError for a name that is no field, and for no mapping."""
        known = [field.name for field in dataclasses.fields(cls)]
        return cls(**checks.fields("language", values, known, "two_role.Settings"))


@dataclass(frozen=True)
class Language:
    """The two-role language of `settings` over V = `vocab_size` tokens; its arrays are made when they are first asked for.

    Raises ValueError unless the classes divide the vocabulary and leave each at least 2 tokens.
    """

    vocab_size: int
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        V, classes = integer("vocab_size", self.vocab_size, 4), self.settings.classes
        object.__setattr__(self, "vocab_size", V)
        if V % classes or 2 * classes > V:
            fitting = max(2, V // classes) * classes
            raise ValueError(
                f"vocab_size: {classes} equal classes of at least 2 tokens do not make {V} tokens; "
                f"try {fitting} or {fitting + classes} tokens"
            )

    @cached_property
    def source(self) -> np.ndarray:
        """Return the class that decides what follows each token, (V,), int64; V / classes tokens each."""
        return self._dealt("source", self._source)

    @cached_property
    def target(self) -> np.ndarray:
        """Return the class that decides after what each token comes, (V,), int64; V / classes tokens each."""
        draw, labels = self._draw(_TARGET), self._source.copy()
        # Who agrees at one share agrees at every larger one. The others shuffle their labels, which keeps the balance.
        others = draw.permutation(self.vocab_size)[round(self.settings.agreement * self.vocab_size) :]
        labels[others] = draw.permutation(labels[others])
        return self._dealt("target", labels)

    @cached_property
    def weights(self) -> np.ndarray:
        """Return p, what is left of a token's frequency without the roles, (V,), float64, sums to 1."""
        return np.exp(self._log_weights)

    @cached_property
    def affinity(self) -> np.ndarray:
        """Return M, log of how much a source class favours a target class, (classes, classes), float64."""
        classes = self.settings.classes
        return self._draw(_AFFINITY).standard_normal((classes, classes)) / self.settings.temperature

    @cached_property
    def transition(self) -> np.ndarray:
        """Return P(next token | source class), (classes, V), float64, rows sum to 1."""
        return np.exp(self._log_transition)

    @cached_property
    def unigram(self) -> np.ndarray:
        """Return the stationary distribution of tokens, (V,), float64."""
        return self._stationary @ self.transition

    @cached_property
    def entropy_rate(self) -> float:
        """Return the least mean loss that any model can have, nats per token."""
        return float(-self._stationary @ (self.transition * self._log_transition).sum(axis=1))

    @cached_property
    def unigram_entropy(self) -> float:
        """Return the mean loss of a model that knows frequencies alone, nats per token."""
        return float(-self.unigram @ np.log(self.unigram))

    def sample(self, length: int, seed: int = 0) -> np.ndarray:
        """Draw one unbroken chain from the stationary distribution, (length,), int64. A shorter sample begins a longer one.

        Raises ValueError unless length is at least 1 and seed at least 0.
        """
        draws = self._draw(_SAMPLE, integer("seed", seed, 0)).random(integer("length", length, 1)).tolist()
        rows = [_cumulative(row) for row in self.transition]
        source = self.source.tolist()
        tokens, row = [], _cumulative(self.unigram)
        for draw in draws:
            token = bisect(row, draw)
            tokens.append(token)
            row = rows[source[token]]
        return np.array(tokens, dtype=np.int64)

    def loss(self, windows: np.ndarray) -> float:
        """Return mean -log P(next | current) over windows (n, context + 1) of tokens, nats: the exact model's loss on them.

        A model's loss on `windows` minus this one is free of the noise of the text. Raises ValueError for anything but rows of
        at least 2 tokens of the vocabulary.
        """
        windows = np.asarray(windows)
        if windows.ndim != 2 or not windows.shape[0] or windows.shape[1] < 2 or not np.issubdtype(windows.dtype, np.integer):
            got = f"{windows.dtype} {windows.shape}"
            raise ValueError(f"windows: integers (n, context + 1), at least 1 by 2, are needed, got {got}")
        if windows.min() < 0 or windows.max() >= self.vocab_size:
            got = f"{windows.min()} to {windows.max()}"
            raise ValueError(f"windows: tokens from 0 to {self.vocab_size - 1} are needed, got {got}")
        return float(-self._log_transition[self.source[windows[:, :-1]], windows[:, 1:]].mean())

    def _draw(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.settings.seed, *purpose])

    @cached_property
    def _source(self) -> np.ndarray:
        labels = np.arange(self.vocab_size, dtype=np.int64) % self.settings.classes
        return self._draw(_SOURCE).permutation(labels)

    def _dealt(self, role: str, labels: np.ndarray) -> np.ndarray:
        return self._draw(_PERMUTED).permutation(labels) if self.settings.permuted == role else labels

    @cached_property
    def _log_weights(self) -> np.ndarray:
        ranks = 1 + self._draw(_RANK).permutation(self.vocab_size)
        return _log_normalised(-self.settings.zipf * np.log(ranks))

    @cached_property
    def _log_transition(self) -> np.ndarray:
        return _log_normalised(self._log_weights + self.affinity[:, self.target])

    @cached_property
    def _stationary(self) -> np.ndarray:
        # By state reduction, which subtracts nothing and so keeps small values exact:
        # Grassmann, Taksar and Heyman 1985, Operations Research 33(5).
        classes = self.settings.classes
        chain = self.transition @ np.eye(classes)[self.source]
        for last in range(classes - 1, 0, -1):
            chain[:last, last] /= chain[last, :last].sum()
            chain[:last, :last] += np.outer(chain[:last, last], chain[last, :last])
        share = np.ones(classes)
        for state in range(1, classes):
            share[state] = share[:state] @ chain[:state, state]
        return share / share.sum()


def _log_normalised(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def _cumulative(probabilities: np.ndarray) -> list[float]:
    """Return cumulative probabilities that end in 1 exactly, so that every draw from [0, 1) falls to a token."""
    cumulative = probabilities.cumsum()
    return (cumulative / cumulative[-1]).tolist()
