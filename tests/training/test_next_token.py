"""The loss as a module: as written plainly, and in chunks with the same value and gradients."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tying_utils import models
from tying_utils.models.tie import SplitTie
from tying_utils.training import next_token
from tying_utils.training.next_token import KeptLogits, NextTokenLoss, chunked_cross_entropy

V, D, CONTEXT = 300, 16, 12


def build(arch: str = "olmo", tied: bool = True) -> Any:
    return models.build(arch, tied=tied, vocab_size=V, d_model=D, n_layers=2, n_heads=2, context=CONTEXT, seed=1)


def windows(rows: int = 3) -> Tensor:
    return torch.randint(V, (rows, CONTEXT + 1), generator=torch.Generator().manual_seed(rows))


def plainly(model: Any, taken: Tensor) -> Tensor:
    return F.cross_entropy(model(taken[:, :-1]).logits.flatten(0, 1), taken[:, 1:].flatten())


def test_it_is_the_mean_cross_entropy_of_the_next_token():
    model = build()
    assert torch.equal(NextTokenLoss(model)(windows()), plainly(model, windows()))


@pytest.fixture
def always_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the gradient of kept logits made a few rows at a time."""
    monkeypatch.setattr(next_token, "PART", 10 * V)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_kept_logits_change_no_bit_of_a_gradient(arch, tied, always_kept):
    ours, plain = build(arch, tied), build(arch, tied)
    loss = NextTokenLoss(ours, keep_logits=True)
    for rows in (3, 2, 5, 5):  # smaller and larger than what is kept
        own, other = loss(windows(rows)) / 3, plainly(plain, windows(rows)) / 3
        own.backward()
        other.backward()
        assert torch.equal(own, other)
    assert loss.kept is not None and loss.kept.calls == 8  # they were used
    for (name, one), (_, two) in zip(ours.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(one.grad, two.grad), name


sizes = st.tuples(st.integers(1, 40), st.integers(2, 50), st.integers(1, 8))  # tokens, vocabulary, width


def drawn(sizes: tuple[int, int, int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    tokens, vocabulary, width = sizes
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=draw, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=draw, requires_grad=True)
    return hidden, weight, torch.randint(vocabulary, (tokens,), generator=draw)


@given(sizes=sizes, seed=st.integers(0, 100))
def test_kept_logits_are_those_of_the_whole(sizes, seed):
    hidden, weight, targets = drawn(sizes, seed)
    kept, whole = KeptLogits()(hidden, weight, targets), F.cross_entropy(F.linear(hidden, weight), targets)
    torch.testing.assert_close(kept, whole)
    own, expected = (torch.autograd.grad(loss, (hidden, weight)) for loss in (kept, whole))
    torch.testing.assert_close(own, expected)


def test_a_loss_whose_logits_are_gone_has_no_gradient(always_kept):
    loss = NextTokenLoss(build(), keep_logits=True)
    first = loss(windows())
    second = loss(windows())
    with pytest.raises(RuntimeError, match="overwritten by a later loss"):
        first.backward()
    second.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        second.backward()


def test_the_same_memory_serves_every_step(always_kept):
    loss = NextTokenLoss(build(), keep_logits=True)
    assert loss.kept is not None
    loss(windows(4)).backward()
    place = loss.kept.buffer(1, V).data_ptr()
    for rows in (4, 2, 4):
        loss(windows(rows)).backward()
        assert loss.kept.buffer(1, V).data_ptr() == place


def test_a_head_that_is_watched_is_called():
    model = build()
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda *_: seen.append(1))
    NextTokenLoss(model)(windows()).backward()
    assert seen


@given(sizes=sizes, rows=st.integers(1, 45), seed=st.integers(0, 100))
def test_chunks_have_the_value_and_the_gradients_of_the_whole(sizes, rows, seed):
    hidden, weight, targets = drawn(sizes, seed)
    whole = F.cross_entropy(F.linear(hidden, weight), targets)
    loss = chunked_cross_entropy(lambda part: F.linear(part, weight), hidden, targets, rows)
    torch.testing.assert_close(loss, whole, rtol=1e-5, atol=1e-6)
    own, expected = (torch.autograd.grad(one, (hidden, weight)) for one in (loss, whole))
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
@pytest.mark.parametrize("at_once", [1, 7 * V, 35 * V])
def test_both_path_gradients_are_the_same_in_chunks(arch, at_once):
    gradients = []
    for limit in (None, at_once):
        model = build(arch)
        tie = SplitTie(model)
        loss = NextTokenLoss(model, logits_at_once=limit)
        for part in windows(6).chunk(2):
            (loss(part) / 2).backward()
        source, target = tie.path_gradients()
        assert source.abs().sum() > 0 and target.abs().sum() > 0
        tie.combine()
        gradients.append((source, target, *(p.grad for p in tie.parameters())))
    for whole, chunked in zip(*gradients, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-7)


def test_no_more_logits_exist_at_once_than_allowed():
    model = build(tied=False)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.numel()))
    for limit, largest in ((None, 36 * V), (36 * V, 36 * V), (36 * V - 1, 35 * V), (10 * V, 10 * V), (1, V)):
        seen.clear()
        NextTokenLoss(model, logits_at_once=limit)(windows()).backward()
        assert max(seen) == largest
        # Every token's logits once, and where they are not kept once more for the backward pass.
        assert sum(seen) == 36 * V * (1 if largest == 36 * V else 2)


def test_without_gradients_the_loss_is_the_same():
    model = build()
    with torch.no_grad():
        whole, chunked = NextTokenLoss(model)(windows()), NextTokenLoss(model, logits_at_once=5 * V)(windows())
    torch.testing.assert_close(chunked, whole)


def test_autocast_covers_the_head_in_chunks_too():
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    model = build(tied=False)
    kinds = []
    model.lm_head.register_forward_hook(lambda module, args, output: kinds.append(output.dtype))
    whole, chunked = NextTokenLoss(model, autocast)(windows()), NextTokenLoss(model, autocast, 5 * V)(windows())
    chunked.backward()
    assert set(kinds) == {torch.bfloat16} and chunked.dtype == torch.float32
    torch.testing.assert_close(chunked, whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("rows", "lengths", "named"), [(0, (3, 3), "rows"), (2, (3, 4), "hidden and targets")])
def test_what_cannot_be_chunked_is_named(rows, lengths, named):
    hidden, targets = torch.zeros(lengths[0], 2), torch.zeros(lengths[1], dtype=torch.long)
    with pytest.raises(ValueError, match=rf"^{named}: "):
        chunked_cross_entropy(nn.Linear(2, 5), hidden, targets, rows)
