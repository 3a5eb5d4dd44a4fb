"""Tidy tables to verdicts: what each claim says, what was measured, and whether the interval lies on the claimed side."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import pandas as pd

from tying_utils.base.names import EQUAL, NEW_ROLES, TIED, UNTIED
from tying_utils.experiments import transfer_outcomes
from tying_utils.measures import statistics


class Tables(Protocol):
    """Tidy tables by name: a `study.Study`, a `study.Results`, or a plain dict of DataFrames."""

    def __getitem__(self, name: str, /) -> pd.DataFrame: ...

    def __contains__(self, name: object, /) -> bool: ...


Side = Literal["above", "below"]


@dataclass(frozen=True)
class _Row:
    claim: str
    statistic: str
    values: pd.Series  # one a seed
    null: float
    claimed: Side
    published: str = "not measured"


class _OfCorpus:
    """The rows of one corpus in every table."""

    def __init__(self, tables: Tables | Mapping[str, pd.DataFrame], corpus: str) -> None:
        self.tables, self.corpus = tables, corpus

    def __getitem__(self, name: str) -> pd.DataFrame:
        table = self.tables[name]
        return table[table["corpus"] == self.corpus]

    def __contains__(self, name: object) -> bool:
        return name in self.tables


def output_bias(alignment: pd.DataFrame, column: str = "corrected") -> pd.DataFrame:
    """Output bias of each tied table: alignment with the untied output table less that with the input table.

    `alignment` has a row for each arm and seed, or family of public models, source and (optionally) kind; the result one for
    each arm and seed, or family, and kind, with the column "output_bias". Above 0 the table is nearer to U than to E.
    """
    tied = alignment[alignment["target"] == "tied"]
    keys = [key for key in ("corpus", "family", "arm", "input_scale", "output_scale", "seed", "kind") if key in tied.columns]
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


def tuned(lens: pd.DataFrame, layer: int) -> pd.DataFrame:
    """The rows of the tuned lens at `layer`, 0 the input, each translator read on the layer that it was trained on."""
    return lens[(lens["lens"] == "tuned") & (lens["indexing"] == "matched") & (lens["layer"] == layer)]


def with_scaling(results: Tables, name: str) -> pd.DataFrame:
    """The table called `name` and its scaled arms; the untied pair, which may stand in both, once."""
    return pd.concat([results[name], results[f"scaling_{name}"]], ignore_index=True).drop_duplicates()


def purity_gap(roles: pd.DataFrame) -> pd.DataFrame:
    """Purity in the target role less that in the source role, a row for each arm, seed and table, as "purity_gap".

    Above 0 the table's neighbourhoods say after what a token may come (what an output table needs), below 0 what may follow
    it (what an input table needs).
    """
    keys = ["corpus", "arm", "input_scale", "output_scale", "agreement", "seed", "table"]
    wide = roles.pivot_table(index=keys, columns="role", values="purity")
    return (wide["target"] - wide["source"]).rename("purity_gap").reset_index()


def loss_gaps(sizes: pd.DataFrame) -> pd.DataFrame:
    """Validation loss of the tied model less that of the untied one, nats a token, by size and seed.

    A row for each corpus, d_model, n_layers (of the untied model) and seed: parameters (untied), share (of the untied model's
    parameters that its two tables hold), equal_shape (the tied model has the same layers), equal_parameters (it has more, and
    as many weights), parameters_ratio (of that tied model to the untied one).
    """
    rows = []
    for (corpus, seed), part in sizes.groupby(["corpus", "seed"], sort=False):
        arms = {kind: part[part["arm"].str.startswith(kind)] for kind in (UNTIED, TIED, EQUAL)}
        for untied in arms[UNTIED].to_dict("records"):
            shape = {name: untied[name] for name in ("d_model", "n_layers")}
            tied = _where(arms[TIED], **shape).iloc[0]
            equal = arms[EQUAL].loc[(arms[EQUAL]["parameters"] - untied["parameters"]).abs().idxmin()]
            rows.append(
                {
                    "corpus": corpus,
                    **shape,
                    "seed": seed,
                    "parameters": untied["parameters"],
                    "share": untied["table_parameters"] / untied["parameters"],
                    "equal_shape": tied["validation_loss"] - untied["validation_loss"],
                    "equal_parameters": equal["validation_loss"] - untied["validation_loss"],
                    "parameters_ratio": equal["parameters"] / untied["parameters"],
                }
            )
    return pd.DataFrame(rows)


def _c1(tables: Tables) -> Iterator[_Row]:
    for kind, published in (("orthogonal", "0.669 - 0.420 = 0.249"), ("linear", "0.719 - 0.525 = 0.194")):
        rows = _where(tables["alignment"], arm=TIED, kind=kind)
        words = f"{published}, uncorrected"
        yield _Row("C1", f"output bias, {kind}, chance-corrected", _by_seed(output_bias(rows)), 0, "above", words)
        held_out = _by_seed(output_bias(rows, "held_out"))
        yield _Row("C1", f"output bias, {kind}, held-out tokens", held_out, 0, "above", f"{published}, in-sample")
    bias = _by_seed(output_bias(_where(tables["neighbors"], arm=TIED)))
    yield _Row("C1", "output bias, KNN@10, chance-corrected", bias, 0, "above", "0.733 - 0.496 = 0.237")


def _c2(tables: Tables) -> Iterator[_Row]:
    gradients = tables["gradients"]
    parts = {"first": (0, 0.1, "0.703 over 1,000 steps"), "last": (0.9, 1, "0.624 at 10,000 steps")}
    for claim, column, what in (("C2", "output_share", "gradient"), ("C2b", "output_update_share", "Adam update")):
        for part, (first, last, published) in parts.items():
            share = share_over(gradients, first, last, column)
            words = f"{published}, unlike norms" if claim == "C2" else "not measured"
            yield _Row(claim, f"output share of the {what}, {part} tenth", share, 0.5, "above", words)


def _c3(tables: Tables) -> Iterator[_Row]:
    lens, published = tables["lens"], {0: "8.86 - 7.01 = 1.85"}
    for layer in range(max(1, int(lens["layer"].max()) // 2)):
        gap = tied_less_untied(tuned(lens, layer), "kl_bits")
        where = "the input" if layer == 0 else f"layer {layer}"
        yield _Row("C3", f"lens KL at {where}, tied - untied, bits", gap, 0, "above", published.get(layer, "one layer off"))
    budget = _where(tables["lens_budget"], layer=0)
    steps = budget["steps"].min()
    gap = tied_less_untied(_where(budget, steps=steps), "kl_bits")
    yield _Row("C3 lens", f"the same at the input, lens stopped after {steps} steps", gap, 0, "above", published[0])
    share = tied_less_untied(early_layers(tables["residual"]), "share")
    yield _Row("C3", "early blocks' share of the residual norm, tied - untied", share, 0, "below")


def _c4(tables: Tables) -> Iterator[_Row]:
    bias = output_bias(_where(with_scaling(tables, "alignment"), kind="orthogonal"))
    slope, published = per_decade(bias, "output_bias"), "x5: 0.168 to 0.147, one run"
    yield _Row("C4", "output bias, orthogonal, per decade of input scale", slope, 0, "below", published)
    slope = per_decade(tuned(with_scaling(tables, "lens"), 0), "kl_bits")
    yield _Row("C4", "lens KL at the input, bits per decade", slope, 0, "below")
    slope, published = per_decade(with_scaling(tables, "losses"), "validation_loss"), "WikiText-2 perplexity 35.71 to 36.64"
    yield _Row("C4 price", "validation loss, nats per decade of input scale", slope, 0, "above", published)


def _c5(tables: Tables) -> Iterator[_Row]:
    gaps = loss_gaps(tables["sizes"])
    # The profile's own size is the one that stands first.
    own = gaps[(gaps["d_model"] == gaps["d_model"].iloc[0]) & (gaps["n_layers"] == gaps["n_layers"].iloc[0])].set_index("seed")
    for column, words in (("equal_shape", "equal shape"), ("equal_parameters", "equal parameters")):
        yield _Row("C5", f"validation loss, tied - untied, {words}, nats", own[column], 0, "above")
    if gaps["parameters"].nunique() > 1:
        gaps = gaps.assign(decades=np.log10(gaps["parameters"]))
        by_seed = gaps.groupby("seed")[["decades", "share", "equal_shape", "equal_parameters"]]
        for column, words in (
            ("share", "the untied tables' share of all parameters"),
            ("equal_shape", "loss gap at equal shape"),
            ("equal_parameters", "loss gap at equal parameters"),
        ):
            slope = by_seed.apply(lambda rows, y=column: statistics.slope(rows["decades"], rows[y]))
            side: Side = "below" if column == "share" else "above"
            yield _Row("C5", f"{words}, per decade of parameters", slope, 0, side)


def _c6(tables: Tables) -> Iterator[_Row]:
    drift = _where(tables["drift"], arm=UNTIED)
    last = drift["step"].max()
    early = drift["step"][drift["step"] <= last / 10].max()
    for when, step, published in (
        ("a tenth of training", early, "0.9906 - 0.9583 = 0.032 at 2,000 steps"),
        ("training", last, "0.8654 - 0.5609 = 0.305 at 20,000 steps"),
    ):
        wide = _where(drift, step=step).pivot_table(index="seed", columns="table", values="to_start")
        gap = wide["input"] - wide["output"]
        yield _Row("C6", f"cosine to the start after {when}, input - output table", gap, 0, "above", published)


def _roles(tables: Tables) -> Iterator[_Row]:
    gaps = purity_gap(tables["roles"])
    alike = _where(gaps, agreement=0.0)
    plain = _where(alike, input_scale=1.0, output_scale=1.0)
    for table, claim, words in (
        ("input", "roles", "untied input"),
        ("output", "roles", "untied output"),
        ("tied", "C1 roles", "tied"),
    ):
        values = _where(plain, table=table).set_index("seed")["purity_gap"]
        side: Side = "below" if table == "input" else "above"
        yield _Row(claim, f"purity of the {words} table, target - source role", values, 0, side)
    slope = per_decade(_where(alike, table="tied", output_scale=1.0), "purity_gap")
    yield _Row("C4 roles", "the tied table's target - source purity per decade of input scale", slope, 0, "below")
    losses = tables["roles"].groupby(["arm", "tied", "agreement", "seed"], as_index=False)["over_floor"].first()
    losses = losses[losses["arm"].str.startswith((UNTIED, TIED))]
    cost = losses.pivot_table(index=["agreement", "seed"], columns="tied", values="over_floor")
    cost = (cost[True] - cost[False]).unstack("agreement")
    if len(cost.columns) > 1:
        top = cost.columns.max()
        yield _Row("C5 roles", "loss, tied - untied, nats, where the roles are independent", cost[0.0], 0, "above")
        yield _Row("C5 roles", f"the same where they agree ({top:g}) less that", cost[top] - cost[0.0], 0, "below")


def _sweep(tables: Tables) -> Iterator[_Row]:
    rows = tables["sweep_alignment"]
    rows = rows[rows["step"] == rows["step"].max()]
    bias = output_bias(rows)
    parts: list[tuple[str, pd.DataFrame, pd.Series, Side]] = [
        ("output scale, input scale 1", _where(bias, input_scale=1.0), bias["output_scale"], "above"),
        ("input over output scale, all pairs", bias, bias["input_scale"] / bias["output_scale"], "below"),
    ]
    for words, part, scale, side in parts:
        slope = {
            seed: statistics.slope(np.log10(scale[own.index].to_numpy()), own["output_bias"])
            for seed, own in part.groupby("seed")
        }
        yield _Row("C4 sweep", f"output bias, orthogonal, per decade of {words}", pd.Series(slope), 0, side)


def _transfer(tables: Tables) -> Iterator[_Row]:
    rows = transfer_outcomes.outcomes(tables["transfer_losses"], tables["transfer_forgetting"])
    for to, part in rows.groupby("to", sort=False):
        for column, words in (("steps", "steps to the target loss"), ("forgetting", "forgetting, nats")):
            wide = part.pivot_table(index="seed", columns="arm", values=column)
            for arm in (arm for arm in part["arm"].unique() if arm != TIED):
                yield _Row("transfer", f"{words}, {to}, {arm} - tied", wide[arm] - wide[TIED], 0, "below")
    # The role that a table holds is the one that it has to give up: less of the target's, and new target roles cost it less.
    if set(NEW_ROLES) <= set(rows["to"]):
        source, target = (_where(rows, to=to).pivot_table(index="seed", columns="arm", values="steps") for to in NEW_ROLES)
        for arm in (arm for arm in _where(tables["transfer_probe"], table="tied")["arm"].unique() if arm != TIED):
            gap = (source[arm] - source[TIED]) - (target[arm] - target[TIED])
            yield _Row("transfer", f"steps to the target loss, {' less '.join(NEW_ROLES)}, {arm} - tied", gap, 0, "above")
    for question, own in _where(tables["transfer_probe"], arm=TIED).groupby("question", sort=False):
        untied = _where(tables["transfer_probe"], arm=UNTIED, table="input", question=question)
        gap = own.set_index("seed")["corrected"] - untied.set_index("seed")["corrected"]
        side: Side = "above" if question == "target role" else "below"
        yield _Row("transfer", f"probe for the {question}, corrected, tied - untied input table", gap, 0, side)


# Each claim with the table that it cannot do without, and what judges it on one corpus.
_CLAIMS: dict[str, tuple[str, Callable[[Tables], Iterator[_Row]]]] = {
    "C1": ("alignment", _c1),
    "C2": ("gradients", _c2),
    "C3": ("lens", _c3),
    "C4": ("scaling_alignment", _c4),
    "C4 sweep": ("sweep_alignment", _sweep),
    "C5": ("sizes", _c5),
    "C6": ("drift", _c6),
    "roles": ("roles", _roles),
    "transfer": ("transfer_losses", _transfer),
}
CLAIMS = tuple(_CLAIMS)

# Of each claim the statistics that stand for it, in the words of `verdicts`, and what a figure calls them.
HEADLINES = {
    "output bias, orthogonal, chance-corrected": "C1: output bias of W",
    "output share of the gradient, first tenth": "C2: output share, early",
    "output share of the Adam update, first tenth": "C2b: of Adam's update",
    "lens KL at the input, tied - untied, bits": "C3: lens KL, input (bits)",
    "output bias, orthogonal, per decade of input scale": "C4: bias per decade",
    "validation loss, nats per decade of input scale": "C4: loss per decade",
    "validation loss, tied - untied, equal shape, nats": "C5: loss, same shape",
    "validation loss, tied - untied, equal parameters, nats": "C5: loss, same size",
}


def verdicts(results: Tables | Mapping[str, pd.DataFrame], claims: tuple[str, ...] | None = None) -> pd.DataFrame:
    """A row a statistic and corpus of each claim of arXiv 2603.26663, judged at the scale that `results` were measured at.

    Columns: claim, statistic, corpus, estimate (mean over seeds), low, high (95 % t interval over seeds), seeds, scale (in
    words, where `results` know it), verdict, published. A verdict is "supported" where the interval lies on the claimed side
    of the null (0; a share: 1/2), "refuted" where it lies on the other, "open" where it covers it or where one seed gives no
    interval. C1: the tied table is nearer to the untied output table. C2: output gradients dominate (C2b: Adam updates). C3:
    early layers of a tied model are further from its prediction, and contribute less. C4: a larger input scale reduces both;
    its price is the loss ("C4 sweep": so does a smaller output scale, and what counts is their ratio). C5: tables hold a
    smaller share of a larger model, and a tied model loses to an untied one of equal shape, and of equal parameters. C6: an
    untied model's output table moves further from its start than its input table. "roles": the same in a language whose right
    answer is known (`two_role`). "transfer": a start that leans less learns a second text sooner and forgets less of the first,
    new source roles cost it more and new target roles less, and as an input table the tied one tells less of its tokens (not in
    the paper; steps that never reach the target count as all there are).

    `results` needs, for the `claims` asked for (default: all whose first table is there), the tables alignment, neighbors
    (C1), gradients (C2), lens, lens_budget, residual (C3), sweep_alignment (C4 sweep), drift (C6), sizes (C5), roles, for C4
    scaling_alignment, scaling_lens, scaling_losses with their unscaled likes, and for "transfer" transfer_losses,
    transfer_forgetting and transfer_probe, each with the columns corpus and seed.

    Raises ValueError for an unknown claim, KeyError for a missing table.
    """
    if unknown := set(claims or ()) - set(CLAIMS):
        raise ValueError(f"claims: {sorted(unknown)} unknown; choose from {', '.join(CLAIMS)}")
    scales = getattr(results, "scales", {})
    rows = []
    for claim in claims or [claim for claim in CLAIMS if _CLAIMS[claim][0] in results]:
        table, judge = _CLAIMS[claim]
        of_claim = []
        for corpus in results[table]["corpus"].unique():
            for row in judge(_OfCorpus(results, corpus)):
                interval = statistics.mean_interval(row.values.to_numpy())
                of_claim.append(
                    {
                        "claim": row.claim,
                        "statistic": row.statistic,
                        "corpus": corpus,
                        "estimate": interval.mean,
                        "low": interval.low,
                        "high": interval.high,
                        "seeds": interval.n,
                        "scale": scales.get(corpus, ""),
                        "verdict": statistics.verdict(interval, null=row.null, claimed=row.claimed),
                        "published": row.published,
                    }
                )
        # Of each statistic the corpora stand together.
        order = list(dict.fromkeys(row["statistic"] for row in of_claim))
        rows += sorted(of_claim, key=lambda row: order.index(row["statistic"]))
    return pd.DataFrame(rows)


def sentence(verdicts: pd.DataFrame, profile: str) -> str:
    """One line of Markdown for each verdict, as the notebooks end."""
    lines = []
    for row in verdicts.to_dict("records"):
        interval = f"95 % interval {row['low']:.3f} to {row['high']:.3f}" if row["seeds"] > 1 else "one seed, no interval"
        lines.append(
            f"- **{row['claim']} {row['verdict']}** at {profile} scale, {row['corpus']}: {row['statistic']} = "
            f"{row['estimate']:.3f} ({interval}, n = {row['seeds']}; published: {row['published']})"
        )
    return "\n".join(lines)


def _where(frame: pd.DataFrame, **values: object) -> pd.DataFrame:
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame


def _by_seed(bias: pd.DataFrame) -> pd.Series:
    return bias.set_index("seed")["output_bias"]
