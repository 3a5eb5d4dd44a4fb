"""Random tables, and scores as their definitions say them, fitted anew where the package takes a shorter way."""

import numpy as np
import torch
from torch import Tensor


def gaussian(V: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(V, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotation(d: int, seed: int = 1) -> Tensor:
    return torch.linalg.qr(gaussian(d, d, seed)).Q


def held_out(
    source: Tensor, target: Tensor, kind: str, folds: int = 5, seed: int = 0, rcond=1e-9, odd: int | None = None
) -> float:
    """The cross-validated score, on whole matrices; without the last column where the row `odd` is not fitted to."""
    found = []
    for rows in torch.randperm(len(source), generator=torch.Generator().manual_seed(seed)).tensor_split(folds):
        own = source[:, :-1] if odd in rows.tolist() else source
        others = torch.ones(len(source), dtype=torch.bool).index_fill(0, rows, False)
        s_mean, t_mean = own[others].mean(0), target[others].mean(0)
        s, t = own[others] - s_mean, target[others] - t_mean
        if kind == "linear":
            matrix = torch.from_numpy(np.linalg.lstsq(s.numpy(), t.numpy(), rcond=rcond)[0])
        else:
            u, _, vh = torch.linalg.svd(s.T @ t)
            matrix = u @ vh
        found.append(torch.cosine_similarity((own[rows] - s_mean) @ matrix, target[rows] - t_mean))
    return float(torch.cat(found).mean())
