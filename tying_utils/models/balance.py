"""Remedies: ways to keep a tied table from leaning to its output use. All of them by name, and those that act on the step.

What weighs the path gradients is in `rules`, what makes the tables from other weights in `reparameterise`; those here only
say what the trainer is to do. `TrainConfig(remedy={"name": ..., **parameters})` trains any of them. What each takes from its
paper and where it differs is in METHODS.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tying_utils.base import checks
from tying_utils.models.reparameterise import Compact, Factorised, Projection, SPDMap
from tying_utils.models.rules import NormMatch, PathRule, PCGrad, RareGate, Remedy, Scale, Schedule, Shrink, share


@dataclass(frozen=True, kw_only=True)
class CoupledAdam(Remedy):
    """Coupled Adam (arXiv 2502.08441): Adam's second moment of a table is averaged over the vocabulary to one vector (d,)."""

    name: ClassVar[str] = "coupled-adam"
    line: ClassVar[str] = "Adam's second moment of the tables averaged over the vocabulary"
    fits: ClassVar[tuple[bool, ...]] = (True, False)
    coupled: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class TableRates(Remedy):
    """Learning rates (and AdamW's weight decay) of an untied model's tables, as multiples of the trunk's; 0 freezes a table."""

    name: ClassVar[str] = "table-rates"
    line: ClassVar[str] = "learning-rate multipliers of the two tables of an untied model"
    fits: ClassVar[tuple[bool, ...]] = (False,)
    input: float = 1.0
    output: float = 1.0

    def __post_init__(self) -> None:
        self._set(input=checks.scale("input", self.input), output=checks.scale("output", self.output))

    def rates(self) -> tuple[float, float]:
        return self.input, self.output


@dataclass(frozen=True, kw_only=True)
class Untie(Remedy):
    """One table for the first `at` of training, then two: the copy takes over Adam's moments and step count.

    As modded-nanogpt does at 2/3 (github.com/KellerJordan/modded-nanogpt, pull request 178), without its other changes.
    """

    name: ClassVar[str] = "untie"
    line: ClassVar[str] = "untie at a fraction of training (modded-nanogpt)"
    at: float = 2 / 3

    def __post_init__(self) -> None:
        self._set(at=share("at", self.at, whole=False))

    def added_parameters(self, vocab_size: int, d_model: int) -> int:
        return vocab_size * d_model

    def tied_after(self, tied: bool, step: int, steps: int) -> bool:
        """Return whether it is still tied; it is untied at the start of the first step with step / steps > at."""
        return step / steps <= self.at  # divided: 0.57 * 100 is below 57


_WEIGHING: tuple[type[PathRule], ...] = (Scale, Schedule, NormMatch, PCGrad, Shrink, RareGate)
_OTHERS: tuple[type[Remedy], ...] = (CoupledAdam, TableRates, Projection, SPDMap, Factorised, Compact, Untie)
REMEDIES: dict[str, type[Remedy]] = {kind.name: kind for kind in (*_WEIGHING, *_OTHERS)}


def get(remedy: Remedy | str | Mapping[str, Any], /, **parameters: Any) -> Remedy:
    """Return the remedy of a name or a mapping {"name": ..., **parameters}, with defaults where left out; or `remedy` itself.

    Raises ValueError for an unknown name or parameter, with those that are known, for a parameter out of range, for a mapping
    without a name, and for anything else.
    """
    if isinstance(remedy, Remedy) and type(remedy) in REMEDIES.values() and not parameters:
        return remedy
    if not isinstance(remedy, str | Mapping):
        raise ValueError(f'remedy: a mapping {{"name": ...}}, a name or None is needed, got {remedy!r}')
    if isinstance(remedy, Mapping) and "name" not in remedy:
        raise ValueError(f'remedy: a mapping needs a "name", got {dict(remedy)!r}; known are {", ".join(REMEDIES)}')
    given = {"name": remedy} if isinstance(remedy, str) else {str(key): value for key, value in remedy.items()}
    name = given.pop("name")
    if not isinstance(name, str) or name not in REMEDIES:
        lines = "\n".join(f"  {known}: {kind.line}" for known, kind in REMEDIES.items())
        raise ValueError(f"remedy: {name!r} is unknown; choose one of\n{lines}")
    kind, parameters = REMEDIES[name], given | parameters
    known = [field.name for field in dataclasses.fields(kind)]
    unknown = ", ".join(sorted(set(parameters) - set(known)))
    if unknown:
        words = f"it has {', '.join(known)}" if known else "it has none"
        raise ValueError(f"remedy: {unknown}: no parameter of {name!r}; {words}")
    return kind(**parameters)


def check(remedy: Remedy, *, tied: bool, d_model: int) -> None:
    """Raise ValueError where a model, tied or not and of that width, cannot have `remedy`."""
    if tied not in remedy.fits:
        others = ", ".join(name for name, other in REMEDIES.items() if tied in other.fits)
        raise ValueError(
            f"remedy: {remedy.name!r} needs tied={remedy.fits[0]}, got tied={tied}; change that, or choose one of {others}"
        )
    remedy.check_width(d_model)


def path_rule(remedy: Remedy | str | Mapping[str, Any] | None) -> PathRule:
    """Return `remedy`, or the one of that name or mapping, as a rule for `SplitTie`; None is the ordinary sum.

    Raises ValueError as `get` does, and for a remedy that does not weigh path gradients.
    """
    if remedy is None:
        return Scale()
    rule = get(remedy)
    if not isinstance(rule, PathRule):
        rules = ", ".join(kind.name for kind in _WEIGHING)
        raise ValueError(f"remedy: {rule.name!r} does not weigh the two path gradients; choose one of {rules}")
    return rule
