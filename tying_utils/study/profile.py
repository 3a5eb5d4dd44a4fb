"""A scale to run the notebooks at, as data: how large the models are, what they train on, how many seeds, and which arms."""

import dataclasses
import itertools
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tying_utils.base.names import ELSEWHERE_SEEDS, TWO_ROLE
from tying_utils.corpora.two_role import Settings
from tying_utils.study import arms
from tying_utils.study.arms import (
    AGAIN,
    AS_UNTIED,
    ELSEWHERE,
    EQUAL,
    PAIR,
    SECOND_START,
    SHARED_START,
    TIED,
    UNTIED,
    Arm,
    Place,
)
from tying_utils.training.config import TrainConfig

Arms = tuple[Arm, ...]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A scale to run the notebooks at, on one corpus. `training` holds what differs from TrainConfig's defaults."""

    name: str
    purpose: str
    corpus: str
    seeds: tuple[int, ...]
    training: dict[str, Any] = field(default_factory=dict)
    input_scales: tuple[float, ...] = (1.0,)  # 1 is the ordinary tied arm
    output_scales: tuple[float, ...] = (1.0,)
    swept: tuple[float, ...] = ()  # output scales that are crossed with the input scales: the sweep behind the sliders
    agreements: tuple[float, ...] = (0.0,)  # of the two roles; the two-role language alone
    shared_start: bool = True
    second_start: bool = True  # another untied arm, whose two tables are the poles that a tied one lies between
    equal: dict[str, Any] = field(default_factory=dict)  # fields of TrainConfig that make the tied model as large as the untied
    sizes: tuple[Place, ...] = ()  # beside the profile's own
    remedies: Arms = ()
    remedies_enlarged: bool = False  # whether those that lack weights beside the untied model are trained with as many, too
    few: int | None = None  # seeds of the arms that only remedies need (None: all)
    replayed: Arms = ()  # that are trained again, to learn which path moved their tables
    architectures: tuple[str, ...] = ()  # beside the profile's own, at its own shape
    widths: tuple[int, ...] = ()  # d_model of a grid with `vocabularies`, at the profile's own depth
    vocabularies: tuple[int, ...] = ()  # token counts of that grid
    starts: Arms = ()  # whose finished runs are fine-tuned
    transfers: dict[str, dict[str, Any]] = field(default_factory=dict)  # by what they are fine-tuned on: fields that differ
    lens: dict[str, Any] = field(default_factory=dict)  # arguments of measures.lens.train_lens
    lens_windows: int = 960  # of the training text, to train lenses on
    lens_budgets: tuple[int, ...] = (25, 50, 100, 200, 400)  # steps of a lens from the identity
    evaluation_windows: int = 64  # of the held-out text, for lenses and the residual stream
    permutations: int = 100  # of rows, for chance

    @cached_property
    def arms(self) -> dict[str, Arm]:
        """Return every arm of the profile by name."""
        return {arm.name: arm for arm in (*self._own, *self._for_remedies, *self.elsewhere)}

    @cached_property
    def scaled(self) -> Arms:
        """Return the arms whose input path is scaled."""
        return tuple(arms.scaled(scale) for scale in self.input_scales if scale != 1)

    @cached_property
    def output_scaled(self) -> Arms:
        """Return the arms whose output path is scaled."""
        return tuple(arms.scaled(1.0, scale) for scale in self.output_scales if scale != 1)

    @cached_property
    def sweep(self) -> Arms:
        """Return the arms on the grid of input and output scales."""
        return tuple(itertools.starmap(arms.scaled, itertools.product(self.input_scales, self.swept)))

    @cached_property
    def agreeing(self) -> Arms:
        """Return the pairs of arms in a language whose roles agree in part."""
        return tuple(arm.at(agreement=agreement) for agreement in self.agreements if agreement for arm in PAIR)

    @cached_property
    def sized(self) -> Arms:
        """Return the arms that compare losses at equal shape and at equal parameters, at every size."""
        places = (Place(), *self.sizes) if self.equal else self.sizes
        return tuple(arm.at(place=place) for place in places for arm in (*PAIR, EQUAL))

    @cached_property
    def remedied(self) -> Arms:
        """Return the arms that compare remedies at equal shape: the poles, and every remedy."""
        return (UNTIED, AGAIN, TIED, *self.remedies) if self.remedies else ()

    @cached_property
    def enlarged(self) -> Arms:
        """Return the tied arm and the remedies that lack a table beside the untied model, with its number of weights."""
        found = []
        for arm in (TIED, *self.remedies) if self.remedies_enlarged else ():
            config = self.config(arm, self.seeds[0])
            if config.table_parameters < 1.5 * config.vocab_size * config.d_model:  # nearer one table's weights than two's
                found.append(arm.at(enlarged=True))
        return tuple(found)

    @cached_property
    def by_architecture(self) -> Arms:
        """Return the arms that the claims need, at each architecture; none where there is no other to compare with."""
        places = (Place(), *(Place(arch=arch) for arch in self.architectures)) if self.architectures else ()
        return tuple(arm.at(place=place) for place in places for arm in ELSEWHERE)

    @cached_property
    def grid(self) -> Arms:
        """Return the arms that the claims need, at every width with every vocabulary."""
        own = {name: self.training.get(name, getattr(TrainConfig, name)) for name in ("d_model", "n_layers", "vocab_size")}
        places = []
        for vocabulary, width in itertools.product(self.vocabularies, self.widths):
            shape = {"d_model": width, "n_layers": own["n_layers"]} if width != own["d_model"] else {}
            places.append(Place(**shape, vocab_size=vocabulary if vocabulary != own["vocab_size"] else None))
        return tuple(arm.at(place=place) for place in places for arm in ELSEWHERE)

    @cached_property
    def elsewhere(self) -> Arms:
        """Return the arms that ask the claims again at other architectures and shapes."""
        return (*self.by_architecture, *self.grid)

    @cached_property
    def tuned(self) -> Arms:
        """Return the fine-tuned arms."""
        return tuple(arms.tuned(start, to) for to in self.transfers for start in self.starts)

    @cached_property
    def _for_remedies(self) -> Arms:
        """Return the arms that the remedies' tables need beside the untied and the tied one."""
        return (AGAIN, *self.remedies, *self.enlarged) if self.remedies else ()

    @cached_property
    def _own(self) -> Arms:
        """Return the arms of the paper's claims and of fine-tuning, which have all seeds."""
        control = (SHARED_START,) * self.shared_start + (SECOND_START,) * self.second_start
        scales = (*self.scaled, *self.output_scaled, *self.sweep, *self.agreeing)
        return (*PAIR, *control, *self.sized, *scales, *self.starts, *self.tuned)

    def arm(self, name: str | Arm) -> Arm:
        """Return the arm called `name`, or `name` itself if it is one. Raises ValueError for a name that is unknown."""
        if isinstance(name, Arm):
            return name
        if name not in self.arms:
            raise ValueError(f"arm: {name!r} is unknown to the profile {self.name!r} on {self.corpus!r}; it has {[*self.arms]}")
        return self.arms[name]

    def seeds_of(self, *names: str | Arm) -> tuple[int, ...]:
        """Return the seeds that all of these arms are trained with: what is compared is compared seed by seed."""
        few = dict.fromkeys(self.elsewhere, ELSEWHERE_SEEDS) | dict.fromkeys(self._for_remedies, self.few)
        counts = [few.get(arm) for arm in map(self.arm, names) if arm not in self._own]
        return self.seeds[: min((count for count in counts if count is not None), default=None)]

    def config(self, arm: str | Arm, seed: int) -> TrainConfig:
        """Return the training condition of one arm (a name will do) and seed. Raises ValueError for a name that is unknown.

        Tied and untied arms start independently; scaled and remedied arms start where the tied one does, so that they differ
        in the scale or the remedy alone; "shared start" is the control: a tied arm that starts from the untied arm's input
        table and trunk. The data come in one order for all arms of a seed; a two-role language is drawn anew for each seed.
        A fine-tuned arm goes on from the finished run of its seed, with the ordinary gradient, tied or untied as that ended.
        """
        arm = self.arm(arm)
        values: dict[str, Any] = {"corpus": self.corpus, **self.training, **arm.changes}
        init = arm.init
        if arm.enlarged:
            layers = arm.place.n_layers_equal
            values |= {"n_layers": layers} if layers else self.equal
        if arm.start:
            start = self.config(arm.start, seed)
            values |= {**self.transfers[arm.to], "start": start, "tied": start.tied_after(start.steps)}
            init = arms.AS_TIED if values["tied"] else AS_UNTIED  # it initialises nothing, but is part of the run's key
        if self.corpus == TWO_ROLE:
            own = {"seed": seed, "agreement": arm.agreement, "permuted": values.pop("permuted", None)}
            values["language"] = dataclasses.replace(values.get("language", Settings()), **own)
        return TrainConfig(**values, init_seed=init + seed, data_seed=seed)
