"""The axis of training length: each arm trained separately to its end at five numbers of tokens per weight.

The other results of `laptop` are of models that saw 0.13 tokens per weight; the paper's OLMo-1B saw about 20. A run that is cut
short is no short run, since its learning rate is still high: every length has runs of its own, with a warmup over the first
quarter and a cosine that ends with it, on one batch size. Batches of 512 tokens: 1,024 are a third faster at d 64 (8 % at
d 128), and at 1.3 tokens per weight lose .11 (untied) and .15 nats (tied) for it.
"""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tying_utils.base import paths
from tying_utils.base.names import EQUAL, PACKAGES, TIED, TWO_ROLE, UNTIED, scaled
from tying_utils.corpora.store import Corpus
from tying_utils.corpora.two_role import Settings
from tying_utils.study import profiles
from tying_utils.training import budget, run_store, sentinels
from tying_utils.training import trainer as training
from tying_utils.training.config import TrainConfig
from tying_utils.training.run_store import Run

SECOND = "untied, second start"  # what two untied models share: the most that a tied table can share with either
TOKENS_PER_WEIGHT = (0.13, 0.4, 1.3, 4.0, 20.0)  # of the untied model's weights, for all arms alike
# Tried at d 64 before the axis, by tokens per weight: times the learning rate that was chosen there, and seeds.
RATES: dict[float, tuple[tuple[float, ...], tuple[int, ...]]] = {
    0.13: ((0.5, 1.0, 2.0), (0, 1)),
    0.4: ((0.5, 1.0, 2.0), (0, 1)),
    1.3: ((0.125, 0.25, 0.5, 1.0, 2.0), (0, 1)),
    4.0: ((0.5, 1.0), (0,)),
    20.0: ((0.5, 1.0, 2.0), (0,)),
}
ARMS = (UNTIED, TIED, scaled(5), EQUAL, SECOND)
_CHECKPOINTS, _VALIDATIONS = 16, 10  # of a run, equally spaced


