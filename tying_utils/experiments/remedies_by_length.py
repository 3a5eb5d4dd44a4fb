"""Notebook 09: a few remedies at three lengths of training, in loss beside untied models and tied ones of equal size."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tying_utils.base.names import EQUAL, SECOND_START, TIED, UNTIED, scaled
from tying_utils.experiments import position, style
from tying_utils.experiments.judge import Statistic
from tying_utils.experiments.length import over_tokens
from tying_utils.experiments.looks import ARMS, DARK, DASHED, DOTTED, NO_EFFECT, Look
from tying_utils.experiments.style import TWO_COLUMNS
from tying_utils.experiments.tables import Tables, where
from tying_utils.measures import statistics
from tying_utils.study.axis import NAME
from tying_utils.study.lengths import D64

FIGURES = style.Gallery()
PLACE = D64.name  # where the remedies were trained
BESIDE = (UNTIED, EQUAL)  # what a remedy has to beat, both of them
_X5 = scaled(5)
_LOOKS = {
    **{arm: ARMS[arm] for arm in (_X5, "norm-match")},
    "coupled-adam": Look("coupled Adam", "#661133", "p"),
    "table-rates": Look("untied, input rate ×3", DARK, "*", DASHED),
    "untie": ARMS["untie"],
    "compact": Look("compact input map", "#d9a3cf", "h", DOTTED),
}
ARMS = tuple(_LOOKS)


def losses(lengths: Tables, table: str = "losses") -> pd.DataFrame:
    """Return the rows of a table of losses with the remedies below the arms of the axis, where remedies were trained.

    `table`: "losses", or "deciles" for losses by the tenth of the text. Columns: those of the table.
    """
    own, axis = where(lengths[f"remedy_{table}"], place=PLACE), where(lengths[table], place=PLACE)
    key = ["tokens_per_weight", "seed"]
    return pd.concat([axis.merge(own[key].drop_duplicates(), on=key), own], ignore_index=True)


def judged(lengths: Tables) -> pd.DataFrame:
    """Judge for each length and remedy whether it beats an untied model, and a tied one of as many weights, in loss.

    Columns: tokens_per_weight, arm, beside (the arm compared with), and those of `Statistic.row`. The faster input table is
    compared with `SECOND_START`, too: from that start it differs in nothing but the rate.
    """
    rows, columns = [], ["tokens_per_weight", "seed"]
    wide = losses(lengths).pivot_table(index=columns, columns="arm", values="validation_loss")
    for arm in ARMS:
        for beside in (*BESIDE, TIED, *([SECOND_START] if arm == "table-rates" else [])):
            words = f"validation loss, {arm} - {beside}"
            statistic = Statistic("remedy_loss", "remedies", words, "nats per token", claimed="below")
            for length, gap in (wide[arm] - wide[beside]).groupby(level="tokens_per_weight"):
                rows.append({"tokens_per_weight": length, "arm": arm, "beside": beside, **statistic.row(gap)})
    return pd.DataFrame(rows)


def winners(judgements: pd.DataFrame) -> pd.DataFrame:
    """Return for each length and remedy whether it beats both of `BESIDE`: tokens_per_weight, arm, p_holm, wins.

    A remedy's p value is the larger of the two, adjusted over the remedies of one length (`statistics.holm`).
    """
    both = judgements[judgements["beside"].isin(BESIDE)]
    found = both.groupby(["tokens_per_weight", "arm"], sort=False, as_index=False).agg(
        p=("p", "max"), below=("verdict", lambda verdicts: (verdicts == "supported").all())
    )
    found["p_holm"] = found.groupby("tokens_per_weight")["p"].transform(lambda p: statistics.holm(p))
    return found.assign(wins=found["below"] & (found["p_holm"] < 0.05))[["tokens_per_weight", "arm", "p_holm", "wins"]]


def positions(lengths: Tables) -> pd.DataFrame:
    """Return `position.positions` of each remedy's input-use table, token frequency left in."""
    return where(position.positions(where(lengths["remedy_poles"], place=PLACE)), frequency_out=False)


def bias_left(lengths: Tables) -> pd.DataFrame:
    """Return the fraction of the tied table's output bias that each remedy's input-use table has, token frequency left in.

    Columns: tokens_per_weight, seed, arm, left. Seeds are those of the remedies.
    """
    keys = ["tokens_per_weight", "seed", "arm"]
    bias = positions(lengths).set_index(keys)["bias"]
    tied = where(position.positions(where(lengths["poles"], place=PLACE)), arm=TIED, frequency_out=False)
    return (bias / tied.set_index(keys[:2])["bias"]).dropna().rename("left").reset_index()[[*keys, "left"]]


def tuned_positions(lengths: Tables) -> pd.DataFrame:
    """Return `position.positions` of the tied table beside a reference whose input table trained at three times the rate."""
    return position.positions(where(lengths["tuned_poles"], place=PLACE), second=UNTIED)


@FIGURES.reads("09_lengths", "losses", "deciles", "remedy_losses", "remedy_deciles", "remedy_poles", corpus=NAME)
def remedies_by_length(lengths: Tables) -> Figure:
    """Draw what six remedies do to loss and position as training goes on, and to which tokens."""
    titles = (
        "Loss beside the untied model",
        "Loss beside a tied one of equal size",
        "Is the input-use table more E or more U?",
    )
    table, where_they_lie = losses(lengths), positions(lengths)
    wide = table.pivot_table(index=["tokens_per_weight", "seed"], columns="arm", values="validation_loss").reset_index()
    tenths = losses(lengths, "deciles")
    longest = tenths["tokens_per_weight"].max()
    keys = ["decile", "seed"]
    by_tenth = where(tenths, tokens_per_weight=longest).pivot_table(index=keys, columns="arm", values="loss").reset_index()
    last = f"By token, at {longest:g} tokens per weight"
    figure, axes = style.panels(TWO_COLUMNS, 4.8, *titles, last, rows=2)
    for arm, look in _LOOKS.items():
        for ax, beside in zip(axes, BESIDE, strict=False):
            style.curve(ax, wide.assign(gap=wide[arm] - wide[beside]), "tokens_per_weight", "gap", look, bars=True)
        style.curve(axes[2], where(where_they_lie, arm=arm), "tokens_per_weight", "position", look, bars=True)
        style.curve(axes[3], by_tenth.assign(gap=by_tenth[arm] - by_tenth[UNTIED]), "decile", "gap", look)
    for ax, ylabel in zip(
        axes,
        ("loss − untied (nats per token)", "loss − larger tied (nats per token)", "from E′ (0) to U′ (1) (fraction)"),
        strict=False,
    ):
        over_tokens(ax, ylabel, np.unique(wide["tokens_per_weight"]))
    for ax in (axes[0], axes[1], axes[3]):
        style.level(ax, 0)
    axes[3].set(xlabel="tenth of text, rare to common", ylabel="loss − untied (nats per token)", xticks=(1, 4, 7, 10))
    note, every = "Source of packages, d 64. Below 0 a remedy is better.", ["tokens_per_weight"]
    return style.finish(figure, where(table, arm=_X5), [*_LOOKS.values(), NO_EFFECT], note, columns=4, every=every)
