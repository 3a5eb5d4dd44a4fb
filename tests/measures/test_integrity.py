import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tying_utils.measures.integrity import EARLY, FINAL, FOREIGN, same_bytes, suspects


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


def other(seed=9, V=40, d=6):
    return torch.randn(V, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("final", [None, 80])
@pytest.mark.parametrize(("foreign", "after"), [((0,), 1), ((0, 1), 10), ((10,), 20), ((1, 20), 30), ((30,), 40)])
def test_steps_of_another_initialisation_are_named_and_none_beside_them(final, foreign, after):
    """As pythia-160m's step 0; the first steps of another run; and one step of another in the middle."""
    tables = series(STEPS, V=400)
    for step in foreign:  # of one other run, which turns, too
        tables[step] = other(V=400) + 0.01 * step * other(8, V=400)
    end = None if final is None else series([0, final], V=400)[final]
    named = problems(tables, end)
    assert set(named) == set(foreign)
    assert named[foreign[-1]] == FOREIGN.format(f"step {after}")


def test_a_foreign_start_is_named_where_all_rows_lean_one_way_and_one_row_in_three_does_not_train():
    """Trained rows share a direction, which makes those of two runs alike or opposite as a whole, not row by row."""
    tables, lean = series(STEPS, V=600, d=16), 3 * torch.ones(16)
    tables = {step: table + lean for step, table in tables.items()}
    assert problems(tables) == {}
    tables[0] = other(V=600, d=16) + lean
    assert problems(tables) == {0: FOREIGN.format("step 1")}
    sound = series(STEPS, V=600, d=16)
    for step in STEPS:
        sound[step][:200] = sound[0][:200]
    assert problems(sound) == {} and problems({0: sound[0], 40: sound[40]}) == {}, "what does not train keeps the start's trace"


@pytest.mark.parametrize("part", ["input", "output"])
def test_a_trained_series_is_sound_until_it_is_given_the_start_of_another_seed(part, trained_once, tiny):
    run, another = (trained_once(tiny(tied=False, init_seed=seed, steps=60, learning_rate=3e-2)) for seed in (0, 1))
    tables = {step: getattr(run.tables(step), part) for step in run.checkpoints}
    sound = problems(tables)
    assert 0 not in sound and not any("unrelated" in said for said in sound.values())
    assert "unrelated" in problems({**tables, 0: getattr(another.tables(0), part)})[0]


def test_a_last_step_of_another_run_is_told_by_the_end():
    tables, end = series(STEPS, V=400), series([0, 60], V=400)[60]
    tables[40] = other(V=400)
    assert problems(tables, end) == {40: FOREIGN.format("the final table")}


def test_a_start_at_zero_and_a_permuted_start():
    tables = series(STEPS, V=400)
    assert problems({**tables, 0: torch.zeros(400, 6)}) == {}, "as some heads begin"
    half = tables[0].clone()
    half[200:] = 0
    assert problems({**tables, 0: half}) == {}
    assert set(problems({**tables, 0: tables[0].flip(0)})) == {0}, "rows of another vocabulary"


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


@pytest.mark.parametrize(
    "tables", [None, [torch.ones(3, 2)] * 2, {0: torch.ones(3, 2), "1": torch.ones(3, 2)}, {0: [1], 1: [1]}]
)
def test_what_is_no_series_is_named(tables):
    with pytest.raises(ValueError, match="^tables"):
        suspects(tables)


def test_tables_beyond_float32_are_compared_like_any():
    draw = torch.Generator().manual_seed(0)
    tables = {step: torch.randn(200, 8, generator=draw).double() for step in range(3)}
    tables[3] = tables[2] + 0.01
    assert suspects({step: table * 1e200 for step, table in tables.items()}).equals(suspects(tables))
