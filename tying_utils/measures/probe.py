"""A linear probe: how well the rows of a table tell a category of their tokens, beside what permuted labels score.

Multinomial logistic regression with a ridge penalty, scored on rows that it has not seen (linear probes: arXiv 1610.01644).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from tying_utils.base.checks import above_zero, array, positive
from tying_utils.base.checks import seed as checked_seed
from tying_utils.base.checks import table as checked_table
from tying_utils.base.precision import plain

from .alignment import corrected, ordinary
from .statistics import Interval, Range, central_range, mean_interval

Labels = Tensor | np.ndarray | Sequence[int]


@dataclass(frozen=True)
class Probe:
    """Balanced accuracy of a linear probe, the mean over classes of the share of their rows that it names right.

    - value, interval: mean over held-out folds, and its 95 % t interval over them. Folds share most of what they are trained
      on, so the interval is too narrow if anything.
    - chance, chance_range: the same with permuted labels, the mean of `permutations` draws and their central 95 %; 1 / classes
      except for noise.
    - corrected: (value - chance) / (1 - chance).
    """

    value: float
    interval: Interval
    chance: float
    chance_range: Range
    corrected: float
    tokens: int
    classes: int


@plain()
def probe(
    table: Tensor, labels: Labels, *, folds: int = 5, permutations: int = 10, penalty: float = 0.3, seed: int = 0
) -> Probe:
    """Return how well a linear map of the rows of `table` (n, d) tells their `labels` (n,), integers of any values.

    Each fold holds out its share of every class. The others are centred and scaled by one factor to unit mean square, so that a
    rotation or another unit of the table changes nothing; classes weigh equally, however many rows they have. Minimised is the
    mean cross-entropy (nats) and `penalty` / 2 times the squared norm of the weights, in float64. `seed` deals the folds and
    permutes the labels.

    Raises ValueError for a table that is none, labels of another length, fewer than 2 classes, a class of fewer rows than
    `folds`, fewer than 2 folds, and a penalty that is not positive.
    """
    rows = ordinary(checked_table("table", table)).double().cpu().numpy()
    names, classes = np.unique(array("labels", labels), return_inverse=True)
    if classes.shape != (len(rows),):
        raise ValueError(f"labels: one per row is needed, ({len(rows)},), got shape {classes.shape}")
    if positive("folds", folds) < 2:
        raise ValueError(f"folds: at least 2 are needed, got {folds}")
    least = np.bincount(classes).min()
    if len(names) < 2 or least < folds:
        raise ValueError(
            f"labels: at least 2 classes of {folds} rows each are needed, got {len(names)}, the smallest of {least}; leave "
            "out what is rare, or ask for fewer folds"
        )
    permutations = positive("permutations", permutations)
    penalty = above_zero("penalty", penalty)
    draw = np.random.default_rng(checked_seed("seed", seed))
    scores = _scores(rows, classes, folds, penalty, draw)
    by_chance = [_scores(rows, draw.permutation(classes), folds, penalty, draw).mean() for _ in range(permutations)]
    value, chance = float(scores.mean()), float(np.mean(by_chance))
    interval, chances = mean_interval(scores), central_range(np.array(by_chance))
    return Probe(value, interval, chance, chances, corrected(value, chance), len(rows), len(names))


def _scores(rows: np.ndarray, classes: np.ndarray, folds: int, penalty: float, draw: np.random.Generator) -> np.ndarray:
    """Return balanced accuracy on each held-out fold, (folds,)."""
    from sklearn.metrics import balanced_accuracy_score

    order = draw.permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]  # class by class, so that the folds share out each of them
    fold = np.empty(len(classes), np.int64)
    fold[order] = np.arange(len(classes)) % folds
    scores = []
    for number in range(folds):
        held_out = fold == number
        named = _predicted(rows[~held_out], classes[~held_out], rows[held_out], penalty)
        scores.append(balanced_accuracy_score(classes[held_out], named))
    return np.array(scores)


def _predicted(rows: np.ndarray, classes: np.ndarray, others: np.ndarray, penalty: float) -> np.ndarray:
    """Return the classes that the map fitted to `rows` (n, d) and their `classes` (n,) gives to the rows of `others`."""
    from sklearn.linear_model import LogisticRegression  # takes half a second, and only a probe needs it

    mean = rows.mean(0)
    scale = max(np.sqrt(np.square(rows - mean).mean()), np.finfo(rows.dtype).tiny)
    # scikit-learn sums over rows what is averaged here, and of two classes it weighs the difference of their maps alone.
    strength = (2 if classes.max() == 1 else 1) / (penalty * len(rows))
    # A gradient of 1e-4 nats, the default, is far below what moves a row from one class to another.
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
    return model.fit((rows - mean) / scale, classes).predict((others - mean) / scale)
