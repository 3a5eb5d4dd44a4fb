"""Tidy tables to verdicts: what each claim says, what was measured, and whether the interval lies on the claimed side."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import pandas as pd

from tying_utils.measures import statistics
from tying_utils.profiles import TIED, UNTIED

CLAIMS = ("C1", "C2", "C3", "C4", "C6")


class Tables(Protocol):
    """Tidy tables by name: a `study.Study`, or a plain dict of DataFrames."""

    def __getitem__(self, name: str, /) -> pd.DataFrame: ...


@dataclass(frozen=True)
class _Row:
    claim: str
    statistic: str
    values: pd.Series  # one a seed
    null: float
    claimed: Literal["above", "below"]
    published: str


def output_bias(alignment: pd.DataFrame, column: str = "corrected") -> pd.DataFrame:
    """Output bias of each tied table: alignment with the untied output table less that with the input table.

    `alignment` has a row for each arm, seed, source and (optionally) kind; the result one for each arm, seed and kind, with
    the column "output_bias". Above 0 the table is nearer to U than to E.
    """
    tied = alignment[alignment["target"] == "tied"]
    keys = [key for key in ("arm", "input_scale", "seed", "kind") if key in tied.columns]
    wide = tied.pivot_table(index=keys, columns="source", values=column)
    return (wide["output"] - wide["input"]).rename("output_bias").reset_index()


def share_over(gradients: pd.DataFrame, first: float, last: float, column: str = "output_share") -> pd.Series:
    """Mean output share by seed over the fraction `first` to `last` of training, of the tied arm."""
    tied = gradients[gradients["arm"] == TIED]
    done = tied["step"] / tied["step"].max()
    return tied[(done > first) & (done <= last)].groupby("seed")[column].mean()


def tied_less_untied(table: pd.DataFrame, column: str) -> pd.Series:
    """By seed, the mean of `column` over the tied arm's rows less that over the untied arm's."""
    means = table.groupby(["arm", "seed"])[column].mean()
    return means[TIED] - means[UNTIED]


def per_decade(table: pd.DataFrame, column: str) -> pd.Series:
    """By seed, the least-squares slope of `column` against log10 of the input scale, over all tied arms."""
    tied = table[table["arm"] != UNTIED]
    return pd.Series(
        {seed: statistics.slope(np.log10(rows["input_scale"].to_numpy()), rows[column]) for seed, rows in tied.groupby("seed")}
    )


def early_layers(residual: pd.DataFrame) -> pd.DataFrame:
    """The blocks of the first half of the layers: by arm and seed, their summed share of the residual stream's norm."""
    blocks = residual[residual["layer"] >= 0]
    early = blocks[blocks["layer"] < (blocks["layer"].max() + 1) / 2]
    return early.groupby(["arm", "seed"], as_index=False)["share"].sum()


def _tuned(lens: pd.DataFrame, layer: int) -> pd.DataFrame:
    return lens[(lens["lens"] == "tuned") & (lens["indexing"] == "matched") & (lens["layer"] == layer)]


def with_scaling(results: Tables, name: str) -> pd.DataFrame:
    """The table called `name` and its scaled arms; the untied pair, which may stand in both, once."""
    return pd.concat([results[name], results[f"scaling_{name}"]], ignore_index=True).drop_duplicates()