@dataclass(frozen=True)
class Place:
    """A text and a shape. `training` holds what differs from TrainConfig's defaults, `equal` what the arm `EQUAL` changes."""

    name: str
    training: dict[str, Any]
    equal: dict[str, Any]
    learning_rates: dict[float, float] = field(default_factory=dict)  # by tokens per weight; the training's where none is named

    @cached_property
    def weights(self) -> int:
        """Of the untied model."""
        return budget.parameters(TrainConfig(**self.training, tied=False))

    def steps(self, tokens_per_weight: float) -> int:
        """How many optimizer steps so many tokens per weight are."""
        own = TrainConfig(**self.training)
        return round(tokens_per_weight * self.weights / (own.batch_size * own.context))

    def condition(self, arm: str, tokens_per_weight: float, seed: int, rate: float = 1.0) -> "Condition":
        """One run. All arms of a seed see one order of the data; tied, untied and second untied models start apart.

        Raises ValueError for an arm that the axis does not have.
        """
        if arm not in ARMS:
            raise ValueError(f"arm: {arm!r} is not on the axis of length; choose one of {', '.join(ARMS)}")
        steps, values = self.steps(tokens_per_weight), dict(self.training)
        own: float = values.get("learning_rate", TrainConfig.learning_rate)
        values["learning_rate"] = rate * self.learning_rates.get(tokens_per_weight, own)
        if "language" in values:
            values["language"] = Settings(**values["language"].as_dict() | {"seed": seed})
        changes = {UNTIED: {"tied": False}, SECOND: {"tied": False}, scaled(5): {"input_scale": 5.0}, EQUAL: self.equal}
        values |= {"steps": steps, "warmup_steps": steps // 4, **changes.get(arm, {})}
        values |= {"checkpoint_every": -(-steps // _CHECKPOINTS), "validation_every": -(-steps // _VALIDATIONS)}
        start = {UNTIED: 1000, SECOND: 2000}.get(arm, 0) + seed
        config = TrainConfig(**values, validation_sequences=256, init_seed=start, data_seed=seed)
        return Condition(self.name, arm, tokens_per_weight, seed, rate, config)


@dataclass(frozen=True)
class Condition:
    """One run of the axis: where, which arm, for how long, which seed, and at how many times the learning rate chosen there."""

    place: str
    arm: str
    tokens_per_weight: float
    seed: int
    rate: float
    config: TrainConfig


_ON_PACKAGES = {"corpus": PACKAGES, "context": 64, "batch_size": 8}
_ROLES = profiles.get("laptop", TWO_ROLE)
_SHAPE = ("vocab_size", "d_model", "n_layers", "n_heads", "context", "batch_size", "learning_rate")
_LANGUAGE = Settings(length=4_000_000)  # one text for all lengths
# Of `RATES` the best for untied, tied and x5 alike: it falls with the length, and does not differ between the arms. At d 128,
# where none were tried, half of it, as rates go with the width.
_RATES = {0.13: 8e-3, 0.4: 8e-3, 1.3: 8e-3, 4.0: 8e-3, 20.0: 4e-3}
D64 = Place("packages, d 64", {**_ON_PACKAGES, "d_model": 64}, {"n_layers": 6}, _RATES)
D128 = Place(
    "packages, d 128", {**_ON_PACKAGES, "d_model": 128}, {"n_layers": 5}, {length: r / 2 for length, r in _RATES.items()}
)
ROLES = Place(
    "two-role", {name: _ROLES.training[name] for name in _SHAPE} | {"corpus": TWO_ROLE, "language": _LANGUAGE}, _ROLES.equal
)
PLACES, ON_PACKAGES = (D64, ROLES, D128), (D64, D128)
# Seed by seed, so that what is finished is at any time a whole axis of fewer seeds.
_ORDER = (
    *((place, seed) for seed in range(3) for place in (D64, ROLES)),
    (D128, 0),
    *((place, seed) for seed in (3, 4) for place in (D64, ROLES)),
    (D128, 1),
    (D128, 2),
)


def conditions() -> Iterator[Condition]:
    """Yield every run in the order in which they are trained: learning rates first, then seed by seed from short to long."""
    for length, (rates, seeds) in RATES.items():
        for seed in seeds:
            for arm in (UNTIED, TIED, scaled(5)):
                for rate in rates:
                    yield D64.condition(arm, length, seed, rate)
    for place, seed in _ORDER:
        for length in TOKENS_PER_WEIGHT:
            for arm in ARMS:
                yield place.condition(arm, length, seed)


def train_next(*, progress: bool = True) -> Iterator[tuple[Condition, Run]]:
    """Train the runs that are neither finished nor in training elsewhere, in order, and yield each as it ends.

    Several processes share the work, also on several machines that see one folder; an interrupted run is gone on with. One that
    diverges is named in a warning, and the next one is trained. Raises ValueError as `training.train` does, and before anything
    is trained where the installed packages are too short a text for the longest run.
    """
    known: dict[Any, dict[str, Any]] = {}
    for place in ON_PACKAGES:
        known[place.condition(TIED, 1.0, 0).config.text] = _long_enough(place).fingerprint
    for condition in conditions():
        config = condition.config
        if config.text not in known:
            known[config.text] = config.load_corpus().fingerprint
        folder = run_store.run_folder(config, known[config.text])
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Claimed until it is trained: of two processes that saw it free together, one would wait until the other has ended.
        with _held(folder.with_suffix(".claim")) as claimed:
            with _held(folder.with_suffix(".lock")) as free:
                pass  # let go at once: training takes it
            if not (claimed and free) or run_store.is_finished(config, known[config.text]):
                continue
            try:
                run = training.train(config, progress=progress)
            except sentinels.Diverged as lost:
                warnings.warn(f"{condition.place}, {condition.arm}, seed {condition.seed}: {lost}", stacklevel=2)
                continue
        yield condition, run


def _long_enough(place: Place) -> Corpus:
    """The text of `place`, if its longest run reads none of it twice; else ValueError."""
    corpus = TrainConfig(**place.training).load_corpus()
    fitting = [length for length in TOKENS_PER_WEIGHT if length * place.weights < len(corpus.train)]
    if len(fitting) < len(TOKENS_PER_WEIGHT):
        raise ValueError(
            f"packages: what is installed here makes {len(corpus.train):,} tokens to train on; at {place.weights:,} weights "
            f"{', '.join(f'{length:g}' for length in fitting) or 'no'} tokens per weight fit, of "
            f"{', '.join(f'{length:g}' for length in TOKENS_PER_WEIGHT)}; install more packages, or make a folder of them "
            f"at {paths.texts() / PACKAGES}"
        )
    return corpus


@contextmanager
def _held(lock: Path) -> Iterator[bool]:
    """Hold `lock` unless another process does, and say whether it is held."""
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(lock, timeout=0))
        except Timeout:
            yield False
        else:
            yield True
