"""Notebook 09: what each remedy does to the bias and to the loss, and what it costs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox, offset_copy

from tying_utils.base.names import AGAIN, TIED, UNTIED, scaled
from tying_utils.experiments import style
from tying_utils.experiments.judge import Statistic
from tying_utils.experiments.looks import CORPORA, DARK, DOTTED, GREY, LOOKS, NO_EFFECT, PURPLE, Look
from tying_utils.experiments.style import TWO_COLUMNS
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
_NAMED = Look("remedy named here", PURPLE, "v", "none")
_OTHERS = Look("other remedy", "#b0b0b0", "v", "none", hollow=True)
_POLES = {TIED: replace(LOOKS[TIED], line="none"), AGAIN: replace(LOOKS[UNTIED], label="untied, another start", line="none")}
# What figures call an arm whose name says little; the code's own names are in METHODS.md.
_CALLED = {
    AGAIN: "untied, another start",
    "table-rates": "untied, faster input table",
    "factorised": "factorised input table",
    "spd-map": "two maps of W (spd-map)",
    "untie": "untied at ⅔",
    "projection": "output projection",
    "early x5": "input ×5, early",
    "late x5": "input ×5, late",
}
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

    At equal shape are all arms with the tied model's trunk; at equal parameters those that are nearer to the untied model's
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
    interval), seeds, and verdict on the claim that it is lower: "supported", "refuted" (it is higher), "equivalent" or
    "open", as in `claims.verdicts`.
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


def verdicts(found: pd.DataFrame, shape: str = EQUAL_SHAPE) -> pd.DataFrame:
    """Return `changes` at one `shape` as `grid.grid` shows them: a row per remedy, a column per corpus and measure."""
    judged = changes(found).query("shape == @shape and measure != 'early_lens'")
    what = judged["corpus"].map({corpus: look.label for corpus, look in CORPORA.items()}) + ": " + judged["measure"]
    return judged.assign(what=what).rename(columns={"change": "estimate", "arm": "remedy"})


def telling(part: pd.DataFrame) -> list[str]:
    """Return the arms of one corpus and shape that a figure names: those whose loss is lower, or half of whose bias is gone.

    Lower as in `changes`; half of the tied arm's mean bias. Poles are named, too, and the input scale that the paper tried.
    """
    judged = changes(part).set_index(["arm", "measure"])
    by = judged["change"].unstack("measure")
    bias = by.index[by["bias"] <= -abs(where(part, arm=TIED)["bias"].mean()) / 2]
    loss = [arm for arm in by.index if judged.loc[(arm, "loss"), "verdict"] == "supported"]
    return [arm for arm in part["arm"].unique() if arm in {*_POLES, scaled(5), *bias, *loss}]


@FIGURES.reads("09_pareto", *_NEEDS, corpus=None)
def pareto(tables: Tables) -> Figure:
    """Draw loss against the bias of the input-use table at equal shape, naming the arms that lower either clearly."""
    frame = where(outcomes(tables), shape=EQUAL_SHAPE)
    corpora = [corpus for corpus in CORPORA if (frame["corpus"] == corpus).any()]
    figure, panels = style.panels(TWO_COLUMNS, 3.6, *(f"{CORPORA[corpus].label}: which lowers both?" for corpus in corpora))
    for corpus, ax in zip(corpora, panels, strict=True):
        part = where(frame, corpus=corpus)
        named = telling(part)
        for arm, own in part.groupby("arm", sort=False):
            look = _POLES.get(str(arm), _NAMED if arm in named else _OTHERS)
            ax.plot(own["bias"], own["loss"], ".", color=look.colour, markersize=2.5, alpha=0.4)
            size, order = (6, 4) if arm in _POLES else (4.5, 3)
            ax.plot(own["bias"].mean(), own["loss"].mean(), markersize=size, zorder=order, **look.mark)
        ax.set(xlabel=_BIAS.get(corpus, "output bias of the input-use table (corrected alignment)"))
        ax.set(ylabel=_LOSS.get(corpus, "loss (nats per token)"))
        ax.margins(0.15)
        towards: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "axes fraction", "color": DARK, "ha": "right"}
        ax.annotate("better", (0.02, 0.86), (0.2, 0.97), va="center", arrowprops={"arrowstyle": "->", "color": DARK}, **towards)
    figure.draw_without_rendering()  # from here on it is known what lies beside what on the page
    for corpus, ax in zip(corpora, panels, strict=True):
        means = where(frame, corpus=corpus).groupby("arm")[["bias", "loss"]].mean()
        _name(ax, means, telling(where(frame, corpus=corpus)))
    style.legend(figure, [*_POLES.values(), _NAMED, _OTHERS])
    words = f"{style.seeds(frame)} (dots) and their means, at equal shape. Named: half of the tied arm's bias is gone, or the "
    return style.small_print(figure, words + "interval of the loss is below the tied arm's; and input ×5.")


def _name(ax: Axes, means: pd.DataFrame, named: list[str]) -> None:
    """Write the name of each of `named` beside its mean, where it covers no other mean and no other name."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    half, within = 3.5 * figure.dpi / 72, ax.get_window_extent()
    at = dict(zip(means.index, means.to_numpy().tolist(), strict=True))
    taken = [Bbox([[x - half, y - half], [x + half, y + half]]) for x, y in ax.transData.transform([*at.values()])]
    ways = [(sign * (7 if abs(rise) < 18 else 12), rise) for rise in (0, 9, -9, 18, -18, 27, -27, 36, -36) for sign in (1, -1)]
    for arm in named:
        x, y = at[arm]
        tried = []
        for across, rise in ways:
            beside = offset_copy(ax.transData, figure, across, rise, units="points")
            words = ax.text(x, y, _named(arm), transform=beside, ha="left" if across > 0 else "right", va="center", fontsize=7)
            words.set_in_layout(False)
            box = words.get_window_extent()
            words.remove()
            outside = box.x0 < within.x0 or box.x1 > within.x1 or box.y0 < within.y0
            tried.append((sum(box.overlaps(other) for other in taken) + 3 * outside, len(tried), words, box, (across, rise)))
        _, _, words, box, way = min(tried, key=lambda found: found[:2])
        ax.add_artist(words)
        taken.append(box)
        if way[1]:
            line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
            ax.annotate("", (x, y), way, textcoords="offset points", arrowprops=line).set_in_layout(False)


