"""Notebook 12: what a second table costs a model of a given shape, and the measured loss gap that is nearest to it.

Nothing is fitted and nothing is extrapolated: a gap is shown as it was measured, with where that was and how far away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter

from tying_utils.base import checks
from tying_utils.base.names import EQUAL, PACKAGES, TIED, UNTIED
from tying_utils.experiments import places, style
from tying_utils.experiments.judge import Statistic, at_equal_parameters
from tying_utils.experiments.looks import CORPORA, NO_EFFECT, SOURCE
from tying_utils.experiments.shares import Parameters
from tying_utils.experiments.sizes import loss_gaps
from tying_utils.experiments.style import TWO_COLUMNS
from tying_utils.experiments.tables import Tables, where
from tying_utils.measures import statistics
from tying_utils.study.axis import NAME, Lengths
from tying_utils.study.study import Results

FIGURES = style.Gallery()
SHAPE, SIZE = "equal shape", "equal parameters"
LOOKS = {PACKAGES: SOURCE, **CORPORA}
# The three ways in which a measured place may differ: what is counted, and the words for less of it and for more.
AXES = {
    "odds": ("odds of the tables' share", "lower", "higher"),
    "length": ("tokens per weight", "fewer", "more"),
    "weights": ("weights", "fewer", "more"),
}
NEAR = math.log10(5)  # decades: the largest step between two neighbouring lengths of the axis of length
# No model is as large, or trained as long; from there on a share rounds to 1, of which there are no odds.
_LARGEST = 10**9, 10**18
LAYER = 16  # d² weights of one layer of OLMo: four of attention, twelve of the gated MLP; its norms hold none
_PLACE = ["corpus", "vocab_size", "d_model", "n_layers", "tokens_per_weight"]
_GAP = Statistic("loss_gap", "C5", "validation loss, tied − untied", "nats per token")
_WORDS = {
    "supported": "the untied model is better",
    "refuted": "the tied model is better",
    "equivalent": "no difference worth naming",
    "open": "unresolved",
    "not measurable": "which says nothing of tying, as the larger tied model is no better than the smaller",
    "": "too few seeds for a verdict",
}


def _of_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the loss gaps by size and seed with the columns that place them, from the losses of runs of equal length."""
    untied = where(table, arm=UNTIED)[["d_model", "n_layers", "seed", "table_parameters"]]
    gaps = loss_gaps(table).merge(table.loc[table["arm"].str.startswith(UNTIED), [*untied]].drop_duplicates())
    wider = not set(table["d_model"]) <= set(gaps["d_model"])
    return gaps.assign(vocab_size=gaps["table_parameters"] // (2 * gaps["d_model"]), larger="wider" if wider else "more layers")


def _of_lengths(lengths: Tables) -> Iterator[pd.DataFrame]:
    if "losses" in lengths:
        losses = lengths["losses"]
        for _, part in losses[losses["arm"].isin([UNTIED, TIED, EQUAL])].groupby(["place", "tokens_per_weight"]):
            yield _of_table(part).assign(tokens_per_weight=part["tokens_per_weight"].iloc[0])


def _of_card(tables: Mapping[str, pd.DataFrame]) -> Iterator[pd.DataFrame]:
    if "losses" in tables and {UNTIED, TIED} <= {*tables["losses"]["arm"]}:
        losses, one = tables["losses"], tables["losses"].iloc[0]
        weights, loss = losses.groupby("arm")["parameters"].first(), losses.set_index(["arm", "seed"])["validation_loss"]
        table = weights[UNTIED] - weights[TIED]
        labels: dict[str, Any] = {name: one[name] for name in ("corpus", "d_model", "n_layers", "tokens_per_weight")}
        labels |= {"vocab_size": table // one["d_model"], "parameters": weights[UNTIED], "share": 2 * table / weights[UNTIED]}
        gaps = (loss[TIED] - loss[UNTIED]).dropna().rename("equal_shape").reset_index()
        yield gaps.assign(**labels, equal_parameters=np.nan, larger_tied=np.nan, larger="")


def _of_results(results: Results) -> Iterator[pd.DataFrame]:
    for study in results.studies.values():
        config = study.profile.config(UNTIED, study.profile.seeds[0])
        parts = [_of_table(study["sizes"])]
        if study.profile.grid:
            parts.append(places.effects(study, "grid").assign(larger="wider"))
        for part in parts:
            yield part.assign(tokens_per_weight=config.steps * config.batch_size * config.context / part["parameters"])


def _judged(gaps: pd.DataFrame) -> pd.DataFrame:
    """Judge gaps by seed: a row per place and budget; of what was measured twice the one with more seeds."""
    rows = []
    for column, budget in (("equal_shape", SHAPE), ("equal_parameters", SIZE)):
        own = gaps.dropna(subset=column).assign(larger=gaps["larger"] if budget == SIZE else "")
        for place, part in own.groupby([*_PLACE, "larger"], sort=False):
            first = part.iloc[0]
            labels = dict(zip([*_PLACE, "larger"], place, strict=True)) | {"budget": budget}
            # Equal runs may be in two tables.
            by_seed = part.groupby("seed")[[column, "larger_tied"]].first()
            judging = at_equal_parameters(_GAP, by_seed["larger_tied"]) if budget == SIZE else _GAP
            rows.append({**labels, "parameters": first["parameters"], "share": first["share"], **judging.row(by_seed[column])})
    columns = [*_PLACE, "parameters", "share", "budget", "larger", "estimate", "low", "high", "seeds", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def measured(results: Results, lengths: Tables, card: Mapping[str, pd.DataFrame] | None = None) -> pd.DataFrame:
    """Return every measured loss gap, tied minus untied in nats per token: a row per place, length of training and budget.

    Columns: corpus, vocab_size, d_model, n_layers, tokens_per_weight, parameters and share (of the untied model's weights, in
    its two tables), budget ("equal shape" or "equal parameters"), larger (how the tied model was made as large: "wider" or
    "more layers"; "" at equal shape), estimate (mean over seeds), low, high (95 % t interval), seeds and verdict (see
    `judge.Statistic`; within 0.02 nats is not worth naming).

    results: tables sizes, and those of the grid where a corpus has them. lengths: the table losses of the axis of length, if
    it is there. card: tables of models that a card has trained (`on_card.found`), of which the losses count.
    """
    return _judged(pd.concat([*_of_lengths(lengths), *_of_card(card or {}), *_of_results(results)], ignore_index=True))


def rare(lengths: Lengths) -> pd.DataFrame:
    """Judge the loss gap at equal shape in the rarest tenth of the text, by place and tokens_per_weight, as `Statistic.row`."""
    rows = []
    for (place, length), part in where(lengths["deciles"], decile=1).groupby(["place", "tokens_per_weight"]):
        loss = part.set_index(["arm", "seed"])["loss"]
        rows.append({"place": place, "tokens_per_weight": length, **_GAP.row(loss[TIED] - loss[UNTIED])})
    columns = ["place", "tokens_per_weight", "estimate", "low", "high", "seeds", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def distances(measured: pd.DataFrame, share: float, tokens_per_weight: float, parameters: float) -> pd.DataFrame:
    """Return how far each row of `measured` is from a model, in decades: columns odds, length, weights and distance.

    The first three are signed, log10 of the row's value over the model's: of the odds share / (1 - share) of the untied tables,
    of tokens per weight, and of the untied model's weights. distance is the sum of their sizes: what is a factor of two away in
    each of two ways is as far as what is a factor of four away in one. It is 0 at the place itself, equal both ways, and no
    detour shortens it.
    """
    if not 0 < share < 1:
        raise ValueError(f"share: a fraction between 0 and 1 is needed, got {share!r}")
    apart = pd.DataFrame(
        {
            "odds": np.log10(measured["share"] / (1 - measured["share"])) - math.log10(share / (1 - share)),
            "length": np.log10(measured["tokens_per_weight"]) - math.log10(tokens_per_weight),
            "weights": np.log10(measured["parameters"].astype(float)) - math.log10(parameters),
        }
    )
    return apart.assign(distance=apart.abs().sum(axis=1))


@dataclass(frozen=True, eq=False)
class Advice:
    """What is known for one model. Made by `advise`.

    counted: the weights of the untied model. tokens_per_weight: of that model. memory: whether the sentence is about models of
    equal parameters, or of equal shape. nearest: the nearest row of `measured` for each budget, and the columns of `distances`.
    """

    counted: Parameters
    tokens_per_weight: float
    memory: bool
    nearest: pd.DataFrame = field(repr=False)

    @property
    def parameters(self) -> int:
        """Return how many weights the untied model has."""
        return self.counted.parameters

    @property
    def share_tied(self) -> float:
        """Return the fraction of the tied model's weights in its one table."""
        return self.counted.table_fraction(tied=True)

    @property
    def share_untied(self) -> float:
        """Return the fraction of the untied model's weights in its two tables."""
        return self.counted.table_fraction(tied=False)

    @property
    def added(self) -> int:
        """Return how many weights untying adds."""
        return self.counted.table

    @property
    def sentence(self) -> str:
        """Return the measured gap at the budget that counts, in words; nothing is said of what was not measured."""
        budget = SIZE if self.memory else SHAPE
        rows = where(self.nearest, budget=budget)
        if rows.empty:
            return f"Nothing measured at {budget}."
        row = rows.iloc[0]
        gap = f"tied minus untied {_interval(row)}, {_WORDS[str(row['verdict'])]}"
        if row["distance"] <= NEAR:
            return f"At {budget}, measured near this ({_where(row)}): {gap}."
        return f"At {budget}, nothing measured near this: the nearest is {_where(row)}, with {_apart(row)}. There: {gap}."

    def table(self) -> pd.DataFrame:
        """Return the facts in words: a row each, columns "of this model" and "is"."""
        total = self.parameters
        facts = {
            "weights, untied": f"{total:,}, {100 * self.share_untied:.3g} % of them in two tables",
            "weights, tied": f"{total - self.added:,}, {100 * self.share_tied:.3g} % of them in one table",
            "untying adds": f"{self.added:,} weights, {100 * self.added / (total - self.added):.3g} %",
            "tokens per weight": f"{self.tokens_per_weight:.3g}",
        }
        for _, row in self.nearest.iterrows():
            near = "near" if row["distance"] <= NEAR else "not near"
            facts[f"nearest at {row['budget']}"] = f"{_interval(row)}, {_WORDS[row['verdict']]}; {_where(row)}; {near}"
        return pd.DataFrame({"of this model": [*facts], "is": [*facts.values()]})


def _interval(row: pd.Series) -> str:
    seeds = f"{row['seeds']} seeds" if row["seeds"] > 1 else "one seed, no interval"
    ends = f"{row['low']:.2f} to {row['high']:.2f}, " if row["seeds"] > 1 else ""
    return f"{row['estimate']:.2f} nats per token ({ends}{seeds})".replace("-", "−")


def _where(row: pd.Series) -> str:
    shape = f"V {row['vocab_size']}, d {row['d_model']}, {row['n_layers']} layers"
    larger = f", tied {row['larger']}" if row["larger"] else ""
    return f"{LOOKS[row['corpus']].label}, {shape}{larger}, {row['tokens_per_weight']:.2g} tokens per weight"


def _apart(row: pd.Series) -> str:
    """Say in which ways a row is further away than a tenth, and by what factor."""
    ways = []
    for name, (words, less, more) in AXES.items():
        factor = 10 ** abs(row[name])
        if factor > 1.1:
            ways.append(f"{float(f'{factor:.2g}'):,g} times {less if row[name] < 0 else more} {words}")
    return " and ".join(filter(None, (", ".join(ways[:-1]), ways[-1])))


def advise(
    measured: pd.DataFrame, *, vocab_size: int, d_model: int, n_layers: int, tokens: int, memory: bool = False
) -> Advice:
    """Return what is known for an untied model of this shape trained on `tokens`, and the nearest rows of `measured`.

    Its weights are counted as those of the models trained here: n_layers times 16 d² and two tables of V d. A row is *near*
    where its distance (see `distances`) is at most that between 4 and 20 tokens per weight, a factor of five in all. What has
    fewer than three seeds has no verdict, and is taken only where nothing has more; among rows equally far, the one with the
    most. `memory` chooses what the sentence is about: models of equal parameters, or of equal shape.

    Raises ValueError for a table without the columns of `measured`, for a size that is no integer from 1 to below 10^9, or a
    number of tokens that is none below 10^18.
    """
    sizes = {"vocab_size": vocab_size, "d_model": d_model, "n_layers": n_layers, "tokens": tokens}
    for name, value in sizes.items():
        checks.integer(name, value, 1, _LARGEST[name == "tokens"])
    checks.flag("memory", memory)
    if missing := {"share", "tokens_per_weight", "parameters", "budget", "seeds"} - {*getattr(measured, "columns", ())}:
        raise ValueError(
            f"measured: the table of `measured` is needed, got {type(measured).__name__} without {sorted(missing)}"
        )
    counted = Parameters(LAYER * n_layers * d_model**2, vocab_size * d_model, tied=False)
    length = tokens / counted.parameters
    away = distances(measured, counted.table_fraction(tied=False), length, counted.parameters)
    found = measured.join(away.round(9)).assign(few=measured["seeds"] < statistics.ENOUGH)
    order = found.sort_values(["few", "distance", "seeds"], ascending=[True, True, False], kind="stable")
    nearest = order.groupby("budget", sort=False).head(1).sort_values("budget", ascending=False, ignore_index=True)
    return Advice(counted, length, memory, nearest)


def peers(public: pd.DataFrame, parameters: int, count: int = 3) -> pd.DataFrame:
    """Return the public models of about as many parameters, within a factor of three and at most `count`, smallest first.

    public: as `shares.table` gives it. Columns: model, is ("tied" or "untied"), parameters, share (of its tables, as it is).
    """
    checks.positive("count", count)
    far = pd.Series(np.abs(np.log(public["parameters"].to_numpy(float) / parameters)), public.index).sort_values(kind="stable")
    rows = public.loc[far[far <= math.log(3)].index[:count]].sort_values("parameters")
    tied = rows["tied"].astype(bool)
    share = rows["share_tied"].where(tied, rows["share_untied"])
    kinds = tied.map({True: TIED, False: UNTIED})
    return pd.DataFrame({"model": rows["model"], "is": kinds, "parameters": rows["parameters"], "share": share})


def cases() -> dict[str, dict[str, Any]]:
    """Return a few typical models by name, as arguments of `advise`: sizes as published, tokens as published or rounded."""
    ours = {"vocab_size": 2048, "d_model": 64, "n_layers": 4}
    weights = 2 * 2048 * 64 + LAYER * 4 * 64**2
    olmo = {"vocab_size": 50304, "d_model": 2048, "n_layers": 16, "tokens": 20 * 1_280_000_000}
    return {
        "d 64, trained here, 1.3 tokens per weight": {**ours, "tokens": round(1.3 * weights)},
        "d 64, trained here, 20 tokens per weight": {**ours, "tokens": 20 * weights},
        "SmolLM2-135M, two trillion tokens": {"vocab_size": 49152, "d_model": 576, "n_layers": 30, "tokens": 2 * 10**12},
        "1B, as OLMo, 20 tokens per weight": olmo,
        "7B, as OLMo, two trillion tokens": {"vocab_size": 50304, "d_model": 4096, "n_layers": 32, "tokens": 2 * 10**12},
    }


def of_cases(measured: pd.DataFrame, public: pd.DataFrame) -> pd.DataFrame:
    """Return a row per case of `cases`: model, share tied, share untied, untying adds, at equal shape, at equal parameters, and
    public models of its size, in words."""
    rows = []
    for name, sizes in cases().items():
        shape, size = (advise(measured, **sizes, memory=memory) for memory in (False, True))
        near = peers(public, shape.parameters)
        rows.append(
            {
                "model": name,
                "share tied": shape.share_tied,
                "share untied": shape.share_untied,
                "untying adds": shape.added,
                SHAPE: shape.sentence,
                SIZE: size.sentence,
                "public models of its size": described(near),
            }
        )
    return pd.DataFrame(rows)


def described(peers: pd.DataFrame) -> str:
    """Return what public models do in words: name, tied or untied, and the tables' share of each."""
    rows = peers.to_dict("records")
    said = "; ".join(f"{row['model']} {row['is']}, {100 * row['share']:.2g} %" for row in rows)
    return said or "none of those listed"


def verdicts(measured: pd.DataFrame, rare: pd.DataFrame) -> pd.DataFrame:
    """Return the gaps of each budget and place that was trained at several lengths, as `grid.grid` shows them.

    Columns: budget, trained on, tokens per weight, and those of `Statistic.row` from estimate to verdict. rare: as the function
    of that name gives it; its rows follow.
    """
    own = measured.groupby(["budget", "corpus", "vocab_size", "d_model", "n_layers", "larger"]).filter(
        lambda part: len(part) > 2
    )
    place = own["corpus"].map({corpus: look.label for corpus, look in LOOKS.items()}) + ", d " + own["d_model"].astype(str)
    frames = (own.assign(place=place), rare.assign(budget="equal shape, rarest tenth of the text"))
    columns = ["budget", "place", "tokens_per_weight", "estimate", "low", "high", "seeds", "verdict"]
    found = pd.concat([frame[columns] for frame in frames]).sort_values("tokens_per_weight", kind="stable")
    rounded = found["tokens_per_weight"].map("{:.2g} tokens per weight".format)
    return found.assign(tokens_per_weight=rounded).rename(columns={"place": "trained on", "tokens_per_weight": "length"})


def across(measured: pd.DataFrame) -> np.ndarray:
    """Return where each row is drawn on the axis of tokens per weight: a little beside those of another corpus."""
    beside = np.array([[*LOOKS].index(corpus) - 1 for corpus in measured["corpus"]])
    return measured["tokens_per_weight"].to_numpy(float) * 1.06**beside


def draw(measured: pd.DataFrame) -> tuple[Figure, list[Axes]]:
    """Draw every measured gap with its interval against tokens per weight, a panel per budget; the figure and its panels."""
    figure, panels = style.panels(TWO_COLUMNS, 2.9, "Does untying pay at equal shape?", "… and at equal parameters?")
    for ax, budget in zip(panels, (SHAPE, SIZE), strict=True):
        for corpus, look in LOOKS.items():
            own = where(measured, budget=budget, corpus=corpus)
            ends = ("estimate", "low"), ("high", "estimate")
            error = [(own[above] - own[below]).where(own["seeds"] > 2) for above, below in ends]
            bars: dict[str, Any] = {"linestyle": "none", "elinewidth": 0.8, "capsize": 1.5}
            ax.errorbar(across(own), own["estimate"], error, markersize=3.5, **bars, **look.mark)
        style.level(ax, 0)
        ax.set(xscale="log", xlabel="tokens per weight", ylabel="loss, tied − untied (nats per token)")
        ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    sure = measured[measured["seeds"] > 2]  # of two there is no interval
    low, high = sure["low"].min(), sure["high"].max()
    for ax in panels:
        ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    shown = [look for corpus, look in LOOKS.items() if (measured["corpus"] == corpus).any()]
    style.legend(figure, [*shown, NO_EFFECT])
    seeds = style.counted({LOOKS[str(corpus)].label: part["seeds"] for corpus, part in measured.groupby("corpus", sort=False)})
    words = "mean with 95 % t interval (below three seeds none). Corpora are side by side. Above 0 the tied model is worse."
    style.small_print(figure, f"{seeds}, {words}")
    return figure, panels


@FIGURES.reads("12_gaps", "losses", corpus=NAME)
def gaps(lengths: Lengths) -> Figure:
    """Draw the loss gap against the length of training, at equal shape and at equal parameters, with 95 % intervals."""
    return draw(_judged(pd.concat(_of_lengths(lengths), ignore_index=True)))[0]
