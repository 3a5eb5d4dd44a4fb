"""The linear alignment beside a least-squares solver, and an alignment with its null beside one fit a permutation.

Gaussian tables, the target half a linear image of the source, in float32; all ways compute in float64 but the null's, which is
in float32 and good to 1e-4.
"""

from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.turns import Contest, Turn, device, on_cuda
from tying_utils.measures import alignment

ALIGN, SOLVER = "align", "torch.linalg.lstsq" if on_cuda() else "numpy.linalg.lstsq"
NULL, FITS = "chance", "align on each permutation"


def contests(quick: bool) -> list[Contest]:
    """Of a fit and of a null."""
    sizes = [(8_000, 256, 5)] if quick else [(8_000, 256, 15), (50_304, 2_048, 1)]
    ways, made = (ALIGN, SOLVER), []
    for V, d, rounds in sizes:
        made.append(Contest("alignment", "linear alignment", ways, fit, {"V": V, "d": d}, same, rounds, min(1, rounds - 1)))
    nulls = [(4_000, 64, 20, 3)] if quick else [(8_000, 512, 100, 3), (50_304, 768, 20, 1)]
    for V, d, permutations, rounds in nulls:
        words, size = f"null of {permutations} permutations", {"V": V, "d": d, "permutations": permutations}
        # Beyond 8,192 tokens `chance` draws other permutations, and tokens to score them on.
        agree = partial(same, atol=1e-4 if V <= 8_192 else 1e-3)
        made.append(Contest("alignment", words, (NULL, FITS), permuted, size, agree, rounds, min(1, rounds - 1), False))
    return made


def fit(way: str, V: int, d: int) -> Turn:
    """The linear alignment of two (V, d) tables; on a GPU the solver is torch's there, so that the machine is one."""
    source, target = tables(V, d)
    return (lambda: alignment.align(source, target, "linear")) if way == ALIGN else (lambda: _solved(source, target))


def permuted(way: str, V: int, d: int, permutations: int) -> Turn:
    """Mean linear alignment over the same permutations of the source's rows (up to 8,192 of them `chance` scores whole)."""
    source, target = tables(V, d)
    if way == NULL:
        return lambda: alignment.chance(source, target, "linear", permutations=permutations).mean

    def naive() -> float:
        generator = torch.Generator().manual_seed(0)
        orders = [torch.randperm(V, generator=generator) for _ in range(permutations)]
        return float(np.mean([alignment.align(source[order], target, "linear") for order in orders]))

    return naive


def same(values: dict[str, Any], atol: float = 1e-6) -> None:
    """Raise AssertionError unless both values are equal to `atol`."""
    one, other = values.values()
    np.testing.assert_allclose(one, other, rtol=0, atol=atol)


@cache
def tables(V: int, d: int) -> tuple[Tensor, Tensor]:
    """A Gaussian source (V, d) and a target that is half its linear image, on the suite's device."""
    generator = torch.Generator().manual_seed(0)
    source, noise = (torch.randn(V, d, generator=generator) for _ in range(2))
    target = source @ torch.randn(d, d, generator=generator) / d**0.5 + noise
    return source.to(device()), target.to(device())


def _solved(source: Tensor, target: Tensor) -> float:
    if source.is_cuda:
        s, t = (table.double() - table.double().mean(0) for table in (source, target))
        mapped = s @ torch.linalg.lstsq(s, t).solution
        return float(torch.nn.functional.cosine_similarity(mapped, t, dim=1).mean())
    s, t = (table.double().numpy() for table in (source, target))
    s, t = s - s.mean(0), t - t.mean(0)
    mapped = s @ np.linalg.lstsq(s, t)[0]
    return float(((mapped * t).sum(1) / np.linalg.norm(mapped, axis=1) / np.linalg.norm(t, axis=1)).mean())
