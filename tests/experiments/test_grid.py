"""The grid of verdicts: a mark and a number per cell, sentences for codes, and no verdict below three seeds."""

from typing import Any

import pandas as pd
import pytest

from tying_utils.experiments import claims, grid
from tying_utils.experiments.judge import Statistic
from tying_utils.study import Results

BIAS = Statistic("output_bias", "C1", "output bias of W", "corrected alignment")


def judged(**values: list[float]) -> pd.DataFrame:
    return pd.DataFrame([{"corpus": corpus, **BIAS.row(own)} for corpus, own in values.items()])


def test_a_cell_holds_mark_mean_and_interval_and_the_header_the_seeds() -> None:
    shown: Any = grid.grid(judged(python=[0.3, 0.31, 0.32], other=[-0.3, -0.31, -0.32, -0.31]), "quick")
    assert [*shown.data.columns] == ["Python source (n = 3)", "other (n = 4)"]
    row = shown.data.iloc[0]
    assert row.iloc[0] == "✓ 0.310 (0.285 to 0.335)" and row.iloc[1].startswith("✗ -0.310 (")
    claim, statistic = shown.data.index[0]
    assert claim == "C1: A tied table is nearer to an untied output table than to an input table"
    assert statistic == "output bias of W (corrected alignment; claimed: above 0)"


def test_the_caption_counts_and_explains_the_marks_that_are_there() -> None:
    shown: Any = grid.grid(judged(python=[0.3, 0.31, 0.32], other=[0.1, -0.1, 0.02]), "quick")
    assert shown.caption.startswith(
        "Of 2 comparisons at quick scale, the first hundredth of training, each judged "
        "alone, 1 supported and 1 open. ✓ the 95 % interval"
    )
    assert "? undecided" in shown.caption and "✗" not in shown.caption


def test_two_seeds_give_dots_and_no_word() -> None:
    shown: Any = grid.grid(judged(python=[0.3, 0.31]), "quick")
    assert shown.data.iloc[0, 0] == "· 0.305"
    assert shown.caption == (
        "Of 1 comparisons at quick scale, the first hundredth of training, each judged alone, 1 without a verdict. "
        "· fewer than three seeds, so no verdict."
    )


def test_every_claim_that_is_judged_has_a_sentence() -> None:
    codes = set(claims.verdicts(Results("laptop", only_read=True))["claim"])
    assert codes <= set(grid.SENTENCES), "a code is nothing to a reader without its sentence"


@pytest.mark.parametrize("rows", [0, 2])
def test_rows_that_no_cell_can_hold_are_refused(rows: int) -> None:
    frame = pd.concat([judged(python=[0.3, 0.31, 0.32])] * 2)
    with pytest.raises(ValueError, match=f"judged: .*got {rows} rows"):
        grid.grid(frame.iloc[:rows], "quick")


@pytest.mark.parametrize(("columns", "fits"), [(7, True), (8, False)])
def test_a_table_has_eight_columns_at_most(columns: int, fits: bool) -> None:
    frame = pd.DataFrame([range(columns)], columns=[*map(str, range(columns))])
    if fits:
        assert "<table" in grid.table(frame, "Numbers").to_html()
    else:
        with pytest.raises(ValueError, match="frame: at most 8 columns"):
            grid.table(frame)


def test_a_number_in_a_head_is_short() -> None:
    shown = grid.table(pd.DataFrame([[1.0, 2.0]], index=[0.4], columns=[0.13, 20.0])).to_html()
    assert all(f">{head}</th>" in shown for head in ("0.13", "20", "0.4"))


def test_rows_of_lengths_are_named_and_short() -> None:
    frame = judged(python=[0.3, 0.31, 0.32]).assign(tokens_per_weight=0.13)
    shown = grid.grid(frame, "d 64", rows=("tokens_per_weight",)).to_html()
    assert ">tokens per weight</th>" in shown and ">0.13</th>" in shown
