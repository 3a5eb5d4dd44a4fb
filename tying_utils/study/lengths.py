"""The axis of training length: each arm trained separately to its end at five numbers of tokens per weight.

The other results of `laptop` are of models that saw 0.13 tokens per weight; the paper's OLMo-1B saw about 20. A run that is cut
short is no short run, since its learning rate is still high: every length has runs of its own, with a warmup over the first
quarter and a cosine that ends with it, on one batch size, 512 tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tying_utils.base import checks
from tying_utils.base.names import PACKAGES, TWO_ROLE
from tying_utils.corpora.two_role import Settings
from tying_utils.study import profiles
from tying_utils.study.arms import EQUAL, SECOND_START, TIED, UNTIED, Arm, scaled
from tying_utils.study.profile import Profile
from tying_utils.training.config import TrainConfig

TOKENS_PER_WEIGHT = (0.13, 0.4, 1.3, 4.0, 20.0)  # of the untied model's weights, for all arms alike
RATED = (UNTIED, TIED, scaled(5))
ARMS = (*RATED, EQUAL, SECOND_START)
# Asked again at length, in the setting of `laptop`; x5, the paper's own, is among the others.
REMEDIED = (
    *(arm for arm in profiles.REMEDIES if arm.kind in ("norm-match", "coupled-adam", "untie")),
    # From the second start: what its faster input table is worth is asked from one start, and as a reference it is independent.
    *(arm.at(init=SECOND_START.init) for arm in profiles.REMEDIES if arm.kind == "table-rates"),
    Arm(kind="compact", tied=False, remedy={"name": "compact"}),
)
REMEDY_LENGTHS, _REMEDY_SEEDS = (0.13, 1.3, 4.0), (0, 1, 2)
_CHECKPOINTS, _VALIDATIONS = 16, 10  # of a run, equally spaced


@dataclass(frozen=True, kw_only=True)
class LongProfile(Profile):
    """A profile whose arms are trained to their end at several lengths, counted in tokens per weight of the untied model."""

    learning_rates: dict[float, float] = field(default_factory=dict)  # by tokens per weight; the training's where none is named
    # Others that are tried, by tokens per weight: times the one above, and seeds.
    tried: dict[float, tuple[tuple[float, ...], tuple[int, ...]]] = field(default_factory=dict)

    @cached_property
    def weights(self) -> int:
        """Return how many weights the untied model has."""
        from tying_utils.training import budget  # here, since it builds models, and reading tables does not

        return budget.parameters(self.config(UNTIED, 0))

    def condition(self, arm: Arm, tokens_per_weight: float, seed: int, rate: float = 1.0) -> "Condition":
        """Return one run: `Profile.config`, as long as asked for.

        Raises ValueError for an arm that the axis does not have, for a length that is not finite or below one step, and for a
        seed or a rate that is none.
        """
        if arm not in (*ARMS, *REMEDIED):
            known = ", ".join(known.name for known in (*ARMS, *REMEDIED))
            raise ValueError(f"arm: {getattr(arm, 'name', arm)!r:.80} is no `Arm` of the axis of length; choose one of {known}")
        checks.above_zero("tokens_per_weight", tokens_per_weight)
        checks.above_zero("rate", rate)
        config = self.config(arm, checks.seed("seed", seed))
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
# Of those tried at d 64 before the axis the best over the three arms together: it falls with the length. At d 128 half of it,
# as rates go with the width; others were tried there afterwards.
_RATES = {0.13: 8e-3, 0.4: 8e-3, 1.3: 8e-3, 4.0: 8e-3, 20.0: 4e-3}
D64 = LongProfile(
    name="packages, d 64",
    training={"context": 64, "batch_size": 8, "d_model": 64},
    equal={"n_layers": 6},
    learning_rates=_RATES,
    tried={
        0.13: ((0.5, 1.0, 2.0), (0, 1)),
        0.4: ((0.5, 1.0, 2.0), (0, 1)),
        1.3: ((0.125, 0.25, 0.5, 1.0, 2.0), (0, 1)),
        4.0: ((0.5, 1.0), (0,)),
        20.0: ((0.5, 1.0, 2.0), (0,)),
    },
    **_PACKAGES,
)
D128 = LongProfile(
    name="packages, d 128",
    training={"context": 64, "batch_size": 8, "d_model": 128},
    equal={"n_layers": 5},
    learning_rates={length: rate / 2 for length, rate in _RATES.items()},
    tried={1.3: ((0.5, 1.0, 2.0), (0, 1))},
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
    *((ROLES, seed) for seed in range(5, 10)),  # a run takes seconds, and five leave some headlines open
    *((D128, seed) for seed in range(3)),
)


def tried() -> Iterator[Condition]:
    """Yield the runs that compare learning rates."""
    for profile in ON_PACKAGES:
        for length, (rates, seeds) in profile.tried.items():
            for seed in seeds:
                for arm in RATED:
                    for rate in rates:
                        yield profile.condition(arm, length, seed, rate)


def axis() -> Iterator[Condition]:
    """Yield the runs at the rates that were chosen, seed by seed from short to long."""
    for profile, seed in _ORDER:
        for length in TOKENS_PER_WEIGHT:
            for arm in ARMS:
                yield profile.condition(arm, length, seed)


def remedied() -> Iterator[Condition]:
    """Yield the runs of the remedies, at d 64 and the same rates, seed by seed from short to long."""
    for seed in _REMEDY_SEEDS:
        for length in REMEDY_LENGTHS:
            for arm in REMEDIED:
                yield D64.condition(arm, length, seed)


def conditions() -> Iterator[Condition]:
    """Yield every run in the order in which they are trained: learning rates first, the wide models last."""
    every = [*tried(), *remedied(), *axis()]
    yield from (one for one in every if one.profile != D128.name)
    yield from (one for one in every if one.profile == D128.name)
