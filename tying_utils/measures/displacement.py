"""What moved a table over training: each part's share of the way, and how far a part cancels itself."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from tying_utils.base.checks import mapping


class Part(NamedTuple):
    """What one part of the updates did to a table; see `parts`."""

    share: float
    norm: float
    coherence: float


def parts(sums: Mapping[str, Tensor], lengths: Mapping[str, float | Tensor]) -> dict[str, Part]:
    """Return of each part of a table's updates its share in the displacement, the norm of its sum, and its coherence.

    sums: by part the sum over steps of what it added to the table, S (V, d), float; together they are the displacement
    D = W_T - W_0. For a tied table the parts are the two paths' parts of Adam's update and the weight decay. lengths: by part
    the sum over steps of the Frobenius norms of what it added. In their units,

    - share = <S, D> / <D, D>: the part's projection on the way that the table went. Shares add up to 1; a part that
      goes back has one below 0, and another may then exceed 1. NaN where the table did not move.
    - norm = ||S||.
    - coherence = ||S|| / length, in [0, 1] apart from rounding: 1 where all steps point the same way, about 1 / sqrt(T) where T
      equal steps are independent, 0 where they cancel. NaN for a part that never moved.

    Sums and products are in float64, on the tables' device where that has it. Raises ValueError for no part, for shapes that
    differ, and where the two do not name the same parts.
    """
    for name, given in {"sums": sums, "lengths": lengths}.items():
        mapping(name, given, "by part")
    shapes = {tuple(table.shape) for table in sums.values()}
    if len(shapes) != 1 or sums.keys() != lengths.keys():
        raise ValueError(
            f"sums and lengths: tables (V, d) of one shape and a length by the same names are needed, got {sorted(shapes)} for "
            f"{', '.join(sums) or 'no part'} and lengths of {', '.join(lengths) or 'no part'}"
        )
    on = {name: table.detach().cpu() if table.is_mps else table.detach() for name, table in sums.items()}  # no float64 there
    wide = {name: table.double().flatten() for name, table in on.items()}
    way = torch.stack([*wide.values()]).sum(0)
    squared = torch.dot(way, way)
    found = {}
    for name, own in wide.items():
        norm, length = torch.linalg.vector_norm(own), torch.as_tensor(lengths[name]).to(own)
        found[name] = Part(*(float(value) for value in (torch.dot(own, way) / squared, norm, norm / length)))
    return found
