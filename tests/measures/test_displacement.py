import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tying_utils.measures import displacement


def unit(place: int) -> torch.Tensor:
    """A table (4, 3) of zeros with a one."""
    return torch.zeros(12).index_fill(0, torch.tensor(place), 1.0).view(4, 3)


def test_parts_at_right_angles_share_the_square_of_the_way():
    found = displacement.parts({"a": 3 * unit(0), "b": -4 * unit(7)}, {"a": 3.0, "b": 16.0})
    assert list(found) == ["a", "b"]
    assert found["a"] == pytest.approx((9 / 25, 3, 1)) and found["b"] == pytest.approx((16 / 25, 4, 1 / 4))


def test_a_part_that_goes_back_has_a_share_below_zero():
    found = displacement.parts({"ahead": 5 * unit(1), "back": -unit(1)}, {"ahead": 5.0, "back": 2.0})
    assert found["ahead"] == pytest.approx((5 / 4, 5, 1)) and found["back"] == pytest.approx((-1 / 4, 1, 1 / 2))


def test_parts_that_cancel_leave_no_way_to_share():
    found = displacement.parts({"there": unit(1), "back": -unit(1)}, {"there": 1.0, "back": 1.0})
    assert all(math.isnan(part.share) and part[1:] == (1, 1) for part in found.values())


def test_one_part_is_all_there_is():
    for sign in (1, -1):
        found = displacement.parts({"alone": sign * unit(2), "still": 0 * unit(2)}, {"alone": 4.0, "still": 0.0})
        assert found["alone"] == (1, 1, 1 / 4)
        assert found["still"][:2] == (0, 0) and math.isnan(found["still"].coherence)


def test_independent_steps_cohere_by_the_root_of_their_number():
    steps = torch.randn(100, 50, 20, generator=torch.Generator().manual_seed(0))
    lengths = {"walk": torch.linalg.vector_norm(steps.flatten(1), dim=1).sum()}
    assert displacement.parts({"walk": steps.sum(0)}, lengths)["walk"].coherence == pytest.approx(0.1, rel=0.1)


@given(seed=st.integers(0, 1000), count=st.integers(1, 4), factor=st.floats(1e-3, 1e3))
def test_shares_add_up_and_know_no_unit(seed: int, count: int, factor: float):
    draw = torch.Generator().manual_seed(seed)
    steps = {str(n): torch.randn(6, 5, 3, generator=draw, dtype=torch.float64) for n in range(count)}
    sums = {name: each.sum(0) for name, each in steps.items()}
    lengths = {name: float(sum(torch.linalg.vector_norm(step) for step in each)) for name, each in steps.items()}
    found = displacement.parts(sums, lengths)
    assert sum(part.share for part in found.values()) == pytest.approx(1)
    assert all(0 <= part.coherence <= 1 for part in found.values())
    scaled = displacement.parts(
        {name: factor * table for name, table in sums.items()}, {name: factor * length for name, length in lengths.items()}
    )
    for name, part in found.items():
        assert scaled[name] == pytest.approx((part.share, factor * part.norm, part.coherence))


@pytest.mark.parametrize(
    ("sums", "lengths"),
    [({}, {}), ({"a": unit(0), "b": unit(0)[:2]}, {"a": 1.0, "b": 1.0}), ({"a": unit(0)}, {"b": 1.0})],
)
def test_what_does_not_match_is_named(sums: dict[str, torch.Tensor], lengths: dict[str, float]):
    with pytest.raises(ValueError, match="^sums and lengths: .* got "):
        displacement.parts(sums, lengths)


@pytest.mark.parametrize("what", [None, 5, [torch.ones(3, 2)]])
def test_what_names_no_parts_is_refused(what):
    for arguments in ((what, {"a": 1.0}), ({"a": torch.ones(3, 2)}, what)):
        with pytest.raises(ValueError, match="^(sums|lengths): a mapping by part is needed, got "):
            displacement.parts(*arguments)
