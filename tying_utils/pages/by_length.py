"""What the axis of length shows, as Markdown: tables of RESULTS.md."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from tying_utils.base.names import EQUAL, LABELS, PYTHON, SECOND_START, TIED, UNTIED, WIKITEXT, scaled
from tying_utils.experiments import claims, length, on_card, position, remedies_by_length, tuned_lens
from tying_utils.experiments.tables import where
from tying_utils.pages.markdown import judged, mean, span, spread, table
from tying_utils.study.axis import Lengths
from tying_utils.study.study import Results


def verdicts(results: Results) -> str:
    """Return the headlines at the longest length that has three seeds, beside what the first hundredth of training said."""
    long, short = length.headlines(Lengths()), claims.verdicts(results)
    early = {(row["id"], row["corpus"]): row for row in short.to_dict("records")}
    corpora, places, rows = [PYTHON, WIKITEXT], list(long["place"].unique()), []
    for name, part in long.groupby("id", sort=False):
        cells = {row["place"]: _with_early(row) for row in part.to_dict("records")}
        first = [judged(early[name, corpus]) if (name, corpus) in early else "" for corpus in corpora]
        rows.append((part["claim"].iloc[0], part["statistic"].iloc[0], *(cells.get(place, "") for place in places), *first))
    titles = [f"{length.PLACES[place].label}" for place in places] + [f"{LABELS[corpus]}, 0.13 alone" for corpus in corpora]
    return table(f"Claim | Statistic | {' | '.join(titles)}", rows)


def _with_early(row: Any) -> str:
    """Return a headline, what it was at the shortest length, and the trend between them."""
    late = f"at {row['tokens_per_weight']:g}: {judged(row)}"
    first = f"at {row['earliest']:g}: {row['early_verdict']} {row['early_estimate']:.3f}"
    return "; ".join(filter(None, (late, first, row["trend"] and f"*{row['trend']}*")))


def every_length(results: Results) -> str:
    """Return every statistic at every length of the axis."""
    frame = length.verdicts(Lengths())
    frame = frame.assign(column=frame["tokens_per_weight"].map("{:g}".format))
    lengths = [f"{tokens} tokens per weight" for tokens in frame["column"].unique()]
    rows = spread(frame, ["place", "claim", "statistic"], "column", lambda row: f"{judged(row)}, n = {row['seeds']}")
    return table(f"Trained on | Claim | Statistic | {' | '.join(lengths)}", rows)


def on_a_card(results: Results) -> str:
    """Return what a card has trained says of the claims, beside the axis of length at its longest."""
    machine, tables = on_card.found()
    judgements = on_card.verdicts(tables, lengths := Lengths())
    if judgements.empty:
        return "Nothing was trained on a card yet."
    small = where(length.verdicts(lengths), place=remedies_by_length.PLACE)
    beside = where(small, tokens_per_weight=small["tokens_per_weight"].max())
    rows = []
    for row in judgements.to_dict("records"):
        cells = [f"{judged(own)}, n = {own['seeds']}" for own in (row, *where(beside, id=row["id"]).to_dict("records"))]
        rows.append((row["claim"], row["statistic"], *cells))
    words = f"{machine['card']}: {on_card.condition(machine, tables)}."
    return f"{words}\n\n{table(f'Claim | Statistic | On a card | {length.PLACES[remedies_by_length.PLACE].label}', rows)}"


def trends(results: Results) -> str:
    """Return by headline and place how it changes per tenfold training; from three seeds up."""
    values, rows = length.values(Lengths()), []
    for (place, _), part in values[values["id"].isin(length.HEADLINES)].groupby(["place", "id"], sort=False):
        of = part["statistic"].iloc[0]
        if not (found := length.trend(part, of.null, of.worth_naming))["trend"]:
            continue
        rows.append((place, of.claim, of.words, found["trend"], span(found["slope"], found["low"], found["high"], "+.3f")))
    return table("Trained on | Claim | Statistic | Trend | Change per tenfold training", rows)


def lens_by_steps(results: Results) -> str:
    """Return the lens KL at the input, tied minus untied, at the longest training: by the lens's own, and by what it reads."""
    rows = _spread(tuned_lens.gap_by_steps(_longest(Lengths()["lens_steps"])), "trained", "text")
    return table("Trained on | Tokens per weight | Lens trained | Held-out text, bits | Training text, bits", rows)


