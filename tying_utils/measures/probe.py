"""A linear probe: how well the rows of a table tell a category of their tokens, beside what permuted labels score.

Multinomial logistic regression with a ridge penalty, scored on rows that it has not seen (linear probes: arXiv 1610.01644).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tying_utils.base.checks import positive
from tying_utils.base.checks import table as checked_table

from .alignment import corrected
from .statistics import Interval, Range, central_range, checked_seed, mean_interval

Labels = Tensor | np.ndarray | Sequence[int]


@dataclass(frozen=True)
class Probe:
    """Balanced accuracy of a linear probe, the mean over classes of the share of their rows that it names right.

    - value, interval: mean over held-out folds, and its 95 % t interval over them. Folds share most of what they are trained
      on, so the interval is too narrow if anything.
    - chance, chance_range: the same with permuted labels, the mean of `permutations` draws and their central 95 %; 1 / classes
      but for noise.
    - corrected: (value - chance) / (1 - chance).
    """

    value: float
    interval: Interval
    chance: float
    chance_range: Range
    corrected: float
    tokens: int
    classes: int


def probe(
    table: Tensor, labels: Labels, *, folds: int = 5, permutations: int = 10, penalty: float = 0.3, seed: int = 0
) -> Probe:
    """How well a linear map of the rows of `table` (n, d) tells their `labels` (n,), integers of any values.

    Each fold holds out its share of every class. The others are centred and scaled by one factor to unit mean square, so that a
    rotation or another unit of the table changes nothing; classes weigh equally, however many rows they have. Minimised is the
    mean cross-entropy (nats) and `penalty` / 2 times the squared norm of the weights, in float64. `seed` deals the folds and
    permutes the labels.

    Raises ValueError for a table that is none, labels of another length, fewer than 2 classes, a class of fewer rows than
    `folds`, fewer than 2 folds, and a penalty that is not positive.
    """
    rows = checked_table("table", table).double()
    names, classes = np.unique(np.asarray(labels), return_inverse=True)
    if classes.shape != (len(rows),):
        raise ValueError(f"labels: one a row is needed, ({len(rows)},), got shape {np.shape(labels)}")
    if positive("folds", folds) < 2:
        raise ValueError(f"folds: at least 2 are needed, got {folds}")
    least = np.bincount(classes).min()
    if len(names) < 2 or least < folds:
        raise ValueError(
            f"labels: at least 2 classes of {folds} rows each are needed, got {len(names)}, the smallest of {least}; leave "
            "out what is rare, or ask for fewer folds"
        )
    positive("permutations", permutations)
    if not penalty > 0:
        raise ValueError(f"penalty: a number above 0 is needed, got {penalty!r}")
    draw = np.random.default_rng(checked_seed(seed))
    scores = _scores(rows, classes, folds, penalty, draw)
    by_chance = [_scores(rows, draw.permutation(classes), folds, penalty, draw).mean() for _ in range(permutations)]
    value, chance = float(scores.mean()), float(np.mean(by_chance))
    interval, chances = mean_interval(scores), central_range(np.array(by_chance))
    return Probe(value, interval, chance, chances, corrected(value, chance), len(rows), len(names))


def _scores(rows: Tensor, classes: np.ndarray, folds: int, penalty: float, draw: np.random.Generator) -> np.ndarray:
    """Balanced accuracy on each held-out fold, (folds,)."""
    order = draw.permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]  # class by class, so that the folds share out each of them
    fold = np.empty(len(classes), np.int64)
    fold[order] = np.arange(len(classes)) % folds
    targets = torch.from_numpy(classes).to(rows.device)
    scores = []
    for number in range(folds):
        held_out = torch.from_numpy(fold == number).to(rows.device)
        weight, bias = _fitted(rows[~held_out], targets[~held_out], penalty)
        own = targets[held_out]
        right = own[(rows[held_out] @ weight + bias).argmax(1) == own]
        scores.append(float((torch.bincount(right, minlength=len(bias)) / torch.bincount(own)).mean()))
    return np.array(scores)


def _fitted(rows: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weight (d, classes) and bias (classes,) of the map from `rows` (n, d) to the logits of their `targets` (n,)."""
    counts, mean = torch.bincount(targets), rows.mean(0)
    scale = (rows - mean).square().mean().sqrt().clamp(min=torch.finfo(rows.dtype).tiny)
    inputs, weights = (rows - mean) / scale, 1 / counts.double()
    weight = rows.new_zeros(rows.shape[1], len(counts), requires_grad=True)
    bias = rows.new_zeros(len(counts), requires_grad=True)
    # A gradient of 1e-4 nats is far below what moves a row from one class to another.
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, tolerance_grad=1e-4, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(inputs @ weight + bias, targets, weights) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    weight = weight.detach() / scale
    return weight, bias.detach() - mean @ weight
