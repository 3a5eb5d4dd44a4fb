"""The claims at other architectures, widths and vocabularies: one effect a claim, place and seed, judged place by place.

A *place* is an architecture, a shape and a vocabulary at which an untied, a tied and a scaled arm were trained on equal numbers
of tokens (`profiles.Profile.elsewhere`). Its tables are those of the group "architecture" or "grid" in `study_tables.TABLES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tying_utils.base.names import ELSEWHERE_SCALE, PLACE, TIED, UNTIED, scaled
from tying_utils.experiments import claims
from tying_utils.experiments.claims import Side, Tables
from tying_utils.measures import statistics
from tying_utils.measures.statistics import Interval, Range
from tying_utils.study import profiles
from tying_utils.study.study import Results

GROUPS = ("architecture", "grid")
NAMES = {"olmo": "OLMo", "gpt_neox": "GPT-NeoX", "gpt2": "GPT-2", "llama": "Llama", "qwen3": "Qwen3"}
SCALED = scaled(ELSEWHERE_SCALE)


@dataclass(frozen=True)
class Effect:
    """A claim in one number a place and seed: what it measures, its unit, the claimed side of `null`, which is no effect."""

    claim: str
    label: str
    unit: str
    claimed: Side = "above"
    null: float = 0.0

    @property
    def words(self) -> str:
        """What it measures, with its unit."""
        return f"{self.label} ({self.unit})"


EFFECTS = {
    "output_bias": Effect("C1", "output bias of W", "corrected alignment"),
    "purity_gap": Effect("C1 roles", "purity of W, target − source role", "fraction"),
    "early_share": Effect("C2", "output share of the gradient, first tenth", "fraction", null=0.5),
    "early_update_share": Effect("C2b", "output share of Adam's update, first tenth", "fraction", null=0.5),
    "lens_gap": Effect("C3", "lens KL at the input, tied − untied", "bits per token"),
    "bias_change": Effect("C4", f"output bias, {SCALED} − tied", "corrected alignment", "below"),
    "price": Effect("C4 price", f"loss, {SCALED} − tied", "nats per token"),
    "equal_shape": Effect("C5", "loss, tied − untied, equal shape", "nats per token"),
    "equal_parameters": Effect("C5", "loss, tied − untied, equal parameters", "nats per token"),
}


def results(profile: str, **options: bool) -> Results:
    """The tables of `profile`; those committed where it trains no arms at other places. `options` are those of `Study`."""
    profiles.get(profile)
    names = (profile, *profiles.COMMITTED)
    return Results(next(name for name in names if any(of.grid for of in profiles.PROFILES[name].values())), **options)


def effects(tables: Tables | Mapping[str, pd.DataFrame], group: str) -> pd.DataFrame:
    """A row a corpus, place and seed: the columns of the place, `place` (its name), and a column for each of `EFFECTS`.

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
        lambda rows: claims.output_bias(rows).pivot(index="seed", columns="arm", values="output_bias"),
    )
    lens = wide(claims.tuned(tables[f"{group}_lens"], 0), "kl_bits")["kl_bits"]
    shares = tables[f"{group}_share"]
    columns = {
        "parameters": untied["parameters"].astype(int),
        "share": untied["table_parameters"] / untied["parameters"],
        "output_bias": bias[TIED],
        "purity_gap": np.nan,
        "early_share": by_place(shares, lambda rows: claims.share_over(rows, 0, 0.1)),
        "early_update_share": by_place(shares, lambda rows: claims.share_over(rows, 0, 0.1, "output_update_share")),
        "lens_gap": lens[TIED] - lens[UNTIED],
        "bias_change": bias[SCALED] - bias[TIED],
        "price": loss[SCALED] - loss[TIED],
        "equal_shape": loss[TIED] - loss[UNTIED],
        "equal_parameters": _at_equal_parameters(losses) - loss[UNTIED],
    }
    if f"{group}_roles" in tables:
        roles = tables[f"{group}_roles"]
        tied = roles[(roles["arm"] == TIED) & (roles["table"] == "tied")]
        columns["purity_gap"] = by_place(tied, lambda rows: claims.purity_gap(rows).set_index("seed")["purity_gap"])
    in_order = pd.MultiIndex.from_frame(rows[[*place, "seed"]].drop_duplicates())
    frame = pd.DataFrame(columns, index=in_order).reset_index()
    shapes = "d " + frame["d_model"].astype(str) + ", V " + frame["vocab_size"].astype(str)
    frame.insert(len(place), "place", frame["arch"].replace(NAMES) if group == "architecture" else shapes)
    return frame


