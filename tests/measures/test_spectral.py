"""The spectral distance: 0 for one graph, the dense omnibus matrix for small ones, chance for strangers."""

import functools
import math

import naive
import numpy as np
import pytest
import torch

from tying_utils.measures import neighbors
from tying_utils.measures.neighbors import nearest
from tying_utils.measures.spectral import spectral, spectral_distance, spectrals

gaussian = functools.partial(naive.gaussian, dtype=torch.float32)


def relative(V: int, d: int, noise: float) -> torch.Tensor:
    """A table whose neighbours are nearly those of `gaussian(V, d, 1)`."""
    return gaussian(V, d, 1) + noise * gaussian(V, d, 2)


def by_hand(a: torch.Tensor, b: torch.Tensor, k: int, components: int) -> float:
    """The same from dense matrices."""

    def graph(table: torch.Tensor) -> np.ndarray:
        dense = np.zeros((len(table), len(table)))
        for row, near in enumerate(nearest(table, k).tolist()):
            dense[row, near] = 1
        return (dense + dense.T) / 2

    A, B = graph(a), graph(b)
    values, vectors = np.linalg.eigh(np.block([[A, (A + B) / 2], [(A + B) / 2, B]]))
    leading = np.argsort(-np.abs(values))[:components]
    z = vectors[:, leading] * np.sqrt(np.abs(values[leading]))
    za, zb = z[: len(a)], z[len(a) :]
    apart, *own = (np.linalg.norm(m, 2) for m in (za - zb, za, zb))
    return float(apart / min(own))


@pytest.mark.parametrize(("V", "k", "components"), [(60, 5, 8), (80, 10, 30), (40, 39, 5)])
def test_it_is_the_definition(V: int, k: int, components: int) -> None:
    a, b = gaussian(V, 4, 1), gaussian(V, 7, 2)
    assert spectral_distance(a, b, k, components) == pytest.approx(by_hand(a, b, k, components), rel=1e-6, abs=1e-6)


def test_equal_graphs_are_at_0() -> None:
    a = gaussian(200, 16, 1)
    rotation = torch.linalg.qr(gaussian(16, 16, 3))[0]
    lengths = torch.rand(200, 1, generator=torch.Generator().manual_seed(4)) + 0.5
    assert spectral_distance(a, a, 10, 20) == pytest.approx(0, abs=1e-6)
    assert spectral_distance(a, 3 * lengths * (a @ rotation), 10, 20) == pytest.approx(0, abs=1e-6)


def test_strangers_are_at_chance_and_relatives_nearer() -> None:
    strangers = spectral(gaussian(300, 16, 1), gaussian(300, 16, 2), 10, 20, permutations=10)
    assert abs(strangers.closeness) < 0.05
    a, b = gaussian(300, 4, 1), relative(300, 4, 0.1)
    relatives = spectral(a, b, 10, 20, permutations=10)
    assert relatives.value < 0.5 * relatives.chance_range.low and relatives.closeness > 0.5
    assert (relatives.tokens, relatives.permutations) == (300, 10)
    assert relatives == spectral(a, b, 10, 20, permutations=10)
    other = spectral(a, b, 10, 20, permutations=10, seed=1)
    assert other.value == relatives.value and other.chance != relatives.chance


def test_nearer_tables_are_nearer() -> None:
    distances = [spectral_distance(gaussian(300, 4, 1), relative(300, 4, noise), 10, 20) for noise in (0.0, 0.1, 0.5, 2.0)]
    assert distances == sorted(distances)


def test_spectrals_score_each_pair_as_alone_from_one_graph_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {"z": gaussian(80, 4, 1), "a": gaussian(80, 5, 2), "m": relative(80, 4, 0.1)}
    pairs = [("z", "a"), ("z", "m"), ("a", "m")]
    alone = {(a, b): spectral(tables[a], tables[b], 5, 8, permutations=2, seed=3) for a, b in pairs}
    assert alone["z", "m"].value == spectral_distance(tables["z"], tables["m"], 5, 8)
    built, build = [], neighbors._nearest
    monkeypatch.setattr(neighbors, "_nearest", lambda value, *rest: built.append(value) or build(value, *rest))
    together = spectrals(tables, 5, 8, permutations=2, seed=3)
    assert len(built) == 3
    assert together == alone and list(together) == pairs
    assert len({result.value for result in together.values()}) == 3
    for again in (spectral_distance, spectral):
        built.clear()
        again(tables["z"], tables["m"], 5, 8)
        assert len(built) == 2


def test_bad_arguments_of_the_null_and_fewer_than_two_tables_are_refused() -> None:
    a, b = gaussian(30, 4, 1), gaussian(30, 4, 2)
    for named, bad in (("permutations", 0), ("seed", -1)):
        with pytest.raises(ValueError, match=named):
            spectral(a, b, 5, 8, **{named: bad})
    for few in ({}, {"tied": a}):
        with pytest.raises(ValueError, match="tables: .* at least 2 of them"):
            spectrals(few, 5, 8)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"b": gaussian(31, 4, 2)}, "a and b: rows are tokens"),
        ({"b": gaussian(30, 4, 2).long()}, "b: a floating tensor"),
        ({"k": 30}, "k"),
        ({"k": 0}, "k"),
        ({"components": 60}, "components: fewer than 2 V = 60 are needed, got 60"),
        ({"components": 0}, "components"),
    ],
)
def test_bad_arguments_are_refused(changes: dict, named: str) -> None:
    arguments = {"a": gaussian(30, 4, 1), "b": gaussian(30, 4, 2), "k": 5, "components": 8} | changes
    with pytest.raises(ValueError, match=named):
        spectral_distance(**arguments)


@pytest.mark.parametrize(("V", "k", "components"), [(2, 1, 2), (2, 1, 3), (3, 2, 2), (30, 29, 20), (30, 29, 50)])
def test_where_all_are_neighbours_there_is_no_closeness(V: int, k: int, components: int) -> None:
    found = spectral(gaussian(V, 4, 1), gaussian(V, 4, 2), k, components, permutations=3)
    assert math.isnan(found.closeness) and max(found.value, found.chance) < 1e-6
