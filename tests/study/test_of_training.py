"""What moved the tables of finished runs: trained again, to the same bits, and tabulated beside the untied pair."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tqdm.auto import tqdm

from tying_utils.base.names import TIED, TWO_ROLE, UNTIED, scaled
from tying_utils.study import Study, of_tables, of_training
from tying_utils.study.trained import Trained

NONE = ("projection", "untie", "tied, then new source roles")  # what has no parts
ARMS = (UNTIED, TIED, scaled(10), "norm-match", "table-rates", *NONE)
PARTS = ["input path", "output path", "decay"]


@pytest.fixture(scope="module")
def runs(smoke_home: Path) -> list[Trained]:
    study = Study("smoke", TWO_ROLE, progress=False)
    return [run for run in study.runs(*ARMS) if run.seed == 0]


@pytest.fixture(scope="module")
def table(runs: list[Trained]) -> pd.DataFrame:
    """The measure, made once."""
    with tqdm(disable=True) as bar:
        return of_training.displacement(runs, Study("smoke", TWO_ROLE, progress=False).profile, bar)


def named(runs: list[Trained], arm: str) -> Trained:
    return next(run for run in runs if run.arm.name == arm)


@pytest.mark.parametrize("arm", [UNTIED, TIED, scaled(10), "norm-match"])
def test_a_replay_is_the_run_again(runs: list[Trained], arm: str) -> None:
    """The sums of the parts lead from the kept start to the kept end."""
    own = named(runs, arm)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    rows, sums = of_training.replay(own.run.config, own.corpus)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    start, end = own.run.tables(0), own.run.tables()
    for name, parts in sums.items():
        moved = getattr(end, name.replace("tied", "table")) - getattr(start, name.replace("tied", "table"))
        assert float((sum(parts.values()) - moved).norm() / moved.norm()) < 1e-4
        last = rows[(rows["table"] == name) & (rows["step"] == own.run.config.steps)].set_index("part")
        assert last["share"].sum() == pytest.approx(1)
        for part, total in parts.items():
            assert last["norm"][part] == pytest.approx(float(total.norm()), rel=1e-5)
            assert last["share"][part] == pytest.approx(float((total * moved).sum() / moved.square().sum()), abs=1e-4)


def test_rows_have_steps_tables_and_parts(runs: list[Trained], table: pd.DataFrame) -> None:
    assert list(table)[:4] == ["corpus", "arm", "input_scale", "seed"]
    assert list(table)[4:10] == ["step", "table", "part", "share", "norm", "coherence"]
    assert list(table)[10:] == ["used_share", "input_alignment", "output_alignment"]
    assert list(table["arm"].unique()) == [arm for arm in ARMS if arm not in NONE]
    steps = named(runs, TIED).run.config.steps
    for (arm, name), own in table.groupby(["arm", "table"]):
        kept = own["step"].unique()
        assert kept[0] == 1 and kept[-1] == steps and 5 < len(kept) <= 11
        expected = PARTS if name == "tied" else [f"{name} path", "decay"]
        assert name == "tied" or arm in (UNTIED, "table-rates")
        assert own["part"].tolist() == expected * len(kept)
        assert own.groupby("step")["share"].sum().to_numpy() == pytest.approx(1)
    assert table["coherence"].between(0, 1 + 1e-5).all()
    first = table[table["step"] == 1]
    assert first["coherence"].to_numpy() == pytest.approx(1, abs=1e-4), "one step has one direction"


def test_sums_are_aligned_with_the_untied_pair_at_the_end(runs: list[Trained], table: pd.DataFrame) -> None:
    columns = ["input_alignment", "output_alignment"]
    there = (table["step"] == table["step"].max()) & (table["arm"] != UNTIED)
    assert table.loc[there, columns].notna().all(axis=None) and table.loc[~there, columns].isna().all(axis=None)
    last = table[table["step"] == table["step"].max()].groupby(["arm", "table"])["used_share"].sum()
    assert last.to_numpy() == pytest.approx(1)
    own, reference = named(runs, TIED), named(runs, UNTIED)
    _, sums = of_training.replay(own.run.config, own.corpus)
    profile = Study("smoke", TWO_ROLE, progress=False).profile
    expected = [
        of_tables.orthogonal(reference.tables()["output"], sums["tied"][part][own.used], profile)["corrected"] for part in PARTS
    ]
    found = table[there & (table["arm"] == TIED)]["output_alignment"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_without_an_untied_run_there_is_nothing_to_align_with(runs: list[Trained]) -> None:
    with tqdm(disable=True) as bar:
        alone = of_training.displacement([named(runs, TIED)], Study("smoke", TWO_ROLE, progress=False).profile, bar)
    assert alone["input_alignment"].isna().all() and alone["share"].notna().all()


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ("projection", "^config: the remedy 'projection' makes the tables of other weights"),
        ("untie", "^config: the remedy 'untie' parts the tie on the way"),
        ("tied, then new source roles", "^config: a run from a fresh start is needed, 'tied, seed 0, then two-role'"),
    ],
)
def test_what_has_no_parts_is_named(runs: list[Trained], arm: str, said: str) -> None:
    own: Any = named(runs, arm)
    with pytest.raises(ValueError, match=said):
        of_training.replay(own.run.config, own.corpus)
