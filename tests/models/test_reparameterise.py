from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tying_utils import models
from tying_utils.models.balance import REMEDIES, Remedy, get
from tying_utils.models.reparameterise import PREFIX, CompactInput, FactorisedInput, Folded, ProjectedTable, SPDTable

V, D = 60, 8
draw = torch.Generator().manual_seed(0)
PART = torch.randint(0, V, (4, 17), generator=draw)
KINDS = ("projection", "spd-map", "factorised", "compact")


def build(tied: bool) -> Any:
    return models.build(tied=tied, vocab_size=V, d_model=D, n_layers=2, n_heads=2, context=16, seed=3).double()


def named(name: str) -> Remedy:
    return get(name, **({"width": 3} if name == "factorised" else {}))


def folded(name: str) -> tuple[Any, Folded]:
    model = build(tied=False)
    tables: Any = named(name).tables(model.get_input_embeddings().weight, seed=5)
    return model, Folded(model, tables)


def moved(module: nn.Module) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=draw, dtype=p.dtype))


def loss(model: Any, part: Tensor = PART) -> Tensor:
    return F.cross_entropy(model(part[:, :-1]).logits.flatten(0, 1), part[:, 1:].flatten())


@pytest.mark.parametrize("name", ["projection", "spd-map"])
def test_a_map_starts_as_the_tied_model_exactly(name):
    tied, (model, _) = build(tied=True), folded(name)
    assert torch.equal(model(PART[:, :-1]).logits, tied(PART[:, :-1]).logits)
    own = models.tables(model)
    assert not own.tied and torch.equal(own.input, own.output)
    assert torch.equal(own.input, models.tables(tied).table)


@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_those_of_the_whole_model_in_its_own_weights(name):
    model, made = folded(name)
    moved(made.tables)
    made.refresh()
    for part in PART[:, None]:  # they add up over parts of a batch
        (loss(model, part) / len(PART)).backward()
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    source, target = (gradient.clone() for gradient in made.path_gradients())
    assert source.shape == target.shape == (V, D) and source.any() and target.any()
    made.backward()
    assert all(end.weight.grad is None for end in ends)

    names = [name for end in ends for name, p in model.named_parameters() if p is end.weight]
    trunk = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters() if name not in names}
    tables = dict(zip(names, made.tables(), strict=True))
    logits = torch.func.functional_call(model, {**trunk, **tables}, (PART[:, :-1],)).logits
    own = dict(made.tables.named_parameters())
    value = F.cross_entropy(logits.flatten(0, 1), PART[:, 1:].flatten())
    expected = torch.autograd.grad(value, [*own.values(), *trunk.values()])
    for p, gradient in zip([*own.values(), *(model.get_parameter(name) for name in trunk)], expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", KINDS)
def test_a_step_moves_the_weights_and_refresh_the_tables(name):
    model, made = folded(name)
    assert list(made.named().values()) == made.parameters()
    assert sum(key.startswith(PREFIX) for key in made.named()) == len(list(made.tables.parameters()))
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.02)
    losses = []
    for _ in range(8):
        value = loss(model)
        value.backward()
        made.backward()
        optimizer.step()
        optimizer.zero_grad()
        made.refresh()
        losses.append(value.item())
    assert losses[-1] < losses[0] - 0.05
    own = models.tables(model)
    for held, table in zip((own.input, own.output), made.tables(), strict=True):
        assert torch.equal(held, table)
    assert not torch.equal(own.input, own.output)


@settings(max_examples=40)
@given(d=st.integers(1, 12), seed=st.integers(0, 2**20), size=st.floats(0.01, 1))
def test_the_symmetric_map_stays_positive_definite(d, seed, size):
    generator = torch.Generator().manual_seed(seed)
    module = SPDTable(torch.randn(20, d, generator=generator, dtype=torch.float64))
    with torch.no_grad():
        for p in module.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator, dtype=torch.float64).clamp(-2, 2))
    factor = module.factor()
    assert torch.equal(factor, factor.tril()) and (factor.diagonal() > 0).all()
    T = factor @ factor.T
    torch.testing.assert_close(T, T.T)
    condition = float(torch.linalg.cond(T.detach()))
    assume(condition < 1e12)  # beyond, float64 cannot say what is definite
    assert torch.linalg.cholesky_ex(T).info == 0
    source, target = module()
    torch.testing.assert_close(source @ T, module.table, rtol=1e-9, atol=1e-13 * condition)
    torch.testing.assert_close(target, module.table @ T)