def without_a_part(results: Results) -> str:
    """Return by how much more the loss of a tied model rises without a part than an untied one's, at the longest training."""
    rows = _spread(tuned_lens.gap_without(_longest(Lengths()["ablation"])), "without", "how")
    return table("Trained on | Tokens per weight | Without | Zero in its place | Its mean in its place", rows)


def _longest(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the longest training of each place."""
    return rows[rows["tokens_per_weight"] == rows.groupby("place")["tokens_per_weight"].transform("max")]


def _spread(gaps: pd.DataFrame, down: str, across: str) -> Iterator[tuple[str, ...]]:
    for (place, tokens, one), part in gaps.groupby(["place", "tokens_per_weight", down], sort=False):
        yield str(place), f"{tokens:g}", str(one), *(mean(own["gap"], ".3f") for _, own in part.groupby(across, sort=False))


def profiles_of_tokens(results: Results) -> str:
    """Return what each table predicts of the tokens before and after a token, at the shortest training and at the longest."""
    rows = []
    for axis in Lengths().places:
        lengths = axis["lean"]["tokens_per_weight"]
        for tokens in (lengths.min(), lengths.max()):
            at = where(axis["lean"], tokens_per_weight=tokens)
            for words, arm, of in (("E", UNTIED, "input"), ("U", UNTIED, "output"), ("W", TIED, "tied")):
                own = where(at, arm=arm, table=of)
                cells = (mean(own[side], ".3f") for side in ("before", "after"))
                rows.append((axis.profile.name, f"{tokens:g}", words, *cells, mean(own["before"] - own["after"], "+.3f")))
    return table("Trained on | Tokens per weight | Table | R² of what comes before | R² of what comes after | Difference", rows)


def equal_norms(results: Results) -> str:
    """Return the share of a tied table's output bias that remedies leave, by length of training."""
    left = remedies_by_length.bias_left(Lengths())
    arms, rows = ("norm-match", scaled(5), "coupled-adam"), []
    for tokens, part in left.groupby("tokens_per_weight"):
        rows.append((f"{tokens:g}", *(mean(where(part, arm=arm)["left"], ".3f") for arm in arms)))
    return table(f"Tokens per weight | {' | '.join(arms)}", rows)


def at_equal_loss(results: Results) -> str:
    """Return the lens KL at the input, tied minus untied, where both arms of a seed have the same loss."""
    lengths, rows = Lengths(), []
    for axis in lengths.places:
        gaps = length.at_equal_loss(axis)
        if len(gaps):
            rows.append((axis.profile.name, f"{gaps['low'].mean():.2f} to {gaps['high'].mean():.2f}", mean(gaps["gap"], ".3f")))
    return table("Trained on | Losses that both arms cover, nats per token | Lens KL, tied − untied, bits", rows)


def rates(results: Results) -> str:
    """Return the loss of each arm by learning rate, at each place and length where rates were tried."""
    tried, rows = Lengths()["rates"], []
    for (place, tokens, rate), part in tried.groupby(["place", "tokens_per_weight", "learning_rate"], sort=False):
        losses = part.groupby("arm")["validation_loss"]
        cells = (f"{losses.get_group(arm).mean():.3f}" for arm in (UNTIED, TIED, scaled(5)))
        rows.append((place, f"{tokens:g}", f"{rate:g}", part["seed"].nunique(), *cells))
    return table("Trained on | Tokens per weight | Learning rate | Seeds | Untied | Tied | Input x5", rows)


def best_rates(results: Results) -> str:
    """Return tied minus untied where each arm has its best rate of those tried, beside the rate that was chosen for all."""
    tried, rows = Lengths()["rates"], []
    for (place, tokens), part in tried.groupby(["place", "tokens_per_weight"], sort=False):
        arms = (where(part, arm=arm) for arm in (UNTIED, TIED, scaled(5)))
        wide = [arm.pivot(index="seed", columns="rate", values="validation_loss") for arm in arms]
        best = [arm.columns[int(arm.mean().argmin())] for arm in wide]
        untied, tied, more = (arm[rate] for arm, rate in zip(wide, best, strict=True))
        gaps = (tied - untied, wide[1][1.0] - wide[0][1.0], more - tied, wide[2][1.0] - wide[1][1.0])
        rates = ", ".join(f"×{rate:g}" for rate in wide[0].columns)
        rows.append((place, f"{tokens:g}", rates, *(f"×{rate:g}" for rate in best), *(mean(gap, "+.3f") for gap in gaps)))
    titles = "Trained on | Tokens per weight | Tried | Best, untied | Tied | Input x5 | Tied − untied, each at its best"
    return table(f"{titles} | At the rate chosen | Input x5 − tied, each at its best | At the rate chosen", rows)


def remedies_at_length(results: Results) -> str:
    """Return what each remedy loses or gains beside untied models and tied ones of equal size, and where its table lies."""
    lengths = Lengths()
    found, where_they_lie = remedies_by_length.judged(lengths), remedies_by_length.positions(lengths)
    winners = remedies_by_length.winners(found)
    weights = remedies_by_length.losses(lengths).groupby("arm")["parameters"].first()
    rows = []
    for _, part in found.groupby(["tokens_per_weight", "arm"], sort=False):
        tokens, arm = part["tokens_per_weight"].iloc[0], part["arm"].iloc[0]
        cells = part.set_index("beside").apply(judged, axis=1)
        way = where(where_they_lie, arm=arm, tokens_per_weight=tokens)["position"]
        gaps = [cells[beside] for beside in (UNTIED, EQUAL, TIED)]
        beaten = "both" if where(winners, arm=arm, tokens_per_weight=tokens)["wins"].all() else ""
        rows.append((f"{tokens:g}", arm, f"{weights[arm]:,}", *gaps, mean(way, ".2f"), beaten))
    titles = "Tokens per weight | Remedy | Weights | Loss − untied | Loss − tied, equal parameters | Loss − tied"
    return table(f"{titles} | Position of its input-use table | Beats", rows)


def faster_input_table(results: Results) -> str:
    """Return what three times the untied input table's rate is worth from one start, and where W lies beside that model."""
    lengths, rows = Lengths(), []
    found = where(remedies_by_length.judged(lengths), arm="table-rates", beside=SECOND_START)
    beside = where(remedies_by_length.tuned_positions(lengths), arm=TIED)
    own = where(position.positions(where(lengths["poles"], place=remedies_by_length.PLACE)), arm=TIED)
    for row in found.to_dict("records"):
        at = {"tokens_per_weight": row["tokens_per_weight"]}
        same = own[own["seed"].isin(beside["seed"])]
        ways = [where(one, frequency_out=out, **at) for one in (same, beside) for out in (False, True)]
        rows.append((f"{row['tokens_per_weight']:g}", judged(row), *(mean(way["position"], ".2f") for way in ways)))
    titles = "Tokens per weight | Loss, input rate x3 - x1 | Position of W | The same, frequency out"
    return table(f"{titles} | Position beside the faster reference | The same, frequency out", rows)


def rare_tokens(results: Results) -> str:
    """Return the loss gap in the rarest tenth of the text by place and length, and where a table of log counts alone lies."""
    lengths, rows = Lengths(), []
    for (place, tokens), part in where(lengths["deciles"], decile=1).groupby(["place", "tokens_per_weight"]):
        loss = part.pivot(index="seed", columns="arm", values="loss")
        poles = where(lengths["poles"], place=place, tokens_per_weight=tokens)
        counts = where(position.positions(poles), arm="log count")["position"]
        gaps = (mean(loss[arm] - loss[UNTIED], ".3f") for arm in (TIED, scaled(5)))
        rows.append((place, f"{tokens:g}", *gaps, mean(counts, ".3f") if len(counts) else ""))
    titles = "Trained on | Tokens per weight | Tied − untied, nats per token | Input x5 − untied"
    return table(f"{titles} | Position of log counts alone", rows)
