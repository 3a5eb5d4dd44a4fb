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
from tying_utils.base.names import PACKAGES, TWO_ROLE
from tying_utils.corpora.corpus import Corpus
from tying_utils.corpora.two_role import Settings
from tying_utils.study import profiles
from tying_utils.study.arms import EQUAL, SECOND_START, TIED, UNTIED, Arm, scaled
from tying_utils.study.profile import Profile
from tying_utils.training import budget, run_store, sentinels
from tying_utils.training import trainer as training
from tying_utils.training.config import TrainConfig
from tying_utils.training.run_store import Run

TOKENS_PER_WEIGHT = (0.13, 0.4, 1.3, 4.0, 20.0)  # of the untied model's weights, for all arms alike
# Tried at d 64 before the axis, by tokens per weight: times the learning rate that was chosen there, and seeds.
RATES: dict[float, tuple[tuple[float, ...], tuple[int, ...]]] = {
    0.13: ((0.5, 1.0, 2.0), (0, 1)),
    0.4: ((0.5, 1.0, 2.0), (0, 1)),
    1.3: ((0.125, 0.25, 0.5, 1.0, 2.0), (0, 1)),
    4.0: ((0.5, 1.0), (0,)),
    20.0: ((0.5, 1.0, 2.0), (0,)),
}
RATED = (UNTIED, TIED, scaled(5))
ARMS = (*RATED, EQUAL, SECOND_START)
_CHECKPOINTS, _VALIDATIONS = 16, 10  # of a run, equally spaced


@dataclass(frozen=True, kw_only=True)
class LongProfile(Profile):
    """A profile whose arms are trained to their end at several lengths, counted in tokens per weight of the untied model."""

    learning_rates: dict[float, float] = field(default_factory=dict)  # by tokens per weight; the training's where none is named

    @cached_property
    def weights(self) -> int:
        """Return how many weights the untied model has."""
        return budget.parameters(self.config(UNTIED, 0))

    def condition(self, arm: Arm, tokens_per_weight: float, seed: int, rate: float = 1.0) -> "Condition":
        """Return one run: `Profile.config`, as long as asked for. Raises ValueError for an arm that the axis does not have."""
        if arm not in ARMS:
            known = ", ".join(known.name for known in ARMS)
            raise ValueError(f"arm: {arm.name!r} is not on the axis of length; choose one of {known}")
        config = self.config(arm, seed)
        steps = round(tokens_per_weight * self.weights / (config.batch_size * config.context))
        config = config.replace(
            steps=steps,
            learning_rate=rate * self.learning_rates.get(tokens_per_weight, config.learning_rate),
            warmup_steps=steps // 4,
            checkpoint_every=-(-steps // _CHECKPOINTS),
            validation_every=-(-steps // _VALIDATIONS),
            validation_sequences=256,
        )
        return Condition(self.name, arm, tokens_per_weight, seed, rate, config)


@dataclass(frozen=True)
class Condition:
    """One run of the axis: profile, arm, length, seed, and a factor on the learning rate that was chosen there."""

    profile: str
    arm: Arm
    tokens_per_weight: float
    seed: int
    rate: float
    config: TrainConfig


_PACKAGES: dict[str, Any] = {"purpose": "the source of everything installed here", "corpus": PACKAGES, "seeds": (0, 1, 2, 3, 4)}
# Of `RATES` the best for untied, tied and x5 alike: it falls with the length, and does not differ between the arms. At d 128,
# where none were tried, half of it, as rates go with the width.
_RATES = {0.13: 8e-3, 0.4: 8e-3, 1.3: 8e-3, 4.0: 8e-3, 20.0: 4e-3}
D64 = LongProfile(
    name="packages, d 64",
    training={"context": 64, "batch_size": 8, "d_model": 64},
    equal={"n_layers": 6},
    learning_rates=_RATES,
    **_PACKAGES,
)
D128 = LongProfile(
    name="packages, d 128",
    training={"context": 64, "batch_size": 8, "d_model": 128},
    equal={"n_layers": 5},
    learning_rates={length: rate / 2 for length, rate in _RATES.items()},
    **_PACKAGES,
)
_ROLES = profiles.get("laptop", TWO_ROLE)
_OWN = _ROLES.config(TIED, 0)
ROLES = LongProfile(
    name="two-role",
    purpose="the language whose right answer is known",
    corpus=TWO_ROLE,
    seeds=_ROLES.seeds,
    training={
        **_OWN.sizes,
        "batch_size": _OWN.batch_size,
        "learning_rate": _OWN.learning_rate,
        "language": Settings(length=4_000_000),  # one text for all lengths
    },
    equal=_ROLES.equal,
)
PROFILES, ON_PACKAGES = (D64, ROLES, D128), (D64, D128)
# Seed by seed, so that what is finished is at any time a whole axis of fewer seeds.
_ORDER = (
    *((profile, seed) for seed in range(5) for profile in (D64, ROLES)),
    *((D128, seed) for seed in range(3)),
)


def tried() -> Iterator[Condition]:
    """Yield the runs that chose the learning rates."""
    for length, (rates, seeds) in RATES.items():
        for seed in seeds:
            for arm in RATED:
                for rate in rates:
                    yield D64.condition(arm, length, seed, rate)


def axis() -> Iterator[Condition]:
    """Yield the runs at the rates that were chosen, seed by seed from short to long."""
    for profile, seed in _ORDER:
        for length in TOKENS_PER_WEIGHT:
            for arm in ARMS:
                yield profile.condition(arm, length, seed)


def conditions() -> Iterator[Condition]:
    """Yield every run in the order in which they are trained: learning rates first."""
    yield from tried()
    yield from axis()


def train_next(*, progress: bool = True) -> Iterator[tuple[Condition, Run]]:
    """Train the runs that are neither finished nor in training elsewhere, in order, and yield each as it ends.

    Several processes share the work, also on several machines that see one folder; an interrupted run goes on. One that
    diverges is named in a warning, and the next one is trained. Raises ValueError as `training.train` does, and before anything
    is trained where the installed packages are too short a text for the longest run.
    """
    known: dict[Any, dict[str, Any]] = {}
    for profile in ON_PACKAGES:
        known[profile.config(TIED, 0).text] = _long_enough(profile).fingerprint
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
                warnings.warn(f"{condition.profile}, {condition.arm.name}, seed {condition.seed}: {lost}", stacklevel=2)
                continue
        yield condition, run


def _long_enough(profile: LongProfile) -> Corpus:
    """Return the text of `profile`. Raises ValueError unless its longest run reads none of it twice."""
    corpus = profile.config(TIED, 0).load_corpus()
    fitting = [length for length in TOKENS_PER_WEIGHT if length * profile.weights < len(corpus.train)]
    if len(fitting) < len(TOKENS_PER_WEIGHT):
        raise ValueError(
            f"packages: what is installed here makes {len(corpus.train):,} tokens to train on; at {profile.weights:,} weights "
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