def test_with_an_orthonormal_table_the_two_are_each_others_pseudo_inverses():
    """What Pseudo-Inverse Tying's name says of the map that is taken from it."""
    table = torch.linalg.qr(torch.randn(20, 5, generator=draw, dtype=torch.float64)).Q
    module = SPDTable(table)
    with torch.no_grad():
        module.below.add_(0.3)
        module.log_diagonal.add_(torch.randn(5, generator=draw, dtype=torch.float64))
    source, target = module()
    torch.testing.assert_close(torch.linalg.pinv(target), source.T)


def test_a_projection_may_become_any_map():
    module = ProjectedTable(torch.randn(20, 5, generator=draw))
    moved(module)
    source, target = module()
    assert torch.equal(source, module.table) and torch.equal(target, module.table @ module.map)


@settings(max_examples=30)
@given(rows=st.integers(4, 80), d=st.integers(2, 24), data=st.data())
def test_a_factorised_table_has_few_weights_and_no_more_rank(rows, d, data):
    width = data.draw(st.integers(1, d - 1))
    module = FactorisedInput(torch.randn(rows, d, generator=draw), width, seed=1)
    source, target = module()
    assert source.shape == target.shape == (rows, d)
    assert int(torch.linalg.matrix_rank(source.double(), rtol=1e-5)) <= width
    count = sum(p.numel() for p in module.parameters())
    assert count == width * (rows + d) + rows * d


def test_a_factorised_table_starts_as_large_as_an_ordinary_one_and_by_its_seed():
    table = 0.02 * torch.randn(4000, 64, generator=draw)
    one, again, other = (FactorisedInput(table, 16, seed) for seed in (1, 1, 2))
    assert 0.017 < float(one()[0].std()) < 0.023
    assert torch.equal(one()[0], again()[0]) and not torch.equal(one()[0], other()[0])
    assert torch.equal(one()[1], table)


@settings(max_examples=30)
@given(rows=st.integers(4, 400), d=st.integers(2, 24), digits=st.integers(1, 4))
def test_a_compact_table_tells_every_token_apart_with_as_few_codes_as_will_do(rows, d, digits):
    module = CompactInput(0.02 * torch.randn(rows, d, generator=draw), digits, seed=1)
    assert len({*map(tuple, module.digits.tolist())}) == rows
    base = len(module.codes) // digits
    assert (base - 1) ** digits < rows <= base**digits
    assert [p.shape for p in module()] == [(rows, d)] * 2


def test_a_compact_table_is_the_network_of_its_digits():
    module = CompactInput(torch.randn(9, 4, generator=draw), 2, seed=1)
    assert module.digits[7].tolist() == [1, 3 + 2]  # 7 is 21 in base 3; the codes of the second digit follow those of the first
    x = (module.codes[1] + module.codes[5]) @ module.hidden
    torch.testing.assert_close(module()[0][7], (x * torch.sigmoid(x)) @ module.up)


def test_a_compact_table_starts_as_large_as_an_ordinary_one_and_by_its_seed():
    table = 0.02 * torch.randn(4000, 64, generator=draw)
    one, again, other = (CompactInput(table, 2, seed) for seed in (1, 1, 2))
    assert float(one()[0].std()) == pytest.approx(float(table.std()), rel=1e-4)
    assert torch.equal(one()[0], again()[0]) and not torch.equal(one()[0], other()[0])
    assert torch.equal(one()[1], table)


@pytest.mark.parametrize("name", KINDS)
def test_added_parameters_are_counted(name):
    remedy, (_, made) = named(name), folded(name)
    ordinary = sum(p.numel() for p in build(tied=remedy.fits[0]).parameters())
    assert sum(p.numel() for p in made.parameters()) - ordinary == remedy.added_parameters(V, D)
    assert not remedy.tied_after(remedy.fits[0], 0, 1)


def test_a_tied_model_cannot_hold_two_tables():
    model = build(tied=True)
    with pytest.raises(ValueError, match=r"^model: an untied model is needed"):
        Folded(model, ProjectedTable(model.get_input_embeddings().weight))


def test_a_step_without_a_backward_pass_is_named():
    model, made = folded("projection")
    with pytest.raises(ValueError, match=r"^backward: .* run loss\.backward\(\) first"):
        made.backward()
    loss(model).backward()
    made.backward()
    with pytest.raises(ValueError, match=r"^backward: "):
        made.backward()


def test_only_these_remedies_make_tables():
    assert {name for name in REMEDIES if named(name).tables(torch.zeros(V, D), 0)} == set(KINDS)
