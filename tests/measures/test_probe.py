import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tying_utils.measures.probe import probe


def clouds(counts: list[int], d: int = 6, apart: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Gaussian clouds of `counts` rows around the corners of a simplex, and which cloud each row is of."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    rows = torch.randn(len(labels), d, generator=draw, dtype=torch.float64)
    return rows + apart * torch.eye(len(counts), d, dtype=torch.float64)[labels], labels.numpy()


def test_separable_classes_are_all_named():
    found = probe(*clouds([40, 20, 7], apart=60.0))
    assert found.value == found.interval.low == found.interval.high == 1.0
    assert found.corrected == 1.0 and (found.tokens, found.classes) == (67, 3)


def test_labels_without_meaning_score_chance():
    """Over draws the mean is 1 / classes, whatever the sizes of the classes."""
    draws = [(*clouds([30, 15, 8], apart=0.0, seed=seed), seed) for seed in range(12)]
    scores = [probe(table, labels, permutations=3, seed=seed) for table, labels, seed in draws]
    values, chances = np.array([found.value for found in scores]), np.array([found.chance for found in scores])
    assert abs(values.mean() - 1 / 3) < 4 * values.std() / np.sqrt(len(values))
    assert abs(chances.mean() - 1 / 3) < 4 * chances.std() / np.sqrt(len(chances))
    assert all(found.chance_range.low <= found.chance <= found.chance_range.high for found in scores)
    assert abs(np.mean([found.corrected for found in scores])) < 0.15


def test_two_clouds_score_as_the_best_line_does():
    """Means d' apart: a line names Phi(d' / 2) of either class, however many rows each has."""
    table, labels = clouds([3000, 1000], d=2, apart=2**0.5)  # the corners are then 2 apart
    assert probe(table, labels, permutations=1).value == pytest.approx(0.8413, abs=0.015)


def test_rare_classes_weigh_as_much_as_common_ones():
    """Half of the rare class lies in the common one's cloud: naming all alike would score 1/2, the classes apart 3/4."""
    common, rare = torch.zeros(400, 1).double(), torch.cat((torch.zeros(10, 1), torch.ones(10, 1))).double()
    found = probe(torch.cat((common, rare)), [0] * 400 + [1] * 20, permutations=2)
    assert found.value == pytest.approx(0.75, abs=0.06)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 99), st.floats(0.01, 100), st.floats(-5, 5))
def test_rotation_unit_and_origin_change_nothing(seed, unit, shift):
    table, labels = clouds([30, 30], d=4, apart=1.5, seed=seed)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    first, second = (probe(rows, labels, permutations=1) for rows in (table, unit * table @ turn + shift))
    assert second.value == pytest.approx(first.value, abs=0.021), "at most a row on the edge falls to the other side"


def test_names_of_classes_and_kinds_of_numbers_change_nothing():
    table, labels = clouds([20, 20, 20])
    plain = probe(table, labels, permutations=1)
    assert probe(table, torch.from_numpy(7 * labels - 3), permutations=1) == plain
    assert probe(table, labels.tolist(), permutations=1, seed=1) != plain, "other folds"
    assert probe(table.float(), labels, permutations=1).value == pytest.approx(plain.value, abs=0.03)


def test_generators_are_left_alone():
    state = torch.random.get_rng_state()
    probe(*clouds([9, 9]), permutations=1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_constant_rows_tell_nothing():
    found = probe(torch.ones(40, 3), [0, 1] * 20, permutations=2)
    assert found.value == found.chance == 0.5 and found.corrected == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"table": [[1.0]]}, "^table: a torch tensor"),
        ({"table": torch.zeros(20, 2).long()}, "^table: a floating tensor"),
        ({"labels": [0, 1] * 9}, r"^labels: one per row is needed, \(20,\), got shape \(18,\)"),
        ({"labels": [3] * 20}, "^labels: at least 2 classes of 5 rows each are needed, got 1, the smallest of 20"),
        ({"labels": [0] * 16 + [1] * 4}, "^labels: at least 2 classes of 5 rows each are needed, got 2, the smallest of 4"),
        ({"folds": 1}, "^folds: at least 2"),
        ({"folds": 2.0}, "^folds: an integer"),
        ({"permutations": 0}, "^permutations: an integer of at least 1"),
        ({"penalty": 0.0}, "^penalty: a finite number above 0"),
        *(({"penalty": value}, "^penalty: a finite number") for value in (float("nan"), "x", None, True)),
        ({"seed": -1}, "^seed: "),
    ],
)
def test_bad_arguments_are_named(changes, said):
    arguments = {"table": torch.randn(20, 2), "labels": [0, 1] * 10, **changes}
    with pytest.raises(ValueError, match=said):
        probe(**arguments)


@pytest.mark.parametrize("scale", [1e160, 1e300, 1e-170, 1e-300])
def test_a_table_in_units_whose_squares_fit_no_float64(scale):
    table, labels = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)).double(), [0, 1, 2] * 20
    table[:, 0] += 2 * torch.tensor(labels)
    assert probe(table * scale, labels, permutations=2).value == probe(table, labels, permutations=2).value > 0.6
