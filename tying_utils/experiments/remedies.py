"""Notebook 09: what each remedy does to the bias and to the loss, and what it costs.

In figures a remedy's colour and marker say what it acts on.
"""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tying_utils.base.names import AGAIN, TIED, UNTIED
from tying_utils.experiments import style
from tying_utils.experiments.judge import Statistic
from tying_utils.experiments.style import BLUE, CORPORA, GREY, LOOKS, ORANGE, PURPLE, TWO_COLUMNS, Look
from tying_utils.experiments.tables import OfCorpus, Tables, output_minus_input, tuned, where
from tying_utils.study.profiles import described

FIGURES = style.Gallery()
EQUAL_SHAPE, EQUAL_SIZE = "equal shape", "equal parameters"
POLES = (TIED, AGAIN)
# What a remedy is judged by: less of each than the tied arm has.
MEASURES = {
    name: Statistic(name, "remedies", label, unit, claimed="below")
    for name, label, unit in (
        ("bias", "output bias of the input-use table", "corrected alignment, or fraction"),
        ("loss", "validation loss", "nats per token"),
        ("early_lens", "lens KL, early layers", "bits per token"),
    )
}
_WEIGHS = Look("weighs the two gradients", BLUE, "o", "none")
_STEPS = Look("changes the optimizer's step", ORANGE, "s", "none")
_TABLES = Look("has other tables", PURPLE, "v", "none")
_POLES = {TIED: replace(LOOKS[TIED], line="none"), AGAIN: replace(LOOKS[UNTIED], label="untied, another start", line="none")}
_KINDS: dict[str, Look] = dict.fromkeys(("coupled-adam", "table-rates"), _STEPS)
_KINDS |= dict.fromkeys(("projection", "spd-map", "factorised", "untie"), _TABLES)
_NEEDS = ("remedy_losses", "remedy_alignment", "remedy_roles", "remedy_lens", "remedy_steps")
_BIAS = {"two-role": "purity gap, target − source role (fraction)"}
_LOSS = {"two-role": "loss over the floor (nats per token)"}


def outcomes(results: Tables) -> pd.DataFrame:
    """Return what each arm does to the bias and to the loss: a row for each corpus, shape, arm and seed.

    `results` needs the tables remedy_losses and remedy_lens, and of remedy_alignment (a text), remedy_roles (the two-role
    language) and remedy_steps those that its corpora have. Columns: corpus, shape, arm (without what says its shape), seed,
    and

    - bias: of the table that embeds the input. In a text its orthogonal alignment with the untied output table minus that with
      the untied input table, both corrected for chance; in the two-role language its purity in the target role minus that in
      the source role. Above 0 it leans to the output. The pole "untied again" is another untied model.
    - source_purity, target_purity: NaN in a text.
    - loss: on held-out text, nats per token; in the two-role language over the floor that nothing can beat.
    - early_lens: tuned-lens KL, bits per token, mean over the input and the first half of the layers; NaN at equal parameters.
    - parameters, and added: those above the tied model's of equal shape.
    - step_ratio: time of a step over the tied arm's, one value for all seeds; NaN at equal parameters.

    At equal shape stand all arms with the tied model's trunk; at equal parameters those that are nearer to the untied model's
    number of weights than to the tied one's: enlarged trunks, and whatever has two tables.
    """
    frames = [_of_corpus(results, corpus) for corpus in results["remedy_losses"]["corpus"].unique()]
    return pd.concat(frames, ignore_index=True)