@FIGURES.reads("09_changes", *_NEEDS, corpus=None)
def change(tables: Tables) -> Figure:
    """Draw what each remedy changes beside the tied arm at equal shape: bias, loss, early layers, and the time of a step."""
    frame = where(outcomes(tables), shape=EQUAL_SHAPE)
    table = changes(frame)
    arms = [arm for arm in frame["arm"].unique() if arm != TIED]
    titles = ("Output bias", "Validation loss", "Early layers (lens)", "Time of a step")
    figure, panels = style.panels(TWO_COLUMNS, 0.2 * len(arms) + 1.5, *titles)
    labels = ("arm − tied (alignment\nor fraction)", "arm − tied\n(nats per token)", "arm − tied\n(bits per token)")
    labels += ("arm / tied (ratio)",)
    corpora = [corpus for corpus in CORPORA if (frame["corpus"] == corpus).any()]
    for ax, measure, xlabel in zip(panels, (*MEASURES, "step_ratio"), labels, strict=True):
        for place, corpus in enumerate(corpora):
            shift = 0.36 * (place - (len(corpora) - 1) / 2)
            look, own = CORPORA[corpus], where(frame, corpus=corpus)
            if measure == "step_ratio":
                rows = own.groupby("arm", sort=False)[measure].first()
                y = [arms.index(arm) + shift for arm in rows.index if arm != TIED]
                ax.plot(rows.drop(TIED), y, linestyle="none", markersize=3, **look.mark)
            else:
                _differences(ax, own, where(table, corpus=corpus, measure=measure), arms, shift, look)
        ax.axvline(1 if measure == "step_ratio" else 0, color=GREY, linewidth=1, linestyle=DOTTED)
        ax.set(xlabel=xlabel)
    style.named_rows(panels, [_named(arm) for arm in arms])
    looks = [*(CORPORA[corpus] for corpus in corpora), replace(NO_EFFECT, label="as the tied arm")]
    note = "Differences from the tied arm within a seed. Bias: of the table that embeds the input; in the two-role language "
    return style.finish(figure, frame, looks, note + "its purity gap. Time: one run each, in turns.")


def _named(arm: str) -> str:
    return _CALLED.get(arm, arm.replace(" x", " ×"))


def _differences(ax: Axes, own: pd.DataFrame, change: pd.DataFrame, arms: list[str], shift: float, look: Look) -> None:
    """Draw a small dot per seed, the mean change, and its interval."""
    by_seed = own.pivot(index="seed", columns="arm", values=str(change["measure"].iloc[0]))
    for row in change.to_dict("records"):
        y = arms.index(row["arm"]) + shift
        values = (by_seed[row["arm"]] - by_seed[TIED]).dropna()
        ax.plot(values, [y] * len(values), ".", color=look.colour, markersize=2, alpha=0.5)
        if row["seeds"] > 2:
            ax.plot([row["low"], row["high"]], [y, y], color=look.colour, linewidth=0.9)
        ax.plot(row["change"], y, markersize=3, **look.mark)