def _rows(results: Tables, claims: set[str]) -> list[_Row]:
    rows = []

    def row(
        claim: str, statistic: str, values: pd.Series, null: float, claimed: Literal["above", "below"], published: str
    ) -> None:
        rows.append(_Row(claim, statistic, values, null, claimed, published))

    if "C1" in claims:
        for kind, published in (("orthogonal", "0.669 - 0.420 = 0.249"), ("linear", "0.719 - 0.525 = 0.194")):
            bias = output_bias(results["alignment"].query("kind == @kind"))
            values = bias[bias["arm"] == TIED].set_index("seed")["output_bias"]
            row("C1", f"output bias, {kind}, chance-corrected", values, 0, "above", f"{published}, uncorrected")
        bias = output_bias(results["neighbors"], "value")
        values = bias[bias["arm"] == TIED].set_index("seed")["output_bias"]
        row("C1", "output bias, KNN@10 overlap", values, 0, "above", "0.733 - 0.496 = 0.237")
    if "C2" in claims:
        gradients = results["gradients"]
        early = "0.703 over 1,000 steps, unlike norms"
        row("C2", "output share of the gradient, first tenth", share_over(gradients, 0, 0.1), 0.5, "above", early)
        late = "0.624 at 10,000 steps, unlike norms"
        row("C2", "output share of the gradient, last tenth", share_over(gradients, 0.9, 1), 0.5, "above", late)
        update = share_over(gradients, 0, 0.1, "output_update_share")
        row("C2b", "output share of the Adam update, first tenth", update, 0.5, "above", "not measured")
        update = share_over(gradients, 0.9, 1, "output_update_share")
        row("C2b", "output share of the Adam update, last tenth", update, 0.5, "above", "not measured")
    if "C3" in claims:
        lens, published = results["lens"], {0: "8.86 - 7.01 = 1.85"}
        half = max(1, int(lens["layer"].max()) // 2)
        for layer in range(half):
            gap = tied_less_untied(_tuned(lens, layer), "kl_bits")
            where = "the input" if layer == 0 else f"layer {layer}"
            row("C3", f"lens KL at {where}, tied - untied, bits", gap, 0, "above", published.get(layer, "one layer off"))
        budget = results["lens_budget"].query("layer == 0")
        steps = budget["steps"].min()
        gap = tied_less_untied(budget[budget["steps"] == steps], "kl_bits")
        row("C3 lens", f"the same at the input, lens stopped after {steps} steps", gap, 0, "above", "8.86 - 7.01 = 1.85")
        share = tied_less_untied(early_layers(results["residual"]), "share")
        row("C3", "early blocks' share of the residual norm, tied - untied", share, 0, "below", "not measured")
    if "C4" in claims:
        bias = output_bias(with_scaling(results, "alignment").query("kind == 'orthogonal'"))
        published = "x5: 0.168 to 0.147, one run"
        row(
            "C4",
            "output bias, orthogonal, per decade of input scale",
            per_decade(bias, "output_bias"),
            0,
            "below",
            published,
        )
        curve = _tuned(with_scaling(results, "lens"), 0)
        row("C4", "lens KL at the input, bits per decade", per_decade(curve, "kl_bits"), 0, "below", "not measured")
        losses = with_scaling(results, "losses")
        published = "WikiText-2 perplexity 35.71 to 36.64"
        slope = per_decade(losses, "validation_loss")
        row("C4 price", "validation loss, nats per decade of input scale", slope, 0, "above", published)
    if "C6" in claims:
        drift = results["drift"].query("arm == @UNTIED")
        last = drift["step"].max()
        for when, step in (("a tenth of training", drift["step"][drift["step"] <= last / 10].max()), ("training", last)):
            wide = drift[drift["step"] == step].pivot_table(index="seed", columns="table", values="to_start")
            published = "0.8654 - 0.5609 = 0.305 at 20,000 steps" if step == last else "0.9906 - 0.9583 = 0.032 at 2,000 steps"
            gap = wide["input"] - wide["output"]
            row("C6", f"cosine to the start after {when}, input - output table", gap, 0, "above", published)
    return rows


def verdicts(results: Tables | Mapping[str, pd.DataFrame], claims: tuple[str, ...] = CLAIMS) -> pd.DataFrame:
    """A row a statistic of each claim of arXiv 2603.26663, judged at the scale that `results` were measured at.

    Columns: claim, statistic, estimate (mean over seeds), low, high (95 % t interval over seeds), seeds, verdict, published.
    A verdict is "supported" where the interval lies on the claimed side of the null (0; a share: 1/2), "refuted" where it
    lies on the other, "open" where it covers it or where one seed gives no interval. C1: the tied table is nearer to the
    untied output table. C2: output gradients dominate (C2b: Adam updates). C3: early layers of a tied model are further from
    its prediction, and contribute less. C4: a larger input scale reduces both; its price is the loss. C6: an untied model's
    output table moves further from its start than its input table. (C5 is about sizes, which one profile does not vary.)

    `results` needs the tables alignment, neighbors (C1), gradients (C2), lens, lens_budget, residual (C3), drift (C6), and
    for C4 beside them scaling_alignment, scaling_lens, losses and scaling_losses.

    Raises ValueError for an unknown claim, KeyError for a missing table.
    """
    if unknown := set(claims) - set(CLAIMS):
        raise ValueError(f"claims: {sorted(unknown)} unknown; choose from {', '.join(CLAIMS)}")
    rows = []
    for row in _rows(results, set(claims)):
        interval = statistics.mean_interval(row.values.to_numpy())
        rows.append(
            {
                "claim": row.claim,
                "statistic": row.statistic,
                "estimate": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "seeds": interval.n,
                "verdict": statistics.verdict(interval, null=row.null, claimed=row.claimed),
                "published": row.published,
            }
        )
    return pd.DataFrame(rows)


def sentence(verdicts: pd.DataFrame, profile: str) -> str:
    """One line of Markdown for each verdict, as the notebooks end."""
    lines = []
    for row in verdicts.to_dict("records"):
        interval = f"95 % interval {row['low']:.3f} to {row['high']:.3f}" if row["seeds"] > 1 else "one seed, no interval"
        lines.append(
            f"- **{row['claim']} {row['verdict']}** at {profile} scale: {row['statistic']} = {row['estimate']:.3f} "
            f"({interval}, n = {row['seeds']}; published: {row['published']})"
        )
    return "\n".join(lines)
