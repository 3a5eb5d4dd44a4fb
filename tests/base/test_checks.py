"""numpy's scalars pass wherever an integer or a number is asked, and name the same run, language or corpus."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from tying_utils.base import checks
from tying_utils.corpora import store, two_role
from tying_utils.measures import alignment, lens, neighbors, probe, residual, spectral, statistics
from tying_utils.models import architectures, balance
from tying_utils.models.tie import SplitTie
from tying_utils.training import TrainConfig
from tying_utils.training.run_store import run_key

KINDS = (np.int64, np.int32, np.uint16, np.int8)
TINY: dict[str, int] = {"vocab_size": 48, "d_model": 8, "n_layers": 1, "n_heads": 2, "context": 8}


@pytest.mark.parametrize("kind", KINDS)
def test_an_integer_of_numpy_becomes_pythons(kind):
    for found in (checks.integer("n", kind(7), 0), checks.positive("n", kind(7)), checks.seed("n", kind(7))):
        assert type(found) is int and found == 7


@pytest.mark.parametrize("value", [np.float64(0.5), np.float32(0.5), np.float16(0.5), np.int64(3), 3, 0.5])
def test_a_number_of_numpy_becomes_pythons(value):
    for found in (checks.scale("s", value), checks.above_zero("s", value)):
        assert type(found) is float and found == value


@pytest.mark.parametrize("value", [True, np.True_, np.int64(-1), np.float64(1), "1", None, 1.0, np.array([1, 2])])
def test_what_is_no_integer_of_that_size_is_refused(value):
    with pytest.raises(ValueError, match="^n: an integer of at least 0 is needed"):
        checks.integer("n", value, 0)


@pytest.mark.parametrize("value", [np.True_, np.float64("nan"), np.float32("inf"), np.int64(-2), 1j, np.complex64(1)])
def test_what_is_no_scale_is_refused(value):
    with pytest.raises(ValueError, match="^s: a finite number"):
        checks.scale("s", value)


def as_numpy(values: dict[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in values.items() if type(value) is int}
    return values | {name: np.int64(value) for name, value in plain.items()}


@pytest.mark.parametrize("corpus", ["python", "two-role"])
def test_a_configuration_of_numpys_integers_is_the_same_run(corpus):
    plain = TrainConfig(corpus=corpus, remedy=balance.get("rare-gate", memory=7), init_seed=3, data_seed=4, warmup_steps=5)
    given = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    language = None if plain.language is None else two_role.Settings(**as_numpy(plain.language.as_dict()))
    remedy = balance.get({"name": "rare-gate", "memory": np.int32(7)})
    config = TrainConfig(**as_numpy(given) | {"language": language, "remedy": remedy})
    assert json.dumps(config.as_dict()) == json.dumps(plain.as_dict())
    assert run_key(config, {}) == run_key(plain, {}) and config == plain
    assert all(type(value) is not np.int64 for value in vars(config).values())


def test_a_corpus_of_numpys_size_is_the_same_corpus(tmp_path, monkeypatch):
    monkeypatch.setenv("TYING_DATA", str(tmp_path))
    text = tmp_path / "some.txt"
    text.write_text("\n".join(f"line {i} of {i % 7}, and so on to {i % 3}" for i in range(400)))
    plain, other = (store.load("text", vocab_size=size, path=text) for size in (300, np.int64(300)))  # type: ignore[arg-type]
    assert plain.fingerprint == other.fingerprint
    settings = two_role.Settings(classes=4, length=1000)
    two: Any = [store.load("two-role", vocab_size=size, language=settings) for size in (48, np.int16(48))]  # type: ignore
    assert two[0].fingerprint == two[1].fingerprint and json.dumps(two[1].fingerprint)


def test_measures_take_numpys_integers():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 40, 6, generator=generator)
    i: Any = np.int64
    same = [
        (alignment.alignment(a, b, "orthogonal", folds=n(3), permutations=n(4), bootstrap=n(5), seed=n(6)) for n in (int, i)),
        (alignment.chance(a, b, "linear", permutations=n(4), seed=n(6)) for n in (int, i)),
        (neighbors.nearest(a, n(3), block=n(8)).tolist() for n in (int, i)),
        (neighbors.overlap(a, b, n(3), permutations=n(3), bootstrap=n(5), seed=n(2)) for n in (int, i)),
        (spectral.spectral(a, b, n(5), n(6), permutations=n(2), seed=n(1)) for n in (int, i)),
        (statistics.bootstrap_interval(a[:, 0], n(30), n(1)) for n in (int, i)),
        (statistics.rolling_mean([1.0, 2.0, 4.0], n(2)).tolist() for n in (int, i)),
        (probe.probe(a, [0, 1] * 20, folds=n(2), permutations=n(2), seed=n(1)) for n in (int, i)),
    ]
    for plain, other in same:
        assert plain == other


def test_models_lenses_and_ties_take_numpys_integers():
    kinds: list[Any] = [int, np.int64]
    plain, model = (
        architectures.build("llama", tied=True, seed=n(2), **{name: n(size) for name, size in TINY.items()}) for n in kinds
    )
    assert torch.equal(architectures.tables(plain).table, architectures.tables(model).table)
    ids = torch.randint(0, 48, (4, 8), generator=torch.Generator().manual_seed(0))
    many: Any = np.int64
    first, second = (lens.train_lens(model, ids, steps=n(2), tokens_per_step=n(8), seed=n(1), progress=False) for n in kinds)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert residual.contributions(model, ids, batch=many(2)) is not None
    tie = SplitTie(model, balance.path_rule("norm-match"))
    model(ids, labels=ids).loss.backward()
    tie.combine(step=many(1), steps=many(4))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            torch.zeros(3, 2).to_sparse(),
            r"a dense tensor .* got a torch.sparse_coo one; .to_dense\(\) makes one of a sparse one",
        ),
        (torch.zeros(3, 2, device="meta"), "a dense tensor that holds its values is needed, got a meta one"),
        (
            torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged),
            "a dense tensor .* got a nested one",
        ),
        (torch.zeros(3, 2).to(torch.float8_e4m3fn), r"float16, .* got torch.float8_e4m3fn; its .float\(\) would do"),
    ],
)
def test_a_tensor_of_another_kind_is_no_table(value, said):
    with pytest.raises(ValueError, match=f"^t: {said}"):
        checks.table("t", value)


@pytest.mark.parametrize("value", [None, 5, b"x", ["x"], "~nobody-of-that-name/x", "x" * 300])
def test_what_can_be_no_path_is_refused(value):
    with pytest.raises(ValueError, match="^p: "):
        checks.path("p", value)
    assert checks.path("p", "~/x").is_absolute()


@pytest.mark.parametrize("value", ["x", None, True, float("nan"), float("inf"), 10**400, 1j])
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(ValueError, match="^n: a finite number is needed, got ") as refused:
        checks.number("n", value)
    assert len(str(refused.value)) < 130 and checks.number("n", -(2**70)) == -(2.0**70)
    with pytest.raises(ValueError, match="^n: .* got a number of int"):  # which Python does not write
        checks.integer("n", 10**5000, 0, 10)


def test_a_seed_is_one_that_torch_and_numpy_take():
    assert checks.seed("s", 2**63 - 1) == 2**63 - 1
    with pytest.raises(ValueError, match="^s: an integer below 9,223,372,036,854,775,808 is needed, got 18446744073709551616"):
        checks.seed("s", 2**64)


@pytest.mark.parametrize(
    "measure", [lambda x: probe.probe(torch.ones(2, 2), x), lambda x: neighbors.purity(torch.ones(2, 2), x, 1)]
)
def test_ragged_labels_are_named(measure):
    with pytest.raises(ValueError, match="^labels: a sequence of numbers is needed, got list"):
        measure([[1], [1, 2]])


@pytest.mark.parametrize("values", [None, [1], {1: 2}, {"other": 2}])
def test_fields_that_are_none_are_refused(values):
    with pytest.raises(ValueError, match="^f: .* of Thing"):
        checks.fields("f", values, ("one", "two"), "Thing")
    assert checks.fields("f", {"one": 1}, ("one", "two"), "Thing") == {"one": 1}


@pytest.mark.parametrize("tables", [None, [0, 1], 5, {0: 0}, {0: 0, "1": 1}, {0: 0, 1.5: 1}])
def test_what_maps_no_steps_to_tables_is_refused(tables):
    with pytest.raises(ValueError, match="^tables"):
        checks.steps("tables", tables)
