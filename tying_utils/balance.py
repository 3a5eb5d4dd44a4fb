"""The remedies, by their public name."""

from tying_utils.models.balance import REMEDIES, CoupledAdam, TableRates, Untie, get
from tying_utils.models.reparameterise import Factorised, Projection, SPDMap
from tying_utils.models.rules import NormMatch, PathRule, PCGrad, RareGate, Remedy, Scale, Schedule, Shrink

from_dict = get  # of what `Remedy.as_dict` gives

__all__ = [
    "REMEDIES",
    "CoupledAdam",
    "Factorised",
    "NormMatch",
    "PCGrad",
    "PathRule",
    "Projection",
    "RareGate",
    "Remedy",
    "SPDMap",
    "Scale",
    "Schedule",
    "Shrink",
    "TableRates",
    "Untie",
    "from_dict",
    "get",
]
