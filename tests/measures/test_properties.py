"""What holds of every measure whatever the tables: its range, what it is blind to, symmetry, and how a table lies in memory."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import gaussian, rotation
from tiny_models import CONTEXT, VOCAB, shaken, tokens
from torch import Tensor

from tying_utils.measures import (
    ablation,
    alignment,
    displacement,
    drift,
    frequency,
    gradients,
    integrity,
    lens,
    neighbors,
    perplexity,
    probe,
    residual,
    spectral,
)

K = 3
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@dataclass(frozen=True)
class Measure:
    """A score of a pair of tables (V, d) and what holds of it.

    blind_to: "turn" (each table by a rotation of its own), "turn together" (both by one), "scale" (each by a factor above 0),
    "shift" (each by a row of its own) and "order" (of the rows of both, by one permutation). `exchanged`: the score with the
    tables in each other's place, from the score.
    """

    of: Callable[[Tensor, Tensor], float]
    low: float
    high: float
    blind_to: tuple[str, ...]
    exchanged: Callable[[float], float] | None = None
    widths: bool = True  # whether the tables' widths may differ


def by_frequency(table: Tensor) -> float:
    return frequency.spearman(frequency.norm_by_frequency(table, [(7 * row) % 5 + 1 for row in range(len(table))]))


def of_gradients(name: str, a: Tensor, b: Tensor) -> float:
    return float(gradients.path_statistics(a.double(), b.double())[name].detach())


FREE = ("turn", "turn together", "scale", "order")
COSINE: dict[str, Any] = {
    **{"low": -1, "high": 1, "blind_to": ("turn together", "scale", "order")},
    **{"exchanged": lambda s: s, "widths": False},
}
MEASURES: dict[str, Measure] = {
    "identity": Measure(lambda a, b: alignment.align(a, b, "identity"), **COSINE),
    "orthogonal": Measure(lambda a, b: alignment.align(a, b, "orthogonal"), **{**COSINE, "blind_to": (*FREE, "shift")}),
    "linear": Measure(lambda a, b: alignment.align(a, b, "linear"), -1, 1, (*FREE, "shift")),
    "linear, held out": Measure(
        lambda a, b: alignment.alignment(a, b, "linear", folds=2, permutations=1, bootstrap=1).held_out,
        -1,
        1,
        ("scale", "shift"),
    ),
    "row cosines": Measure(lambda a, b: float(alignment.row_cosines(a, b).mean()), **COSINE),
    "neighbours": Measure(lambda a, b: neighbors.knn_overlap(a, b, K), 0, 1, FREE, lambda s: s),
    "spectral distance": Measure(lambda a, b: spectral.spectral_distance(a, b, K, 4), 0, math.inf, FREE, lambda s: s),
    "drift": Measure(lambda a, b: float(drift.drift({0: a, 1: b})["to_start"].iloc[1]), **COSINE),
    "cosine of gradients": Measure(lambda a, b: of_gradients("cosine", a, b), **COSINE),
    "output share": Measure(
        lambda a, b: of_gradients("output_share", a, b), 0, 1, ("turn", "order"), lambda s: 1 - s, widths=False
    ),
    "share of the displacement": Measure(
        lambda a, b: displacement.parts({"a": a, "b": b}, {"a": 1.0, "b": 1.0})["b"].share,
        -math.inf,
        math.inf,
        ("turn together", "order"),
        lambda s: 1 - s,
        False,
    ),
    "norm by frequency": Measure(lambda a, b: by_frequency(a), -1, 1, ("turn", "turn together", "scale")),
}
every = pytest.mark.parametrize("name", MEASURES)
cases = st.tuples(st.integers(1, 5), st.integers(14, 40), st.integers(0, 2**31 - 1))  # d, V, seed


def pair(measure: Measure, d: int, V: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return two tables that have something in common; of unlike widths where that is allowed."""
    d = max(d, 2)
    source = gaussian(V, d, seed)
    wide = d + seed % 3 if measure.widths else d
    return source, gaussian(V, wide, seed + 1) + source @ gaussian(d, wide, seed + 2)