def _of_corpus(results: Tables, corpus: str) -> pd.DataFrame:
    tables, key = OfCorpus(results, corpus), ["arm", "seed"]
    losses = tables["remedy_losses"]
    losses = losses[losses["arm"] != UNTIED]
    frame = losses[["corpus", *key, "parameters"]].assign(loss=losses["validation_loss"] - losses["floor"].fillna(0.0))
    frame = frame.merge(biases(tables), on=key, how="left")
    lens = tuned(tables["remedy_lens"])
    early = lens[lens["layer"] < lens["layer"].max() / 2]
    frame = frame.merge(early.groupby(key)["kl_bits"].mean().rename("early_lens"), on=key, how="left")
    times = tables["remedy_steps"].set_index("arm")["ratio"] if "remedy_steps" in tables else pd.Series(dtype=float)
    frame["step_ratio"] = frame["arm"].map(times.to_dict()).astype(float)
    own, two = (frame.loc[frame["arm"] == arm, "parameters"].iloc[0] for arm in POLES)
    frame["added"] = frame["parameters"] - own
    arms = described(frame)[["kind", "enlarged"]]
    frame["arm"], enlarged = arms["kind"], arms["enlarged"]
    frame.insert(1, "shape", np.where(enlarged, EQUAL_SIZE, EQUAL_SHAPE))
    both = frame[~enlarged & (frame["added"] > (two - own) / 2)]
    of_size = both.assign(shape=EQUAL_SIZE, early_lens=np.nan, step_ratio=np.nan)
    if not enlarged.any():  # the profile trains none: there is nothing to compare with
        of_size = of_size.iloc[:0]
    return pd.concat([frame, of_size], ignore_index=True)


def biases(tables: Tables) -> pd.DataFrame:
    """Return bias and purities of `outcomes`, of one corpus, a row for each arm (as its tables call it) and seed."""
    key = ["arm", "seed"]
    if "remedy_roles" in tables and len(roles := tables["remedy_roles"]):
        wide = roles[roles["table"] != "output"].pivot_table(index=key, columns="role", values="purity")
        columns = {"source_purity": wide["source"], "target_purity": wide["target"]}
        return wide.assign(**columns, bias=wide["target"] - wide["source"]).reset_index()[[*key, "bias", *columns]]
    # Of the table that embeds the input, tied or not: more than `alignment.output_bias` is of.
    bias = output_minus_input(tables["remedy_alignment"], key, "corrected", "bias")
    return bias.assign(source_purity=np.nan, target_purity=np.nan)


def changes(found: pd.DataFrame) -> pd.DataFrame:
    """Judge what each arm changes beside the tied arm of its corpus and shape: a row for each and measure (`MEASURES`).

    Columns: corpus, shape, arm, measure, change (mean over seeds of the differences within a seed), low, high (95 % t
    interval), seeds, and verdict on the claim that it is lower: "supported", "refuted" (it is higher) or "open", as in
    `claims.verdicts`.
    """
    rows = []
    for (corpus, shape), part in found.groupby(["corpus", "shape"], sort=False):
        by_seed = part.pivot(index="seed", columns="arm", values=[*MEASURES])
        for arm in (arm for arm in part["arm"].unique() if arm != TIED):
            for measure, statistic in MEASURES.items():
                differences = (by_seed[measure][arm] - by_seed[measure][TIED]).dropna()
                if len(differences):
                    labels = {"corpus": corpus, "shape": shape, "arm": arm, "measure": measure}
                    rows.append({**labels, **statistic.row(differences)})
    columns = ["corpus", "shape", "arm", "measure", "change", "low", "high", "seeds", "verdict"]
    return pd.DataFrame(rows).rename(columns={"estimate": "change"})[columns]


def front(found: pd.DataFrame) -> pd.DataFrame:
    """Return the mean bias and loss of each corpus, shape and arm, and as "front" whether it is on the Pareto front.

    It is if no other arm is as low in both and lower in one. Means alone decide, so arms whose intervals overlap may change
    places with other seeds.
    """
    means = found.groupby(["corpus", "shape", "arm"], sort=False, as_index=False)[["bias", "loss"]].mean()

    def stands(row: pd.Series) -> bool:
        others = means[(means["corpus"] == row["corpus"]) & (means["shape"] == row["shape"])]
        as_low = (others["bias"] <= row["bias"]) & (others["loss"] <= row["loss"])
        return not (as_low & ((others["bias"] < row["bias"]) | (others["loss"] < row["loss"]))).any()

    return means.assign(front=[stands(row) for _, row in means.iterrows()])