def _at_equal_parameters(losses: pd.DataFrame) -> pd.Series:
    """The loss of a tied model as large as each untied one, between the widths of its vocabulary and seed."""
    parts = []
    for _, part in losses.groupby(["corpus", "arch", "n_layers", "vocab_size", "seed"]):  # in the order of d_model
        sizes, loss = np.log(part["parameters"].astype(float)), part["validation_loss"]
        values = np.interp(sizes[UNTIED], sizes[TIED], loss[TIED], left=np.nan, right=np.nan)
        parts.append(pd.Series(values, index=part.index))
    return pd.concat(parts)


def judged(effects: pd.DataFrame) -> pd.DataFrame:
    """A row an effect, corpus and place: claim, effect, corpus, place, estimate, low, high, seeds, verdict.

    The estimate is the mean over seeds, with its 95 % t interval; verdicts are as in `claims.verdicts`. What was not measured
    at a place has no row.
    """
    rows = []
    for name, effect in EFFECTS.items():
        for (corpus, place), part in effects.dropna(subset=name).groupby(["corpus", "place"], sort=False):
            interval = statistics.mean_interval(part[name])
            words = statistics.verdict(interval, null=effect.null, claimed=effect.claimed)
            values = {"estimate": interval.mean, "low": interval.low, "high": interval.high, "seeds": interval.n}
            labels = {"claim": effect.claim, "effect": effect.words, "corpus": corpus, "place": place}
            rows.append({**labels, **values, "verdict": words})
    return pd.DataFrame(rows)


def sentence(judged: pd.DataFrame, profile: str) -> str:
    """One line of Markdown for each effect and corpus: at how many places the claim stands, and the range of the estimates."""
    lines = []
    for (claim, effect, corpus), part in judged.groupby(["claim", "effect", "corpus"], sort=False):
        counts = ", ".join(f"{word} at {count}" for word, count in part["verdict"].value_counts().items())
        ordered = part.sort_values("estimate").to_dict("records")
        ends = " to ".join(f"{end['estimate']:.3f} ({end['place']})" for end in (ordered[0], ordered[-1]))
        where = f"of {len(part)} places** at {profile} scale, {corpus}"
        lines.append(f"- **{claim} {counts} {where}: {effect} from {ends}, n = {part['seeds'].max()} seeds each")
    return "\n".join(lines)


def trends(effects: pd.DataFrame) -> pd.DataFrame:
    """How each effect changes over a grid: a row an effect and axis, with the mean of the seeds' slopes and its interval.

    Columns: effect, per (doubling of d_model, or of vocab_size), estimate, low, high (in the effect's unit), seeds, and what
    follows: "rises", "falls", or "open" where the interval covers 0. Slopes are of one least-squares plane a seed. `effects`
    is of one corpus and architecture, with at least two widths and vocabularies.
    """
    axes, rows = ("d_model", "vocab_size"), []
    for name, effect in EFFECTS.items():
        slopes = []
        for _, part in effects.dropna(subset=name).groupby("seed"):
            across = np.log2(part[[*axes]].to_numpy(float))
            slopes.append(np.linalg.lstsq(np.column_stack([np.ones(len(part)), across]), part[name], rcond=None)[0][1:])
        for axis, values in zip(axes, np.transpose(slopes), strict=True) if slopes else ():
            interval = statistics.mean_interval(values)
            word = {"supported": "rises", "refuted": "falls"}.get(statistics.verdict(interval), "open")
            labels = {"effect": effect.words, "per": f"doubling of {axis}"}
            values = {"estimate": interval.mean, "low": interval.low, "high": interval.high, "seeds": interval.n}
            rows.append({**labels, **values, "it": word})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Crossing:
    """Where lines through an effect, one a seed, cross 0 within the range of what was measured.

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
        where = f"not in our range, {self.range.low:.3g} to {self.range.high:.3g}"
        ends = " to ".join(f"{end:+.3f}" for end in self.ends)
        some = f"; the lines of {self.crossed} of {self.seeds} seeds cross" if self.crossed else ""
        return f"{where} ({ends} at its ends{some})"


def crossing(effects: pd.DataFrame, x: str, y: str) -> Crossing:
    """Where the effect `y` crosses 0 along log10 of the column `x`, above 0: one least-squares line a seed, never extrapolated.

    Rows without `y` are left out. Raises ValueError for fewer than two different values of `x`.
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
    """Where untying starts, or ceases, to pay over a grid: each loss gap along the parameters of each vocabulary, and along the
    tables' share over all of them. A row a gap and line, with the `crossing` in words as "crosses 0 at"."""
    rows = []
    for name in ("equal_shape", "equal_parameters"):
        known = effects.dropna(subset=name)
        lines = [(f"parameters, V {vocabulary}", "parameters", part) for vocabulary, part in known.groupby("vocab_size")]
        for words, x, part in (*lines, ("share of the tables, all", "share", known)):
            if part[x].nunique() > 1:
                rows.append({"gap": EFFECTS[name].label, "along": words, "crosses 0 at": str(crossing(part, x, name))})
    return pd.DataFrame(rows)