def moved(how: str, a: Tensor, b: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    if how in ("turn", "turn together"):
        return a @ rotation(a.shape[1], seed), b @ rotation(b.shape[1], seed + (how == "turn"))
    if how == "scale":
        return 7.5 * a, 1e-3 * b
    if how == "shift":
        return a + gaussian(1, a.shape[1], seed), b + 10 * gaussian(1, b.shape[1], seed + 1)
    assert how == "order"
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(seed))
    return a[order], b[order]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.T.contiguous().T,
    "every other column of a wider one": lambda t: torch.stack((t, -t), 2).flatten(1)[:, ::2],
    "every other row of a taller one": lambda t: torch.stack((t, -t), 1).flatten(0, 1)[::2],
    "a part of a larger one": lambda t: torch.nn.functional.pad(t, (2, 3, 1, 4), value=99.0)[1:-4, 2:-3],
    "with a gradient": lambda t: t.clone().requires_grad_(),
}


@every
@settings(max_examples=12)
@given(case=cases)
def test_a_score_lies_in_its_range_and_is_the_same_again(name, case):
    measure = MEASURES[name]
    a, b = pair(measure, *case)
    score = measure.of(a, b)
    assert measure.low <= score <= measure.high + 1e-12
    assert measure.of(a, b) == score


@every
@settings(max_examples=12)
@given(case=cases, data=st.data())
def test_a_score_is_blind_to_what_it_says(name, case, data):
    measure = MEASURES[name]
    a, b = pair(measure, *case)
    how = data.draw(st.sampled_from(measure.blind_to))
    assert measure.of(*moved(how, a, b, case[2])) == pytest.approx(measure.of(a, b), abs=1e-7)


@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in ("identity", "row cosines", "drift", "cosine of gradients") for how in ("turn", "shift")],
)
def test_a_score_that_is_not_said_to_be_blind_does_see(name, how):
    measure = MEASURES[name]
    a, b = pair(measure, 4, 30, 0)
    assert abs(measure.of(*moved(how, a, b, 5)) - measure.of(a, b)) > 1e-3


@pytest.mark.parametrize("name", [name for name, measure in MEASURES.items() if measure.exchanged])
@settings(max_examples=12)
@given(case=cases)
def test_exchanged_tables_give_the_score_that_they_should(name, case):
    measure = MEASURES[name]
    a, b = pair(measure, *case)
    assert measure.exchanged is not None
    assert measure.of(b, a) == pytest.approx(measure.exchanged(measure.of(a, b)), abs=1e-7)


@every
@settings(max_examples=12)
@given(case=cases, dtype=st.sampled_from(DTYPES), layouts=st.tuples(*[st.sampled_from(sorted(LAYOUTS))] * 2))
def test_how_a_table_lies_in_memory_does_not_matter(name, case, dtype, layouts):
    measure = MEASURES[name]
    a, b = (table.to(dtype) for table in pair(measure, *case))
    before = a.clone(), b.clone()
    laid = [LAYOUTS[layout](table) for layout, table in zip(layouts, (a, b), strict=True)]
    assert measure.of(*laid) == pytest.approx(measure.of(a, b), abs=1e-9)
    assert torch.equal(a, before[0]) and torch.equal(b, before[1]), "a table is left as it is"


@pytest.mark.parametrize("name", [name for name in MEASURES if name not in ("neighbours", "spectral distance")])
@settings(max_examples=12)
@given(case=cases, dtype=st.sampled_from(DTYPES))
def test_few_digits_are_computed_with_as_if_they_were_many(name, case, dtype):
    """Neighbours are found in float32, where ties may fall the other way."""
    measure = MEASURES[name]
    a, b = (table.to(dtype) for table in pair(measure, *case))
    assert measure.of(a, b) == pytest.approx(measure.of(a.double(), b.double()), abs=1e-9)