def verdicts(found: pd.DataFrame, shape: str = EQUAL_SHAPE) -> pd.DataFrame:
    """Return `changes` at one `shape` as `grid.grid` shows them: a row per remedy, a column per corpus and measure."""
    judged = changes(found).query("shape == @shape and measure != 'early_lens'")
    what = judged["corpus"].map({corpus: look.label for corpus, look in CORPORA.items()}) + ": " + judged["measure"]
    return judged.assign(what=what).rename(columns={"change": "estimate", "arm": "remedy"})


def _look(arm: str) -> Look:
    return _POLES.get(arm) or _KINDS.get(arm, _WEIGHS)


def _named(arm: str) -> str:
    return arm.replace(" x", " ×")


@FIGURES.reads("09_pareto", *_NEEDS, corpus=None)
def pareto(tables: Tables) -> Figure:
    """Draw loss against the bias of the input-use table, for every remedy between the tied and the untied pole."""
    frame = outcomes(tables)
    remedies = [arm for arm in frame["arm"].unique() if arm not in _POLES]
    numbers = {arm: str(place) for place, arm in enumerate(remedies, 1)}
    cells = [*frame.groupby(["corpus", "shape"], sort=False).groups]
    corpora, shapes = (list(dict.fromkeys(part)) for part in zip(*cells, strict=True))
    titles = [f"{CORPORA[corpus].label}, {shape}" for corpus in corpora for shape in shapes]
    figure, panels = style.panels(TWO_COLUMNS, 2.6 * len(corpora) + 1.3, *titles, rows=len(corpora))
    places = dict(zip(itertools.product(corpora, shapes), panels, strict=True))
    for place in places.keys() - {*cells}:  # a corpus that is compared at equal shape alone
        places.pop(place).remove()
    for (corpus, shape), ax in places.items():
        part = where(frame, corpus=corpus, shape=shape)
        corners = front(part).query("front").sort_values("bias")
        ax.step(corners["bias"], corners["loss"], where="post", color=GREY, linewidth=0.8, zorder=0)
        for arm in part["arm"].unique():
            _arm(ax, where(part, arm=arm), _look(arm), 6 if arm in _POLES else 4)
        ax.set(
            xlabel=_BIAS.get(corpus, "output bias of the input-use table"), ylabel=_LOSS.get(corpus, "loss (nats per token)")
        )
    figure.draw_without_rendering()  # from here on it is known what lies beside what on the page
    for (corpus, shape), ax in places.items():
        means = where(frame, corpus=corpus, shape=shape).groupby("arm")[["bias", "loss"]].mean()
        _number(ax, means, numbers)
    looks = [*_POLES.values(), _WEIGHS, _STEPS, _TABLES]
    handles = [look.handle() for look in looks] + [Line2D([], [], color=GREY, linewidth=0.8, label="Pareto front of the means")]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    words = ", ".join(f"{number} {_named(arm)}" for arm, number in numbers.items())
    n = " or ".join(str(n) for n in sorted({part["seed"].nunique() for _, part in frame.groupby("corpus")}))
    return style.small_print(
        figure, f"Large: mean; small: n = {n} seeds. An arm that is lowest in both is the front alone. {words}."
    )


def _arm(ax: Axes, rows: pd.DataFrame, look: Look, size: float) -> None:
    """Draw a small dot per seed, and the mean."""
    common: dict[str, Any] = {"color": look.colour, "linestyle": "none"}
    ax.plot(rows["bias"], rows["loss"], ".", markersize=2.5, alpha=0.4, **common)
    ax.plot(rows["bias"].mean(), rows["loss"].mean(), marker=look.marker, markersize=size, markeredgecolor="white",
            markeredgewidth=0.4, **common)  # fmt: skip


