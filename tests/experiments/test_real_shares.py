"""The summaries of a real model's shares, on made-up rows."""

import pandas as pd
import pytest

from tying_utils.experiments import real


@pytest.fixture
def shares() -> pd.DataFrame:
    rows = [
        {
            "text": text,
            "batch": batch,
            "first": first,
            "last": last,
            "output_share": share + 0.1 * batch,
            "cosine": 0.1,
            "loss": 3.0,
        }
        for text in ("text", "random")
        for batch in range(3)
        for first, last, share in ((0, 7, 0.5), (0, 3, 0.4), (4, 7, 0.6))
    ]
    return pd.DataFrame(rows).assign(tokens=8)


def test_each_text_has_an_interval_over_its_batches(shares):
    found = real.by_text(shares)
    assert list(found.index) == [(text, name) for text in ("text", "random") for name in ("output_share", "cosine", "loss")]
    one = found.to_dict("index")["text", "output_share"]
    assert one["mean"] == pytest.approx(0.6) and one["low"] < 0.5 < 0.7 < one["high"] and one["tokens"] == 24


def test_positions_are_the_groups_and_not_the_whole(shares):
    found = real.by_position(shares)
    assert list(found.index) == [(0, 3), (4, 7)] and set(found.columns) == {"text", "random"}
    assert found["text"].tolist() == pytest.approx([0.5, 0.7])
