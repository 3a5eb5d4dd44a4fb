import pytest
import torch

from tying_utils.measures.drift import drift


def test_drift_by_hand_in_any_order():
    tables = {  # the first row turns by 90, then back; the second stays
        200: torch.tensor([[1.0, 0.0], [5.0, 5.0]]),
        0: torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
        100: torch.tensor([[0.0, 2.0], [3.0, 3.0]]),
    }
    frame = drift(tables)
    assert list(frame.columns) == ["step", "to_start", "to_previous"]
    assert frame["step"].tolist() == [0, 100, 200]
    assert frame["to_start"].tolist() == pytest.approx([1, 0.5, 1])
    assert frame["to_previous"].tolist() == pytest.approx([1, 0.5, 0.5])


def test_nothing_is_centred():
    table = torch.tensor([[10.0, 0.0], [10.0, 1.0]])
    assert drift({0: table, 1: -table + torch.tensor([20.0, 0.0])})["to_start"].iloc[-1] > 0.9


def test_fewer_than_two_tables():
    with pytest.raises(ValueError, match=r"tables: at least 2 steps are needed, got 1"):
        drift({0: torch.randn(3, 2)})


@pytest.mark.parametrize("shape", [(4, 2), (3, 3)])
def test_a_step_of_another_shape_is_named(shape):
    with pytest.raises(ValueError, match="at step 20"):
        drift({20: torch.randn(*shape), 0: torch.randn(3, 2), 10: torch.randn(3, 2)})


@pytest.mark.parametrize(
    "tables", [None, [torch.ones(3, 2)] * 2, {0: torch.ones(3, 2), "1": torch.ones(3, 2)}, {0: [1], 1: [1]}]
)
def test_what_is_no_series_is_named(tables):
    with pytest.raises(ValueError, match="^tables"):
        drift(tables)
