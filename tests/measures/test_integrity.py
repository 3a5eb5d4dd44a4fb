import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tying_utils.measures.integrity import EARLY, FINAL, same_bytes, suspects


def series(steps, V=40, d=6, seed=0):
    """A table that turns steadily from one random table to another."""
    draw = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, V, d, generator=draw)
    return {step: start + (end - start) * step / steps[-1] for step in steps}


def problems(tables, final=None):
    frame = suspects(tables, final)
    assert frame["step"].tolist() == sorted(tables)
    return {row["step"]: row["problem"] for row in frame.to_dict("records") if row["problem"]}


STEPS = [0, 1, 10, 20, 30, 40]


def test_a_sound_series_has_no_suspects():
    assert problems(series(STEPS)) == {}
    assert problems(series(STEPS), series([0, 80])[80]) == {}


@pytest.mark.parametrize(("step", "other"), [(1, 0), (30, 20), *((step, 40) for step in STEPS[:-1])])
def test_of_equal_tables_the_later_is_named_but_an_early_revision_that_serves_the_last_weights(step, other):
    tables = series(STEPS)
    tables[step] = tables[other].clone()
    assert problems(tables) == {step: f"equal to step {other}"}


def test_a_revision_that_serves_the_weights_of_the_end():
    tables, final = series(STEPS), series([0, 80])[80]
    tables[10] = final.clone()
    assert problems(tables, final) == {10: FINAL}
    assert problems({**series(STEPS), 40: final}, final) == {}  # the end itself


def test_final_era_tables_need_not_be_equal_to_the_end():
    tables, end = series(STEPS), series([0, 100])[100]
    for step in (1, 10):
        tables[step] = end + 0.01 * torch.randn(40, 6, generator=torch.Generator().manual_seed(step))
    assert problems(tables, end) == {1: EARLY, 10: EARLY}


def test_one_bit_is_a_difference_and_equal_sums_are_not_equal_tables():
    tables = series(STEPS)
    tables[1] = tables[0].clone()
    tables[1][3, 2] += 1e-6
    assert problems(tables) == {}
    tables[1] = tables[0].flip(0)
    assert "equal" not in problems(tables).get(1, "")


@settings(max_examples=30)
@given(st.sets(st.integers(0, 500), min_size=3, max_size=8), st.data())
def test_whichever_step_repeats_another_is_found(steps, data):
    ordered = sorted(steps)
    one, other = sorted(data.draw(st.lists(st.sampled_from(ordered), min_size=2, max_size=2, unique=True)))
    tables = series(ordered)
    tables[one] = tables[other].clone()
    named = problems(tables)
    assert set(named) & {one, other}


def test_a_mapping_that_reads_on_access_and_half_precision_will_do():
    tables = {step: table.bfloat16() for step, table in series(STEPS).items()}
    tables[1] = tables[0]

    class Disk(dict):
        read = 0

        def __getitem__(self, step):
            Disk.read += 1
            return super().__getitem__(step)

    assert problems(Disk(tables)) == {1: "equal to step 0"}
    assert Disk.read <= 2 * len(STEPS)


def test_bad_series_are_refused():
    with pytest.raises(ValueError, match="tables: at least 2 steps are needed, got 1"):
        suspects({0: torch.zeros(4, 2)})
    with pytest.raises(ValueError, match=r"tables: every step needs the shape \(4, 2\), got \(4, 3\) at step 1"):
        suspects({0: torch.zeros(4, 2), 1: torch.zeros(4, 3), 2: torch.zeros(4, 2)})


def test_same_bytes():
    a = torch.tensor([[float("nan"), 0.0]])
    assert same_bytes(a, a.clone())
    assert not same_bytes(a, torch.tensor([[float("nan"), -0.0]]))
    assert not same_bytes(a, a.double())
    assert not same_bytes(a, a.T)
