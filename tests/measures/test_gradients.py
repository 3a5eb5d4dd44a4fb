import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from naive import gaussian

from tying_utils.measures import gradients

norms = st.floats(1e-6, 1e6)


@pytest.mark.parametrize(
    ("source", "target", "cosine"),
    [
        ([[3.0, 0.0], [0.0, 4.0]], [[6.0, 0.0], [0.0, 8.0]], 1.0),
        ([[3.0, 0.0], [0.0, 4.0]], [[-6.0, 0.0], [0.0, -8.0]], -1.0),
        ([[3.0, 0.0], [4.0, 0.0]], [[0.0, 6.0], [0.0, 8.0]], 0.0),
        ([[5.0, 0.0], [0.0, 0.0]], [[6.0, 8.0], [0.0, 0.0]], 0.6),
    ],
)
def test_statistics_of_known_gradients(source, target, cosine):
    result = gradients.path_statistics(torch.tensor(source), torch.tensor(target))
    assert list(result) == ["input_norm", "output_norm", "cosine", "output_share"]
    assert all(value.shape == () for value in result.values())
    expected = {"input_norm": 5.0, "output_norm": 10.0, "cosine": cosine, "output_share": 2 / 3}
    assert {name: float(value) for name, value in result.items()} == pytest.approx(expected, abs=1e-6)


@given(a=norms, b=norms, seed=st.integers(0, 1000), rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_a_scale_moves_the_share_and_not_the_cosine(a, b, seed, rows, columns):
    source, target = gaussian(rows, columns, seed), gaussian(rows, columns, seed + 1)
    plain, scaled = gradients.path_statistics(source, target), gradients.path_statistics(a * source, b * target)
    assert float(scaled["cosine"]) == pytest.approx(float(plain["cosine"]), abs=1e-9)
    assert -1 - 1e-9 <= float(scaled["cosine"]) <= 1 + 1e-9
    assert float(scaled["input_norm"]) == pytest.approx(a * float(plain["input_norm"]))
    odds = b / a * float(plain["output_norm"]) / float(plain["input_norm"])
    assert float(scaled["output_share"]) == pytest.approx(odds / (1 + odds))


@given(a=st.floats(0, 1e6), b=norms)
def test_shares_of_the_two_paths_make_one(a, b):
    first, second = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    share = gradients.output_share(first, second)
    assert 0 <= float(share) <= 1
    assert float(share + gradients.output_share(second, first)) == pytest.approx(1)


def test_share_at_the_ends():
    zero, one = torch.zeros(()), torch.ones(())
    assert float(gradients.output_share(zero, one)) == 1
    assert float(gradients.output_share(one, zero)) == 0
    assert math.isnan(gradients.output_share(zero, zero))


def test_unequal_shapes_are_named():
    with pytest.raises(ValueError, match=r"input_gradient and output_gradient.*\(7, 3\).*\(6, 3\)"):
        gradients.path_statistics(gaussian(7, 3), gaussian(6, 3))


@pytest.mark.parametrize("eps", [1e-8, 0.1])
def test_inverse_scale_is_what_adam_applies(eps):
    """Two parts of a gradient, each with its own first moment: the updates by inverse_scale add up to Adam's own."""
    weight = torch.nn.Parameter(gaussian(7, 3))
    rate, beta1, beta2 = 0.01, 0.9, 0.95
    optimizer = torch.optim.Adam([weight], lr=rate, betas=(beta1, beta2), eps=eps)
    moments = [torch.zeros_like(weight), torch.zeros_like(weight)]
    for step in range(1, 6):
        parts = gaussian(7, 3, 10 + step), 3 * gaussian(7, 3, 20 + step)
        weight.grad = parts[0] + parts[1]
        before = weight.detach().clone()
        optimizer.step()
        for moment, part in zip(moments, parts, strict=True):
            moment.mul_(beta1).add_(part, alpha=1 - beta1)
        state: dict[str, Any] = optimizer.state[weight]
        held = state["exp_avg_sq"].clone()
        scale = gradients.inverse_scale(state["exp_avg_sq"], step, beta2, eps)
        assert torch.equal(state["exp_avg_sq"], held), "the optimizer's own state was written to"
        update = -rate / (1 - beta1**step) * (moments[0] + moments[1]) * scale
        torch.testing.assert_close(weight.detach() - before, update, rtol=1e-7, atol=1e-10)


def test_half_precision_is_measured_in_float32():
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(50, 8, generator=draw) * 1e-4 for _ in range(2))
    for dtype in (torch.bfloat16, torch.float16):
        halves = a.to(dtype), b.to(dtype)
        expected = gradients.path_statistics(*(half.float() for half in halves))
        torch.testing.assert_close(gradients.path_statistics(*halves), expected)
