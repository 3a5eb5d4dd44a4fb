import copy

import pytest
import torch
from torch import nn

from tying_utils.training.optimizers import CoupledAdamW

OPTIONS = {"lr": 0.03, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.2}
draw = torch.Generator().manual_seed(0)


def parameters() -> tuple[nn.Parameter, nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return tuple(nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((7, 3), (4, 4)))  # type: ignore[return-value]


def give(table: nn.Parameter, other: nn.Parameter, scale: torch.Tensor | None = None) -> None:
    table.grad = torch.randn(7, 3, generator=draw) * (torch.logspace(-3, 1, 7)[:, None] if scale is None else scale)
    other.grad = torch.randn(4, 4, generator=draw)


@pytest.mark.parametrize("fused", [False, True])
def test_the_second_moment_is_the_mean_over_rows_of_adams(fused):
    """As the paper has it: a second moment for every entry, averaged over the vocabulary where it is used."""
    table, other = parameters()
    twin = table.detach().clone()
    alone = nn.Parameter(other.detach().clone())
    optimizer = CoupledAdamW([table, other], tables=[table], fused=fused, **OPTIONS)
    reference = torch.optim.AdamW([alone], fused=fused, **OPTIONS)
    first, second = torch.zeros_like(twin), torch.zeros_like(twin)
    beta1, beta2 = OPTIONS["betas"]
    for step in range(1, 8):
        give(table, other)
        assert table.grad is not None
        grad, alone.grad = table.grad.clone(), other.grad
        optimizer.step()
        reference.step()
        first = beta1 * first + (1 - beta1) * grad
        second = beta2 * second + (1 - beta2) * grad.square()
        size = (second / (1 - beta2**step)).mean(0, keepdim=True).sqrt() + OPTIONS["eps"]
        twin = twin * (1 - OPTIONS["lr"] * OPTIONS["weight_decay"]) - OPTIONS["lr"] * first / (1 - beta1**step) / size
        torch.testing.assert_close(table.detach(), twin, rtol=1e-5, atol=1e-6)
        assert torch.equal(table.grad, grad), "the gradient stays"
        assert torch.equal(other, alone), "other weights step as ever"
    assert optimizer.state[table]["exp_avg_sq"].shape == (1, 3)


def test_all_rows_step_by_one_measure():
    """Rows whose gradients differ by a factor move by that factor; Adam moves them alike."""
    coupled, adam = (nn.Parameter(torch.zeros(2, 3)) for _ in range(2))
    grad = torch.tensor([[1.0, 2.0, -3.0], [0.01, 0.02, -0.03]])
    coupled.grad, adam.grad = grad.clone(), grad.clone()
    CoupledAdamW([coupled], tables=[coupled], lr=0.1, weight_decay=0).step()
    torch.optim.AdamW([adam], lr=0.1, weight_decay=0).step()
    torch.testing.assert_close(coupled[1], coupled[0] / 100)
    torch.testing.assert_close(adam[1], adam[0])


def test_a_saved_state_goes_on():
    table, other = parameters()
    optimizer = CoupledAdamW([table, other], tables=[table], **OPTIONS)
    give(table, other)
    optimizer.step()
    twins = [nn.Parameter(p.detach().clone()) for p in (table, other)]
    resumed = CoupledAdamW(twins, tables=twins[:1], **OPTIONS)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    give(table, other)
    for twin, p in zip(twins, (table, other), strict=True):
        twin.grad = p.grad
    optimizer.step()
    resumed.step()
    assert torch.equal(twins[0], table) and torch.equal(twins[1], other)


def test_a_table_without_a_gradient_stays():
    table, other = parameters()
    before = table.detach().clone()
    optimizer = CoupledAdamW([table, other], tables=[table], **OPTIONS)
    other.grad = torch.ones(4, 4)
    optimizer.step()
    assert torch.equal(table, before) and table not in optimizer.state


def test_groups_have_their_own_rates():
    table, other = parameters()
    before = table.detach().clone()
    optimizer = CoupledAdamW([{"params": [table], "lr": 0.0}, {"params": [other]}], tables=[table], **OPTIONS)
    give(table, other)
    optimizer.step()
    assert torch.equal(table, before)


def test_bad_tables_and_closures_are_named():
    table, other = parameters()
    for bad in (nn.Parameter(torch.zeros(7, 3)), nn.Parameter(torch.zeros(3))):
        with pytest.raises(ValueError, match=r"^tables: parameters \(V, d\)"):
            CoupledAdamW([table, other], tables=[bad], **OPTIONS)
    flat = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match=r"^tables: "):
        CoupledAdamW([flat], tables=[flat], **OPTIONS)
    with pytest.raises(ValueError, match=r"^closure: "):
        CoupledAdamW([table], tables=[table], **OPTIONS).step(lambda: 1.0)