@settings(max_examples=15)
@given(case=cases, classes=st.integers(2, 4), dtype=st.sampled_from(DTYPES))
def test_purity_is_blind_to_turn_scale_order_and_the_names_of_classes(case, classes, dtype):
    d, V, seed = case
    table = gaussian(V, max(d, 2), seed)
    labels = torch.arange(V) % classes
    score = neighbors.purity(table, labels, K)
    assert 0 <= score <= 1
    order = torch.randperm(V, generator=torch.Generator().manual_seed(seed))
    turned = 3 * table @ rotation(table.shape[1], seed)
    assert neighbors.purity(turned[order], (10 - labels)[order].tolist(), K) == pytest.approx(score, abs=1e-9)
    coarse = table.to(dtype)
    assert neighbors.purity(coarse.T.contiguous().T, labels.numpy()[::1], K) == neighbors.purity(coarse, labels, K)


@settings(max_examples=10)
@given(case=cases, dtype=st.sampled_from(DTYPES), layout=st.sampled_from(sorted(LAYOUTS)))
def test_a_probe_lies_in_its_range_and_does_not_see_how_a_table_lies_in_memory(case, dtype, layout):
    """To what turns and units it is blind is tested with it."""
    d, V, seed = case
    table, labels = gaussian(V, d, seed).to(dtype), torch.arange(V) % 2
    found = probe.probe(table, labels, folds=2, permutations=2)
    assert 0 <= found.value <= 1 and 0 <= found.chance <= 1 and found.corrected <= 1
    for other in (LAYOUTS[layout](table).detach(), table.double()):
        assert probe.probe(other, labels.numpy()[::1], folds=2, permutations=2).value == pytest.approx(found.value, abs=1e-9)


@settings(max_examples=15)
@given(case=cases, dtype=st.sampled_from(DTYPES), layout=st.sampled_from(sorted(LAYOUTS)))
def test_suspects_are_the_same_in_every_layout_and_order_of_steps(case, dtype, layout):
    d, V, seed = case
    series = {step: (step * gaussian(V, d, seed) / 9 + gaussian(V, d, seed + 1)).to(dtype) for step in (0, 3, 6, 9)}
    series[6] = series[3]
    found = integrity.suspects(series)
    laid = {step: LAYOUTS[layout](table).detach() for step, table in reversed(series.items())}
    assert integrity.suspects(laid).equals(found)
    assert found.loc[found["step"] == 6, "problem"].item() == "equal to step 3"


@pytest.fixture(scope="module")
def model():
    return shaken(tied=False)


READERS: dict[str, Callable[[object, object], np.ndarray]] = {
    "logit lens": lambda model, ids: lens.kl_by_layer(model, lens.logit_lens(model), ids),  # type: ignore[arg-type]
    "perplexity": lambda model, ids: perplexity.perplexity(model, ids, progress=False).losses,  # type: ignore[arg-type]
    "contributions": lambda model, ids: residual.contributions(model, ids)[["norm", "attribution"]].to_numpy(),  # type: ignore[arg-type]
    "ablation": lambda model, ids: ablation.loss_without_layers(model, ids)["loss"].to_numpy(),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_ids_may_lie_in_memory_as_they_like(model, name, dtype):
    ids = tokens(6, seed=4).to(dtype)
    expected = READERS[name](model, ids)
    wide = torch.stack((ids, ids), 2).flatten(1)[:, ::2]
    for laid in (ids.T.contiguous().T, wide, np.asfortranarray(ids.numpy()), np.ascontiguousarray(ids.numpy()[::-1])[::-1]):
        np.testing.assert_array_equal(READERS[name](model, laid), expected)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=4)
@given(rows=st.integers(1, 5), columns=st.integers(2, CONTEXT), seed=st.integers(0, 99))
def test_what_a_model_says_of_a_text_does_not_depend_on_the_order_of_its_rows(model, name, rows, columns, seed):
    ids = torch.randint(VOCAB, (rows, columns), generator=torch.Generator().manual_seed(seed))
    one, other = READERS[name](model, ids), READERS[name](model, ids.flip(0))
    assert np.isfinite(one).all()
    if name == "perplexity":
        other = other[::-1]
        assert (one >= 0).all()
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
