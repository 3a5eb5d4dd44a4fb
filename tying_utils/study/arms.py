"""Arms: training conditions as data. What an arm changes is in its fields; its name is what tables and figures show."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from tying_utils.base import names
from tying_utils.base.names import PLACE

# Added to a run's seed to initialise it: arms that have one of these in common start from the same weights.
AS_TIED, AS_UNTIED, _AS_NONE = 0, 1000, 2000


@dataclass(frozen=True, kw_only=True)
class Place:
    """An architecture, a shape and a vocabulary; what is None is that of the profile."""

    arch: str | None = None
    d_model: int | None = None
    n_layers: int | None = None
    vocab_size: int | None = None
    # Layers that make a tied model here as large as the untied one of `n_layers`: no part of where it is.
    n_layers_equal: int | None = field(default=None, compare=False)

    @property
    def changes(self) -> dict[str, Any]:
        """Return the fields of TrainConfig that it sets."""
        return {name: getattr(self, name) for name in PLACE if getattr(self, name) is not None}

    @property
    def words(self) -> str:
        """Return what it adds to the name of an arm: nothing at the profile's own place, else as ", d 64, 4 layers"."""
        shown = {"arch": "{}", "d_model": "d {}", "n_layers": "{} layers", "vocab_size": "V {}"}
        return "".join(f", {shown[name].format(value)}" for name, value in self.changes.items())


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One training condition of a profile, apart from the seed: the fields in which it differs from the tied arm."""

    kind: str  # its name at the profile's own place and number of weights
    tied: bool = True
    input_scale: float = 1.0
    output_scale: float = 1.0
    remedy: dict[str, Any] | None = field(default=None, hash=False)  # name and parameters, as TrainConfig takes them
    init: int = AS_TIED
    enlarged: bool = False  # whether it spends on its trunk what the second table costs the untied arm
    place: Place = Place()
    agreement: float = 0.0  # of the two roles of a token; the two-role language alone
    start: Arm | None = None  # the arm whose finished run it goes on from, on the text or language called `to`
    to: str = ""

    @property
    def name(self) -> str:
        """Return what tables and figures call it; no other arm of a profile has that name."""
        name = self.kind
        if self.enlarged:
            name = names.enlarged(name)
        name += self.place.words
        if self.agreement:
            name += f", agreement {self.agreement:g}"
        return names.tuned(name, self.to) if self.start else name

    @property
    def changes(self) -> dict[str, Any]:
        """Return the fields of TrainConfig that do not depend on the profile."""
        own = {name: getattr(self, name) for name in ("tied", "input_scale", "output_scale", "remedy")}
        return own | self.place.changes

    def at(self, **changes: Any) -> Arm:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def scaled(input_scale: float, output_scale: float = 1.0) -> Arm:
    """Return the arm whose tied table gets the gradients of its two paths by these factors; both 1: the ordinary tied arm."""
    return Arm(kind=names.crossed(input_scale, output_scale), input_scale=input_scale, output_scale=output_scale)


def tuned(start: Arm, to: str) -> Arm:
    """Return the arm that goes on, with the ordinary gradient, from the finished run of `start` on `to`."""
    return Arm(kind=start.kind, start=start, to=to)


UNTIED = Arm(kind=names.UNTIED, tied=False, init=AS_UNTIED)
TIED = Arm(kind=names.TIED)
PAIR = (UNTIED, TIED)
EQUAL = TIED.at(enlarged=True)
# The control: a tied arm that starts from the untied arm's input table and trunk.
SHARED_START = Arm(kind=names.SHARED_START, init=AS_UNTIED)
# What two untied models share, which no remedy has to beat: another untied arm, from where the tied one starts.
AGAIN = Arm(kind=names.AGAIN, tied=False)
SECOND_START = Arm(kind=names.SECOND_START, tied=False, init=_AS_NONE)  # the same where the tied arm's start is taken
ELSEWHERE = (*PAIR, scaled(names.ELSEWHERE_SCALE))  # what the claims need at other architectures and shapes