def _number(ax: Axes, means: pd.DataFrame, numbers: dict[str, str]) -> None:
    """Write the number of each remedy where nothing else stands: beside its mean, or further out at the end of a thin line."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    point = figure.dpi / 72
    points = ax.transData.transform(means.to_numpy())
    taken = [*points]
    ways = [
        (r * math.cos(t), r * math.sin(t)) for r in (6.5, 11, 16, 22, 29) for t in np.linspace(0.6, 0.6 + math.tau, 13)[:-1]
    ]
    for arm, at in zip(means.index, points, strict=True):
        if arm not in numbers:
            continue
        free = (way for way in ways if all(np.hypot(*(at + np.multiply(way, point) - other)) > 6.8 * point for other in taken))
        way = next(free, ways[0])
        taken.append(at + np.multiply(way, point))
        line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 1.5}
        ax.annotate(
            numbers[arm],
            means.loc[arm].tolist(),
            xytext=way,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=6.5,
            color=_look(arm).colour,
            arrowprops=line if math.hypot(*way) > 8 else None,
        )


@FIGURES.reads("09_changes", *_NEEDS, corpus=None)
def change(tables: Tables) -> Figure:
    """Draw what each remedy changes beside the tied arm at equal shape: bias, loss, early layers, and the time of a step."""
    frame = where(outcomes(tables), shape=EQUAL_SHAPE)
    table = changes(frame)
    arms = [arm for arm in frame["arm"].unique() if arm != TIED]
    titles = ("Output bias", "Validation loss", "Early lens KL", "Time of a step")
    figure, panels = style.panels(TWO_COLUMNS, 0.2 * len(arms) + 1.5, *titles)
    labels = ("change (score or fraction)", "change (nats per token)", "change (bits per token)", "ratio to the tied step")
    corpora = [corpus for corpus in CORPORA if (frame["corpus"] == corpus).any()]
    for ax, measure, xlabel in zip(panels, (*MEASURES, "step_ratio"), labels, strict=True):
        for place, corpus in enumerate(corpora):
            shift = 0.36 * (place - (len(corpora) - 1) / 2)
            look, own = CORPORA[corpus], where(frame, corpus=corpus)
            if measure == "step_ratio":
                rows = own.groupby("arm", sort=False)[measure].first()
                y = [arms.index(arm) + shift for arm in rows.index if arm != TIED]
                ax.plot(rows.drop(TIED), y, look.marker, color=look.colour, markersize=3)
            else:
                _differences(ax, own, where(table, corpus=corpus, measure=measure), arms, shift, look)
        ax.axvline(1 if measure == "step_ratio" else 0, color=GREY, linewidth=1, linestyle=style.DOTTED)
        ax.set(xlabel=xlabel, ylim=(len(arms) - 0.4, -0.6))
        ax.set_yticks(range(len(arms)), [_named(arm) for arm in arms] if ax is panels[0] else [""] * len(arms))
        ax.grid(visible=False, axis="y")
    looks = [CORPORA[corpus] for corpus in corpora]
    note = "Differences from the tied arm within a seed. Bias: of the table that embeds the input; in the two-role language "
    return style.finish(figure, frame, looks, note + "its purity gap. Time: one run each, in turns.")


def _differences(ax: Axes, own: pd.DataFrame, change: pd.DataFrame, arms: list[str], shift: float, look: Look) -> None:
    """Draw a small dot per seed, the mean change, and its interval."""
    by_seed = own.pivot(index="seed", columns="arm", values=str(change["measure"].iloc[0]))
    for row in change.to_dict("records"):
        y = arms.index(row["arm"]) + shift
        values = (by_seed[row["arm"]] - by_seed[TIED]).dropna()
        ax.plot(values, [y] * len(values), ".", color=look.colour, markersize=2, alpha=0.5)
        ax.plot(row["change"], y, look.marker, color=look.colour, markersize=3)
        if row["seeds"] > 2:
            ax.plot([row["low"], row["high"]], [y, y], color=look.colour, linewidth=0.9)
