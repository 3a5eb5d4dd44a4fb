"""Notebook 10: the claims at other architectures, widths and vocabularies, judged place by place.

A *place* is an architecture, a shape and a vocabulary at which an untied, a tied and a scaled arm were trained on equal numbers
of tokens (`profiles.Profile.elsewhere`). Its tables are those of the group "architecture" or "grid" in `study_tables.TABLES`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from tying_utils.base.names import ELSEWHERE_SCALE, PLACE, TIED, UNTIED, scaled
from tying_utils.experiments import style
from tying_utils.experiments.alignment import output_bias
from tying_utils.experiments.gradients import share_over
from tying_utils.experiments.grid import MARKS, claim
from tying_utils.experiments.ground_truth import purity_gap
from tying_utils.experiments.judge import Statistic, at_equal_parameters
from tying_utils.experiments.looks import CORPORA, DOTTED, GREY, NO_EFFECT, Look, in_order
from tying_utils.experiments.style import TWO_COLUMNS
from tying_utils.experiments.tables import Tables, tuned, where
from tying_utils.measures import statistics
from tying_utils.measures.statistics import Interval, Range
from tying_utils.study import profiles
from tying_utils.study.study import Results

FIGURES = style.Gallery()
GROUPS = ("architecture", "grid")
NAMES = {"olmo": "OLMo", "gpt_neox": "GPT-NeoX", "gpt2": "GPT-2", "llama": "Llama", "qwen3": "Qwen3"}
SCALED = scaled(ELSEWHERE_SCALE)
EFFECTS = {
    effect.id: effect
    for effect in (
        Statistic("output_bias", "C1", "output bias of W", "corrected alignment"),
        Statistic("purity_gap", "C1 roles", "purity of W, target − source role", "fraction"),
        Statistic("early_share", "C2", "output share of the gradient, first tenth", "fraction", null=0.5),
        Statistic("early_update_share", "C2b", "output share of Adam's update, first tenth", "fraction", null=0.5),
        Statistic("lens_gap", "C3", "lens KL at the input, tied − untied", "bits per token"),
        Statistic("bias_change", "C4", f"output bias, {SCALED} − tied", "corrected alignment", claimed="below"),
        Statistic("price", "C4 price", f"loss, {SCALED} − tied", "nats per token"),
        Statistic("equal_shape", "C5", "loss, tied − untied, equal shape", "nats per token"),
        Statistic("equal_parameters", "C5", "loss, tied − untied, equal parameters", "nats per token"),
    )
}
# What the figures show of them, with their titles and axes: the others are in RESULTS.md.
_SHOWN = {
    "output_bias": ("Is W nearer to U?", "output bias\n(corrected alignment)"),
    "early_share": ("Output path larger?", "output share, first tenth\n(fraction)"),
    "lens_gap": ("Input further off?", "lens KL, tied − untied\n(bits per token)"),
    "equal_shape": ("Does tying cost loss?", "loss, tied − untied\n(nats per token)"),
}


def results(profile: str, **options: bool) -> Results:
    """Return the tables of `profile`, or the committed ones where it has no other places; `options` are those of `Study`."""
    profiles.get(profile)
    names = (profile, *profiles.COMMITTED)
    return Results(next(name for name in names if any(of.grid for of in profiles.PROFILES[name].values())), **options)


def effects(tables: Tables, group: str) -> pd.DataFrame:
    """Measure each of `EFFECTS` at each place: a row per corpus, place and seed, with the columns of the place, `place` (its
    name), and a column for each effect.

    Beside them `parameters` (of the untied model, a count) and `share` (the fraction of them in its two tables). The loss gap
    is measured at equal shape, where the untied model has a table more; at equal parameters the tied model is as wide as makes
    it equally large, its loss read off between the widths that were trained (linear in the logarithm of the parameters), and
    nan where that would lie outside them. An effect that a place does not have is nan.

    `tables` needs those of `group` ("architecture" or "grid"). Raises ValueError for another group, KeyError for a missing
    table.
    """
    if group not in GROUPS:
        raise ValueError(f"group: {group!r} is unknown; choose one of {', '.join(GROUPS)}")
    place = ["corpus", *PLACE]

    def wide(table: pd.DataFrame, *values: str) -> pd.DataFrame:
        return table.pivot(index=[*place, "seed"], columns="arm", values=[*values])

    def by_place(table: pd.DataFrame, measured: Callable[[pd.DataFrame], pd.DataFrame | pd.Series]) -> pd.DataFrame | pd.Series:
        return pd.concat({key: measured(rows) for key, rows in table.groupby(place)}, names=place)

    rows = tables[f"{group}_losses"]
    losses = wide(rows, "validation_loss", "parameters", "table_parameters")
    loss, untied = losses["validation_loss"], losses.xs(UNTIED, axis=1, level="arm")
    bias = by_place(
        tables[f"{group}_alignment"],
        lambda rows: output_bias(rows).pivot(index="seed", columns="arm", values="output_bias"),
    )
    lens = wide(tuned(tables[f"{group}_lens"], 0), "kl_bits")["kl_bits"]
    shares = tables[f"{group}_share"]
    columns = {
        "parameters": untied["parameters"].astype(int),
        "share": untied["table_parameters"] / untied["parameters"],
        "output_bias": bias[TIED],
        "purity_gap": np.nan,
        "early_share": by_place(shares, lambda rows: share_over(rows, 0, 0.1)),
        "early_update_share": by_place(shares, lambda rows: share_over(rows, 0, 0.1, "output_update_share")),
        "lens_gap": lens[TIED] - lens[UNTIED],
        "bias_change": bias[SCALED] - bias[TIED],
        "price": loss[SCALED] - loss[TIED],
        "equal_shape": loss[TIED] - loss[UNTIED],
        "equal_parameters": (larger := _at_equal_parameters(losses)) - loss[UNTIED],
        "larger_tied": larger - loss[TIED],
    }
    if f"{group}_roles" in tables:
        roles = tables[f"{group}_roles"]
        tied = where(roles, arm=TIED, table="tied")
        columns["purity_gap"] = by_place(tied, lambda rows: purity_gap(rows).set_index("seed")["purity_gap"])
    in_order = pd.MultiIndex.from_frame(rows[[*place, "seed"]].drop_duplicates())
    frame = pd.DataFrame(columns, index=in_order).reset_index()
    shapes = "d " + frame["d_model"].astype(str) + ", V " + frame["vocab_size"].astype(str)
    frame.insert(len(place), "place", frame["arch"].replace(NAMES) if group == "architecture" else shapes)
    return frame


def _at_equal_parameters(losses: pd.DataFrame) -> pd.Series:
    """Return the loss of a tied model as large as each untied one, between the widths of its vocabulary and seed."""
    parts = []
    for _, part in losses.groupby(["corpus", "arch", "n_layers", "vocab_size", "seed"]):  # in the order of d_model
        sizes, loss = np.log(part["parameters"].astype(float)), part["validation_loss"]
        values = np.interp(sizes[UNTIED], sizes[TIED], loss[TIED], left=np.nan, right=np.nan)
        parts.append(pd.Series(values, index=part.index))
    return pd.concat(parts)


def judged(effects: pd.DataFrame) -> pd.DataFrame:
    """Judge each effect at each place: a row per effect, corpus and place.

    Columns: claim, effect (with its unit), corpus, place, estimate, low, high, seeds, verdict. The estimate is the mean over
    seeds, with its 95 % t interval; verdicts are as in `claims.verdicts`. What was not measured at a place has no row.
    """
    rows = [
        {"effect": effect.words, "corpus": corpus, "place": place, **_judging(effect, part).row(part[name])}
        for name, effect in EFFECTS.items()
        for (corpus, place), part in effects.dropna(subset=name).groupby(["corpus", "place"], sort=False)
    ]
    columns = ["claim", "effect", "corpus", "place", "estimate", "low", "high", "seeds", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def _judging(effect: Statistic, part: pd.DataFrame) -> Statistic:
    return at_equal_parameters(effect, part["larger_tied"]) if effect.id == "equal_parameters" else effect


def counted(judged: pd.DataFrame) -> pd.DataFrame:
    """Return at how many places each claim has which verdict: a row per claim (in words), effect and corpus.

    Columns: a count per verdict, places (how many there are), lowest and highest (the estimates, each with its place).
    """
    rows = []
    for (code, effect, corpus), part in judged.groupby(["claim", "effect", "corpus"], sort=False):
        counts = {word: int((part["verdict"] == word).sum()) for word in MARKS if word and (judged["verdict"] == word).any()}
        ends = [f"{end['estimate']:.3f} ({end['place']})" for end in part.sort_values("estimate").to_dict("records")]
        labels = {"claim": claim(str(code)), "effect": effect, "corpus": corpus}
        rows.append({**labels, **counts, "places": len(part), "lowest": ends[0], "highest": ends[-1]})
    return pd.DataFrame(rows)


def trends(effects: pd.DataFrame) -> pd.DataFrame:
    """Judge how each effect changes over a grid: a row per effect and axis, with the seeds' mean slope and its interval.

    Columns: effect, per (doubling of d_model, or of vocab_size), estimate, low, high (in the effect's unit), seeds, and what
    follows: "rises", "falls", or "open" where the interval covers 0. Slopes are of one least-squares plane per seed. `effects`
    is of one corpus and architecture, with at least two widths and vocabularies.
    """
    axes, rows = ("d_model", "vocab_size"), []
    for name, effect in EFFECTS.items():
        slopes = []
        for _, part in effects.dropna(subset=name).groupby("seed"):
            across = np.log2(part[[*axes]].to_numpy(float))
            slopes.append(np.linalg.lstsq(np.column_stack([np.ones(len(part)), across]), part[name], rcond=None)[0][1:])
        for axis, values in zip(axes, np.transpose(slopes), strict=True) if slopes else ():
            # Of the slope, which is 0 where nothing changes.
            row = replace(effect, null=0.0, claimed="above", smallest=0.0).row(values)
            word = {"supported": "rises", "refuted": "falls", "open": "open", "": ""}[row["verdict"]]
            rows.append({"effect": effect.words, "per": f"doubling of {axis}", **row, "it": word})
    return pd.DataFrame(rows, columns=["effect", "per", "estimate", "low", "high", "seeds", "it"])


@dataclass(frozen=True)
class Crossing:
    """Where lines through an effect, one per seed, cross 0 within the range of what was measured.

    `at` is None unless the lines of all `seeds` cross there; `crossed` says how many do. Its interval (95 % t, over the seeds,
    of logarithms) ends where the range does. `ends` are the means of the lines at both ends of the range.
    """

    at: Interval | None
    range: Range
    ends: tuple[float, float]
    crossed: int
    seeds: int

    def __str__(self) -> str:
        if self.at:
            interval = f"95 % interval {self.at.low:.3g} to {self.at.high:.3g}" if self.seeds > 1 else "no interval"
            return f"{self.at.mean:.3g} ({interval}, n = {self.seeds} seeds)"
        ends = " to ".join(f"{end:+.3f}" for end in self.ends)
        some = f"; the lines of {self.crossed} of {self.seeds} seeds cross" if self.crossed else ""
        return f"not in our range, {self.range.low:.3g} to {self.range.high:.3g} ({ends} at its ends{some})"


def crossing(effects: pd.DataFrame, x: str, y: str) -> Crossing:
    """Find where the effect `y` crosses 0 along log10 of the column `x`, which is above 0.

    It is read off one least-squares line per seed, never extrapolated. Rows without `y` are left out. Raises ValueError for
    fewer than two different values of `x`.
    """
    rows = effects.dropna(subset=y)
    if rows[x].nunique() < 2:
        raise ValueError(f"{x}: at least 2 different values with {y} are needed, got {rows[x].nunique()}")
    edges = np.log10([rows[x].min(), rows[x].max()])
    lines = []
    for _, part in rows.groupby("seed"):
        across = np.log10(part[x].to_numpy(float))
        slope = statistics.slope(across, part[y])
        lines.append(part[y].mean() + slope * (edges - across.mean()))
    at_edges = np.array(lines)  # (seeds, 2)
    low, high = at_edges.T
    crossed = low * high < 0
    at = None
    if crossed.all():
        of = statistics.mean_interval(edges[0] + (edges[1] - edges[0]) * low / (low - high))
        # One power for all three: where seeds agree to the last bit, Python's and numpy's may round to either side.
        mean, low, high = (10.0 ** np.array([of.mean, *np.clip([of.low, of.high], *edges)])).tolist()  # nan stays nan
        at = Interval(mean, low, high, of.n)
    ends = at_edges.mean(axis=0)
    return Crossing(at, Range(*(10.0**edges).tolist()), (float(ends[0]), float(ends[1])), int(crossed.sum()), len(lines))


def crossings(effects: pd.DataFrame) -> pd.DataFrame:
    """Find where untying starts, or ceases, to pay over a grid.

    Each loss gap is followed along the parameters of each vocabulary, and along the tables' share over all of them: a row per
    gap and line, with the `crossing` in words as "crosses 0 at".
    """
    rows = []
    for name in ("equal_shape", "equal_parameters"):
        known = effects.dropna(subset=name)
        lines = [(f"parameters, V {vocabulary}", "parameters", part) for vocabulary, part in known.groupby("vocab_size")]
        for words, x, part in (*lines, ("share of the tables, all", "share", known)):
            if part[x].nunique() > 1:
                rows.append({"gap": EFFECTS[name].label, "along": words, "crosses 0 at": str(crossing(part, x, name))})
    return pd.DataFrame(rows)


def _needs(group: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{group}_{name}" for name in ("alignment", "share", "lens", "losses", *names))


def _vocabularies(frame: pd.DataFrame) -> dict[int, Look]:
    sizes = sorted(frame["vocab_size"].unique())
    return dict(zip(sizes, in_order([f"vocabulary of {size}" for size in sizes]), strict=True))


@FIGURES.reads("10_architectures", *_needs("architecture", "roles"), corpus=None)
def architectures(tables: Tables) -> Figure:
    """Draw bias, gradient, lens and loss for five architectures on two corpora: each effect with its seeds and interval."""
    frame = effects(tables, "architecture")
    named, corpora = list(dict.fromkeys(frame["place"])), [corpus for corpus in CORPORA if corpus in set(frame["corpus"])]
    figure, panels = style.panels(TWO_COLUMNS, 0.36 * len(named) + 1.4, *(title for title, _ in _SHOWN.values()))
    for ax, (name, (_, label)) in zip(panels, _SHOWN.items(), strict=True):
        for (place, corpus), rows in frame.dropna(subset=name).groupby(["place", "corpus"], sort=False):
            beside = 0.4 * (corpora.index(str(corpus)) - (len(corpora) - 1) / 2)
            style.row(ax, named.index(str(place)) + beside, rows[name], CORPORA[str(corpus)])
        ax.axvline(EFFECTS[name].null, color=GREY, linewidth=1, linestyle=DOTTED)
        ax.set(xlabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.margins(x=0.1)
    style.named_rows(panels, named)
    note = "No effect of a share: one half. Trained on equal numbers of tokens."
    return style.finish(figure, frame, [*(CORPORA[corpus] for corpus in corpora), NO_EFFECT], note)


@FIGURES.reads("10_sizes", *_needs("grid"))
def sizes(tables: Tables) -> Figure:
    """Draw bias, gradient, lens and loss against the width of the model, a line per vocabulary."""
    frame = effects(tables, "grid")
    looks, widths = _vocabularies(frame), sorted(frame["d_model"].unique())
    figure, panels = style.panels(TWO_COLUMNS, 4.6, *(title for title, _ in _SHOWN.values()), rows=2)
    for ax, (name, (_, label)) in zip(panels, _SHOWN.items(), strict=True):
        for at, (vocabulary, look) in enumerate(looks.items()):
            rows = where(frame, vocab_size=vocabulary)
            beside = rows["d_model"] * 1.03 ** (at - (len(looks) - 1) / 2)  # so that the bars are apart
            style.curve(ax, rows.assign(width=beside), "width", name, look, bars=True)
        style.level(ax, EFFECTS[name].null)
        ax.set_xscale("log")
        ax.set_xticks(widths, [str(width) for width in widths])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set(xlabel="width d (numbers per token)", ylabel=label)
    return style.finish(figure, frame, [*looks.values(), NO_EFFECT], "No effect of a share: one half.")


@FIGURES.reads("10_loss_gap", *_needs("grid"))
def loss_gap(tables: Tables) -> Figure:
    """Draw loss, tied minus untied, by the untied tables' share of all parameters, at equal shape and at equal parameters."""
    frame = effects(tables, "grid")
    looks = _vocabularies(frame)
    figure, panels = style.panels(TWO_COLUMNS, 2.8, "Does tying cost loss at equal shape?", "… and at equal parameters?")
    for ax, name in zip(panels, ("equal_shape", "equal_parameters"), strict=True):
        for vocabulary, look in looks.items():
            rows = where(frame, vocab_size=vocabulary).dropna(subset=name)
            style.curve(ax, rows, "share", name, look, bars=True)
        style.level(ax, 0)
        ax.set(xlabel="share of parameters in the untied tables (fraction)", xlim=(0, 1))
        ax.set_ylabel("loss, tied − untied (nats per token)")
    note = "From wide (left) to narrow models (right). Above 0 the tied model is worse."
    return style.finish(figure, frame, [*looks.values(), NO_EFFECT], note)
