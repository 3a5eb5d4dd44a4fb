"""The null of an alignment: what a pair of tables scores when the rows of one are permuted."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

_WHOLE = 8192  # tokens up to which a permutation is formed and scored whole, and the tokens it is scored on beyond
_DEAL = 16  # blocks that the tokens are dealt into beyond
_TINY = torch.finfo(torch.float32).tiny
_MEMORY = 1.5e9  # bytes of float32 cross products of the permutations that share one deal


def scores(source: Tensor, target: Tensor, kind: str, permutations: int, seed: int) -> Tensor:
    """Return mean row cosines (permutations,), float64 on the CPU, of float32 `source` (V, d_s) mapped onto `target` (V, d_t).

    Rows meet as `alignment.chance` says, and the map of `kind` is fitted anew each time; of "linear", `source` has orthonormal
    columns, so that the cross product is the map. `seed` fixes the permutations on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    V, found = len(source), []
    for s_rows, t_rows, cross in _permuted(source, target, permutations, generator, fitted=kind != "identity"):
        scored = torch.randperm(V, generator=generator)[:_WHOLE] if V > _WHOLE else slice(None)
        mapped = source[s_rows[scored]]
        if kind == "linear" and cross is not None:
            mapped = mapped @ cross
        mapped = F.normalize(mapped, eps=_TINY)
        if kind == "orthogonal" and cross is not None:
            mapped = mapped @ _polar_by_products(cross)  # a rotation leaves rows of unit norm
        found.append((mapped * F.normalize(target[t_rows[scored]], eps=_TINY)).sum(1).double().mean())
    return torch.stack(found).cpu()


def _permuted(
    source: Tensor, target: Tensor, permutations: int, generator: torch.Generator, *, fitted: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yield the rows of `source` and those of `target` that meet, (V,) each, and if `fitted` their cross product."""
    V, d_s, d_t = *source.shape, target.shape[1]
    room = max(1, int(_MEMORY / max(4, 4 * d_s * d_t)))
    while permutations:
        together = min(permutations, room)
        if fitted and V > _WHOLE and together > _DEAL:
            yield from _dealt(source, target, together, generator)
        else:
            for _ in range(together):
                order = torch.randperm(V, generator=generator)
                yield order, torch.arange(V), source[order].T @ target if fitted else None
        permutations -= together


def _dealt(
    source: Tensor, target: Tensor, permutations: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield as `_permuted`, by permutations of the blocks that both tables are dealt into."""
    V = len(source)
    even = V - V % _DEAL
    s_deal, t_deal = torch.randperm(V, generator=generator), torch.randperm(V, generator=generator)
    s_blocks, t_blocks = s_deal[:even].view(_DEAL, -1), t_deal[:even].view(_DEAL, -1)
    met = torch.stack([torch.randperm(_DEAL, generator=generator) for _ in range(permutations)])
    crosses = (source[s_deal[even:]].T @ target[t_deal[even:]]).repeat(permutations, 1, 1)
    t_dealt = target[t_blocks]
    for i, rows in enumerate(s_blocks):
        s = source[rows]
        for j, t in enumerate(t_dealt):
            product = s.T @ t
            for meeting in (met[:, i] == j).nonzero().flatten().tolist():
                crosses[meeting] += product
    for order, cross in zip(met, crosses, strict=True):
        yield s_deal, torch.cat((t_blocks[order].flatten(), t_deal[even:])), cross


def _polar_by_products(cross: Tensor) -> Tensor:
    """Return the orthogonal matrix nearest to `cross` (d, d), the Procrustes solution, with no decomposition.

    Newton-Schulz steps, scaled as by Chen and Chow (2014): products alone, which a busy machine slows far less than an SVD.
    Singular values down to 1e-4 of the largest become 1 within 1e-6; those below, which carry next to nothing, may fall short.
    """
    x = cross / cross.norm().clamp_min(_TINY)
    x = x / (x.T @ x).norm().sqrt().clamp_min(_TINY)  # the fourth root of the sum of fourth powers: singular values up to 1
    least = 1e-4
    while least < 1 - 1e-6:
        scale = math.sqrt(3 / (1 + least + least**2))  # takes `least` and 1 to the same place, and all between above it
        x = torch.addmm(x, x, x.T @ x, beta=1.5 * scale, alpha=-0.5 * scale**3)
        least = 0.5 * scale * least * (3 - (scale * least) ** 2)
    return x
