"""Tidy tables to figures at their printed size; nothing here trains or measures.

Every figure shows each seed as a thin line or a small dot, their mean, and the 95 % t interval of that mean. A table or an
arm has one colour, marker and line in all figures (`LOOKS`), told apart in grey as well.
"""

import base64
import io
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import offset_copy

from tying_utils import claims, files, paths, profiles, published
from tying_utils.claims import Tables
from tying_utils.measures import statistics
from tying_utils.profiles import PYTHON, SHARED_START, TIED, TWO_ROLE, UNTIED, WIKITEXT

STYLE = Path(__file__).with_name("paper.mplstyle")
ONE_COLUMN, TWO_COLUMNS = 3.35, 6.9  # inches
WINDOW = 20  # steps of the rolling mean


@dataclass(frozen=True)
class Look:
    """How one table, arm or pair is drawn, and what the legend calls it."""

    label: str
    colour: str
    marker: str = ""
    line: Any = "-"
    hollow: bool = False

    def handle(self) -> Line2D:
        face = "white" if self.hollow else self.colour
        shape: dict[str, Any] = {"marker": self.marker, "markersize": 3.5, "markerfacecolor": face, "linestyle": self.line}
        return Line2D([], [], color=self.colour, label=self.label, **shape)


BLUE, ORANGE, GREEN, BLACK, GREY = "#0173b2", "#de8f05", "#029e73", "#000000", "#777777"
DASHED, DOTTED = (0, (4, 1.5)), (0, (1, 1))
LOOKS = {
    "input": Look("untied input E", BLUE, "o"),
    "output": Look("untied output U", ORANGE, "s"),
    TIED: Look("tied", BLACK, "D"),
    UNTIED: Look("untied", GREEN, "^", DASHED),
}
_TABLES = {"input": LOOKS["input"], "output": LOOKS["output"], "tied": replace(LOOKS[TIED], label="tied W")}
_W_WITH = {name: replace(LOOKS[name], label=f"W with {LOOKS[name].label}") for name in ("input", "output")}
_PAIRS = {
    ("input", "tied"): replace(LOOKS["input"], label="E–W"),
    ("output", "tied"): replace(LOOKS["output"], label="U–W"),
    ("input", "output"): Look("E–U", GREY, "^"),
}
_CHANCE = Look("chance (rows permuted)", GREY, line=DOTTED)
_ROLE_LOOKS = {"source": Look("source role", BLUE, "o"), "target": Look("target role", ORANGE, "s")}
_CORPORA = {
    PYTHON: Look("Python source", BLUE, "o", "none"),
    WIKITEXT: Look("WikiText-2", GREEN, "^", "none"),
    TWO_ROLE: Look("two-role language", ORANGE, "s", "none"),
}


class Picture(Figure):
    """A figure outside pyplot that a notebook shows once, as the value of a cell."""

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
        with io.BytesIO() as buffer:
            self.savefig(buffer, format="png", dpi=200)
            data = base64.b64encode(buffer.getvalue()).decode()
        width, height = self.get_size_inches() * 110
        return {"image/png": data}, {"image/png": {"width": round(width), "height": round(height)}}


Draw = Callable[[Tables], Figure]


@dataclass(frozen=True)
class Drawing:
    """What draws a figure, the tables that it reads, and the corpus that it is at home in (None: it is of all corpora)."""

    function: Draw
    needs: tuple[str, ...]
    corpus: str | None


FIGURES: dict[str, Drawing] = {}


def _reads(name: str, *needs: str, corpus: str | None = PYTHON) -> Callable[[Draw], Draw]:
    def register(function: Draw) -> Draw:
        FIGURES[name] = Drawing(function, needs, corpus)
        return function

    return register


def _style() -> AbstractContextManager[None]:
    return style.context(["default", str(STYLE)])


# What figures share


def _panels(width: float, height: float, *titles: str, rows: int = 1) -> tuple[Picture, list[Axes]]:
    """A figure with a panel for each title, lettered where there are several."""
    figure = Picture(figsize=(width, height), layout="constrained")
    panels = list(figure.subplots(rows, len(titles) // rows, squeeze=False).flat)
    for letter, ax, title in zip("abcdefgh", panels, titles, strict=False):
        ax.set_title(title)
        if len(titles) > 1:
            ax.set_title(letter, loc="left", fontweight="bold")
    return figure, panels


def _finish(figure: Figure, frame: pd.DataFrame, looks: Iterable[Look], note: str = "", columns: int = 0) -> Figure:
    """The legend above the panels and the small print below them, which says how many seeds there are."""
    handles = [look.handle() for look in looks]
    figure.legend(handles=handles, loc="outside upper center", ncols=columns or len(handles))
    n = frame["seed"].nunique()
    seeds = f"n = {n} seeds (thin lines or dots), mean" if n > 1 else "n = 1 seed, no interval"
    seeds += {1: "", 2: "; 95 % t interval at points only"}.get(n, " with 95 % t interval")
    small = textwrap.fill(f"{seeds}. {note}", round(22 * figure.get_figwidth()))
    figure.supxlabel(small, x=0.01, ha="left", color="#555555", linespacing=1.3)
    return figure


def _where(frame: pd.DataFrame, **values: Any) -> pd.DataFrame:
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame


def _interval(values: Any) -> tuple[float, float]:
    interval = statistics.mean_interval(values)
    return interval.low, interval.high


@contextmanager
def _spread(ax: Axes, seeds: int) -> Iterator[None]:
    """What is drawn within sets the limits of `ax` only from three seeds up: an interval from two is too wide to."""
    limits = ax.dataLim.frozen()
    yield
    if seeds < 3:
        ax.dataLim.set(limits)


def _curve(
    ax: Axes, frame: pd.DataFrame, x: str, y: str, look: Look, *, bars: bool = False, every: tuple[int, int] | None = None
) -> None:
    """Each seed thin, their mean, and its interval: a band (from three seeds up), or bars where the points are few."""
    seeds, points = frame["seed"].nunique(), frame[x].nunique()
    common: dict[str, Any] = {"data": frame, "x": x, "y": y, "ax": ax, "color": look.colour, "legend": False}
    sns.lineplot(**common, units="seed", estimator=None, linewidth=0.5, alpha=0.45)
    spread: dict[str, Any] = {"errorbar": _interval if bars or seeds > 2 else None, "err_style": "bars" if bars else "band"}
    spread["err_kws"] = {"elinewidth": 0.8, "capsize": 1.5} if bars else {"alpha": 0.15, "linewidth": 0}
    every = every or ((0, 1) if points <= 25 else (points // 16, points // 8))  # first marker, and how many points on
    shape: dict[str, Any] = {"linestyle": look.line, "marker": look.marker, "markevery": every, "markeredgewidth": 0.4}
    if look.hollow:
        shape |= {"markerfacecolor": "white", "markeredgecolor": look.colour, "markeredgewidth": 0.8}
    with _spread(ax, seeds):
        sns.lineplot(**common, **spread, **shape)


def _point(ax: Axes, x: float, values: pd.Series, look: Look) -> None:
    """A small dot a seed, and beside them their mean with its interval."""
    interval = statistics.mean_interval(values)
    beside = offset_copy(ax.transData, ax.get_figure(root=True), x=-5.5, units="points")
    ax.plot(np.full(len(values), x), values, ".", color=look.colour, markersize=3, alpha=0.6, transform=beside)
    ax.plot(x, interval.mean, color=look.colour, marker=look.marker, markersize=4.5)
    if len(values) > 1:
        with _spread(ax, len(values)):
            error = [[interval.mean - interval.low], [interval.high - interval.mean]]
            ax.errorbar(x, interval.mean, error, color=look.colour, elinewidth=1, capsize=2)


def _chance(ax: Axes, x: float, rows: pd.DataFrame, half: float) -> None:
    """A short line at the mean chance level, with its 95 % band where the table has one."""
    if rows.get("chance_low", pd.Series(np.nan)).notna().all():
        low, high = rows["chance_low"].mean(), rows["chance_high"].mean()
        ax.fill_between([x - half, x + half], low, high, color=GREY, alpha=0.25, linewidth=0)
    ax.hlines(rows["chance"].mean(), x - half, x + half, color=GREY, linewidth=1, linestyle=DOTTED)


def _level(ax: Axes, y: float) -> None:
    ax.axhline(y, color=GREY, linewidth=1, linestyle=DOTTED)


def _categories(ax: Axes, labels: Sequence[str]) -> None:
    ax.set_xticks(range(len(labels)), labels)
    ax.set_xlim(-0.6, len(labels) - 0.4)
    ax.grid(visible=False, axis="x")


def _layers(ax: Axes, first: str, last: str, count: int) -> None:
    """Ticks "first, 1, 2, ..., last" at 0 to `count`, thinned where there are many layers."""
    stride = 1 if count <= 6 else 2 if count <= 12 else 4
    inner = range(stride, count - stride + 1, stride)
    ax.set_xticks([0, *inner, count], [first, *map(str, inner), last])
    ax.set_xlabel("layer")


def _lens_curves(ax: Axes, lens: pd.DataFrame, arms: Iterable[str], *, kind: str = "tuned", indexing: str = "matched") -> None:
    curves, looks = _where(lens, lens=kind, indexing=indexing), _scale_looks(lens)
    for arm in arms:
        _curve(ax, _where(curves, arm=arm), "layer", "kl_bits", looks[arm], bars=True)
    _layers(ax, "input", "output", lens["layer"].max())
    ax.set(ylabel="lens KL (bits per token)", ylim=(0, None))


def _scales(ax: Axes, scales: Iterable[float], ylabel: str, path: str = "input") -> None:
    places = sorted(set(scales))
    ax.set_xticks(places, [f"{scale:g}" for scale in places])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.axvline(1, color=GREY, linewidth=0.6, linestyle=DOTTED)
    ax.set(xlabel=f"{path} scale (1: ordinary tied)", ylabel=ylabel)


def _scale_looks(table: pd.DataFrame) -> dict[str, Look]:
    """The looks of the scaled arms in `table`: darker for a smaller scale."""
    scales = sorted(table.loc[table["arm"] != UNTIED, "input_scale"].unique())
    looks = dict(LOOKS)
    for place, scale in enumerate(scales):
        shade = to_hex(colormaps["plasma"](0.05 + 0.8 * place / max(1, len(scales) - 1)))
        looks.setdefault(profiles.scaled(scale), Look(f"input ×{scale:g}", shade, "vD<>PX*hp"[place % 9]))
    return looks


def _alignment_by_scale(ax: Axes, alignment: pd.DataFrame) -> None:
    ax.set_xscale("log")
    for source, look in _W_WITH.items():
        rows = _where(alignment, kind="orthogonal", target="tied", source=source)
        _curve(ax, rows, "input_scale", "corrected", look, bars=True)
    _level(ax, 0)
    _scales(ax, rows["input_scale"], "alignment, chance-corrected")


def _reference(ax: Axes, values: pd.Series, look: Look) -> None:
    """A condition that has no place on the x axis, as level lines: each seed, their mean, its interval."""
    interval = statistics.mean_interval(values)
    for value in values:
        ax.axhline(value, color=look.colour, linewidth=0.5, alpha=0.45)
    ax.axhline(interval.mean, color=look.colour, linestyle=look.line)
    if len(values) > 2:
        ax.axhspan(interval.low, interval.high, color=look.colour, alpha=0.12, linewidth=0)


def _by_scale(ax: Axes, table: pd.DataFrame, column: str, ylabel: str) -> None:
    """The tied arms against their scale; the untied one, which has none, as level lines."""
    ax.set_xscale("log")
    _reference(ax, _where(table, arm=UNTIED)[column], LOOKS[UNTIED])
    tied = table[table["arm"] != UNTIED]
    _curve(ax, tied, "input_scale", column, LOOKS[TIED], bars=True)
    _scales(ax, tied["input_scale"], ylabel)


def _share(ax: Axes, tied: pd.DataFrame, column: str, look: Look) -> None:
    _curve(ax, _rolled(tied, column), "step", column, look)
    _level(ax, 0.5)
    ax.set(xlabel="step (optimizer)", ylabel="output share of the norm", ylim=(0, 1))


def _rolled(frame: pd.DataFrame, *columns: str, points: int = 300) -> pd.DataFrame:
    """Rolling means by seed, thinned to about `points` steps, the last among them."""
    parts = []
    for _, rows in frame.sort_values("step").groupby("seed"):
        means = {column: statistics.rolling_mean(rows[column], WINDOW) for column in columns}
        parts.append(rows[["seed", "step"]].assign(**means).iloc[:: -max(1, len(rows) // points)])
    return pd.concat(parts, ignore_index=True)


# The figures


@_reads("00_overview", "alignment", "gradients", "lens", "scaling_alignment")
def overview(tables: Tables) -> Figure:
    """The four claims in short: alignment, gradients, lens, input scale."""
    titles = "Alignment of W with E and U", "Output path's share of the gradient", "Tuned lens by layer", "Output bias of W"
    figure, (a, b, c, d) = _panels(TWO_COLUMNS, 4.7, *titles, rows=2)
    kinds = ("orthogonal", "linear")
    for place, kind in enumerate(kinds):
        for shift, source in ((-0.18, "input"), (0.18, "output")):
            rows = _where(tables["alignment"], arm=TIED, kind=kind, source=source)
            _point(a, place + shift, rows["corrected"], LOOKS[source])
    _categories(a, [f"{kind} map" for kind in kinds])
    a.set(xlabel="how W is compared", ylabel="alignment, chance-corrected")
    _share(b, _where(tables["gradients"], arm=TIED), "output_share", LOOKS[TIED])
    _lens_curves(c, tables["lens"], (UNTIED, TIED))
    d.set_xscale("log")
    bias = claims.output_bias(_where(claims.with_scaling(tables, "alignment"), kind="orthogonal"))
    _curve(d, bias, "input_scale", "output_bias", LOOKS[TIED], bars=True)
    _scales(d, bias["input_scale"], "alignment with U − with E")
    _level(a, 0)
    _level(d, 0)
    note = f"b: rolling mean of {WINDOW} steps. d: orthogonal map, chance-corrected. Dotted: chance (a), equal norms (b), "
    looks = [LOOKS[name] for name in ("input", "output", TIED, UNTIED)]
    return _finish(figure, tables["alignment"], looks, note + "no bias and the ordinary tied arm (d).")


@_reads("01_alignment", "alignment", "neighbors")
def alignment(tables: Tables) -> Figure:
    """Tables 1 and 5: how near the tables lie, each pair beside its chance and the published value."""
    rows = pd.concat([tables["alignment"], tables["neighbors"].assign(kind="KNN@10")], ignore_index=True)
    table_5 = published.knn().rename(columns={"a": "source", "b": "target"}).assign(kind="KNN@10")
    paper = _where(pd.concat([published.alignment(), table_5]), models="OLMo").replace(regex="^untied ", value="")
    known = {(row["kind"], frozenset((row["source"], row["target"]))): row["value"] for row in paper.to_dict("records")}
    kinds = {"identity": "Identity", "orthogonal": "Orthogonal map", "linear": "Linear map", "KNN@10": "Neighbours"}
    figure, panels = _panels(TWO_COLUMNS, 2.6, *kinds.values())
    hollow: dict[str, Any] = {"marker": "d", "markerfacecolor": "white", "linestyle": "none"}
    for ax, kind in zip(panels, kinds, strict=True):
        for place, ((source, target), look) in enumerate(_PAIRS.items()):
            own = _where(rows, kind=kind, source=source, target=target)
            _chance(ax, place, own, 0.35)
            _point(ax, place, own["value"], look)
            ax.plot(place + 0.25, known[kind, frozenset((source, target))], color=look.colour, **hollow)
        _categories(ax, [look.label for look in _PAIRS.values()])
        ax.set(xlabel="pair of tables", ylabel="mean row cosine")
    panels[-1].set_ylabel("KNN@10 overlap (fraction)")
    low = min(ax.get_ylim()[0] for ax in panels)
    for ax in panels:
        ax.set_ylim(min(low, -0.05), 1)
    looks = [Look("measured here", BLACK, "o", "none"), Look("published (OLMo-1B)", BLACK, "d", "none", hollow=True), _CHANCE]
    return _finish(figure, rows, looks, "E: untied input table, U: untied output table, W: tied table.")


@_reads("01_cosines", "cosines")
def cosines(tables: Tables) -> Figure:
    """Figure 1: per-token cosines of the tied table with the linear images of E and of U."""
    figure, (ax,) = _panels(ONE_COLUMN, 2.5, "")
    looks = {name: replace(LOOKS[name], label=f"{LOOKS[name].label} → W") for name in ("input", "output")}
    for source, look in looks.items():
        _curve(ax, _where(tables["cosines"], arm=TIED, source=source), "cosine", "density", look)
    ax.set(xlabel="cosine similarity after a linear map, per token", ylabel="density (per unit of cosine)")
    ax.set(xlim=(-0.25, 1), ylim=(0, None))
    return _finish(figure, tables["cosines"], looks.values())


@_reads("01_control", "alignment", "control_alignment")
def control(tables: Tables) -> Figure:
    """What a start that both arms share adds to the alignment of W with E."""
    figure, (ax,) = _panels(ONE_COLUMN, 2.6, "")
    rows = _where(pd.concat([tables["alignment"], tables["control_alignment"]]), kind="orthogonal")
    for place, arm in enumerate((TIED, SHARED_START)):
        for shift, source in ((-0.2, "input"), (0.2, "output")):
            own = _where(rows, arm=arm, source=source)
            _chance(ax, place + shift, own, 0.17)
            _point(ax, place + shift, own["value"], LOOKS[source])
    _categories(ax, ["independent starts", "shared start"])
    ax.set(xlabel="how the tied and untied arm start", ylabel="mean row cosine (orthogonal)", ylim=(0, 1))
    return _finish(figure, rows, [*(replace(look, line="none") for look in _W_WITH.values()), _CHANCE], columns=2)


@_reads("02_gradients", "gradients")
def gradients(tables: Tables) -> Figure:
    """Figure 4: both path gradients of the tied table, like with like and as published, and the Adam update."""
    tied = _where(tables["gradients"], arm=TIED)
    figure, (left, middle, right) = _panels(TWO_COLUMNS, 2.6, "Path gradients", "Gradient", "Adam update")
    looks = {
        "input_norm": replace(LOOKS["input"], label="input path"),
        "output_norm": replace(LOOKS["output"], label="output path"),
        "published_input_norm": Look("input path as published", BLUE, "o", DASHED, hollow=True),
        "output_share": replace(LOOKS[TIED], label="output share"),
        "published_output_share": Look("share as published", GREY, "D", DASHED, hollow=True),
    }
    norms = [column for column in looks if column.endswith("norm")]
    left.set_yscale("log")
    for column in norms:
        _curve(left, _rolled(tied, column), "step", column, looks[column])
    left.set(xlabel="step (optimizer)", ylabel="gradient norm (Frobenius)")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter(NullFormatter())
    for column in ("published_output_share", "output_share"):
        _share(middle, tied, column, looks[column])
    _share(right, tied, "output_update_share", looks["output_share"])
    note = f"Tied arm, rolling mean of {WINDOW} steps. a: geometric mean of the seeds. b, c: dotted, equal norms. "
    note += "As published: the input norm is of the activation gradient, the output norm of the weight gradient."
    return _finish(figure, tied, looks.values(), note)


@_reads("03_lens", "lens")
def lens(tables: Tables) -> Figure:
    """Figure 2: what each layer lacks of the model's own prediction, with matched lenses and one layer off."""
    table, arms = tables["lens"], (UNTIED, TIED)
    figure, (left, middle, right) = _panels(TWO_COLUMNS, 2.6, "Tuned lens", "One layer off, as published", "Logit lens")
    _lens_curves(left, table, arms)
    _lens_curves(middle, table, arms, indexing="published")
    _lens_curves(right, table, arms, kind="logit")
    note = "b: translator k − 1 on layer k, and one on the last, whose KL must be 0. The vertical scales differ."
    return _finish(figure, table, [LOOKS[arm] for arm in arms], note)


@_reads("03_lens_budget", "lens_budget", "lens")
def lens_budget(tables: Tables) -> Figure:
    """The KL at the input by how long the lens was trained from the identity; the converged lens as level lines."""
    table = _where(tables["lens_budget"], layer=0)
    figure, (ax,) = _panels(ONE_COLUMN, 2.8, "")
    ax.set_xscale("log")
    for arm in (UNTIED, TIED):
        _curve(ax, _where(table, arm=arm), "steps", "kl_bits", LOOKS[arm], bars=True)
        converged = _where(tables["lens"], arm=arm, lens="tuned", indexing="matched", layer=0)
        _reference(ax, converged["kl_bits"], replace(LOOKS[arm], line=DOTTED))
    steps = sorted(table["steps"].unique())
    ax.set_xticks(steps, [str(step) for step in steps])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="steps that the lens was trained for", ylabel="lens KL at the input (bits per token)", ylim=(0, None))
    return _finish(figure, table, [LOOKS[UNTIED], LOOKS[TIED]], "Lenses from the identity; dotted: converged lenses.")


@_reads("03_residual", "residual")
def residual(tables: Tables) -> Figure:
    """What the embedding and each layer add to the residual stream, and to the logit of the right next token."""
    table = tables["residual"][tables["residual"]["component"] != "bias"]
    layers = table.groupby(["arm", "seed", "layer"], as_index=False)[["share", "attribution"]].sum()
    layers["place"] = layers["layer"] + 1
    figure, panels = _panels(TWO_COLUMNS, 2.6, "Part of the residual stream", "Direct logit attribution")
    for ax, column in zip(panels, ("share", "attribution"), strict=True):
        for arm in (UNTIED, TIED):
            _curve(ax, _where(layers, arm=arm), "place", column, LOOKS[arm], bars=True)
        _layers(ax, "embedding", str(layers["place"].max()), layers["place"].max())
    panels[0].set(ylabel="share of the summed norms", ylim=(0, None))
    panels[1].set(ylabel="to the right next token (logits)")
    _level(panels[1], 0)
    return _finish(figure, table, [LOOKS[UNTIED], LOOKS[TIED]], "A layer: attention and MLP together.")


@_reads("04_scaling", "alignment", "scaling_alignment", "lens", "scaling_lens", "losses", "scaling_losses")
def scaling(tables: Tables) -> Figure:
    """Tables 2 and 6: alignment, early layers and loss against the factor on the input path's gradient."""
    figure, (left, middle, right) = _panels(TWO_COLUMNS, 2.6, "Alignment of W", "Lens at the input", "Validation loss")
    alignment = claims.with_scaling(tables, "alignment")
    _alignment_by_scale(left, alignment)
    lens = _where(claims.with_scaling(tables, "lens"), lens="tuned", indexing="matched", layer=0)
    _by_scale(middle, lens, "kl_bits", "lens KL (bits per token)")
    _by_scale(right, claims.with_scaling(tables, "losses"), "validation_loss", "loss (nats per token)")
    looks = [*_W_WITH.values(), LOOKS[TIED], replace(LOOKS[UNTIED], marker="")]
    return _finish(figure, alignment, looks, "a: orthogonal map, dotted: chance. b: tuned lens.")


@_reads("04_lens", "lens", "scaling_lens")
def scaled_lens(tables: Tables) -> Figure:
    """Lens curves by input scale, and the untied one."""
    table = claims.with_scaling(tables, "lens")
    arms = table.sort_values("input_scale")["arm"].unique()
    arms = [UNTIED, *(arm for arm in arms if arm != UNTIED)]
    figure, (ax,) = _panels(ONE_COLUMN, 3.0, "")
    _lens_curves(ax, table, arms)
    looks = _scale_looks(table) | {TIED: replace(LOOKS[TIED], label="input ×1 (tied)")}
    return _finish(figure, table, [looks[arm] for arm in arms], columns=3)


@_reads("05_drift", "drift")
def drift(tables: Tables) -> Figure:
    """Figures 3, 8 and 9: how far each table moves from its start, and since it was last kept."""
    table = tables["drift"]
    # Tables are kept at log-spaced steps and at round ones too: a gap that is short for its place would look like rest.
    gap = table.groupby(["arm", "seed", "table"])["step"].diff()
    shown = {"to_start": table, "to_previous": table[gap >= table["step"] / 5]}
    figure, panels = _panels(TWO_COLUMNS, 2.6, "With the table of step 0", "With the table kept before")
    for ax, (column, rows) in zip(panels, shown.items(), strict=True):
        ax.set_xscale("symlog", linthresh=1, linscale=0.4)  # linear from step 0 to 1
        for first, (name, look) in enumerate(_TABLES.items()):
            # W and U move alike: with markers by turns the lower curve still shows.
            _curve(ax, _where(rows, table=name), "step", column, look, every=(first % 2, 2))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set(xlabel="step (optimizer)", ylabel="mean row cosine", xlim=(-0.15, None))
    return _finish(figure, table, _TABLES.values(), "b: intervals of at least a fifth of the step.")


@_reads("05_frequency", "frequency")
def frequency(tables: Tables) -> Figure:
    """Figure 5: row norms by how often the token occurs in the training text."""
    figure, panels = _panels(TWO_COLUMNS, 2.6, *(look.label for look in _TABLES.values()))
    looks = []
    for ax, (name, look) in zip(panels, _TABLES.items(), strict=True):
        own = _where(tables["frequency"], table=name)
        tokens = own.groupby("log10_count")[["norm_mean", "norm_std"]].mean()
        low, high = tokens["norm_mean"] - tokens["norm_std"], tokens["norm_mean"] + tokens["norm_std"]
        ax.fill_between(tokens.index, low, high, color=look.colour, alpha=0.18, linewidth=0)
        _curve(ax, own, "log10_count", "norm_mean", look, bars=True)
        ax.set(xlabel="log10(count + 1) of the token", ylabel="row norm (L2)", ylim=(0, None))
        rho = own.groupby("seed")["spearman"].first().mean()
        looks.append(replace(look, label=f"Spearman ρ = {rho:.2f}".replace("-", "−")))
    return _finish(figure, tables["frequency"], looks, "Wide band: one standard deviation of the tokens in a bin.")


@_reads("06_language", "language", "unigrams", corpus=TWO_ROLE)
def language(tables: Tables) -> Figure:
    """The two-role language: which target classes follow which source classes, and how often tokens occur."""
    figure, (left, right) = _panels(TWO_COLUMNS, 2.9, "What follows what", "How often")
    wide = tables["language"].pivot_table(index="source", columns="target", values="log_ratio")
    bound = np.quantile(np.abs(wide.to_numpy()), 0.9)  # a few pairs of classes are all but forbidden
    image = left.imshow(wide.to_numpy(), cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="equal")
    left.grid(visible=False)
    left.set(xlabel="target class of the next token", ylabel="source class of this token")
    figure.colorbar(image, ax=left, label="log of P(next) over its base rate (nats)", shrink=0.9, extend="both")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    unigrams = tables["unigrams"].sort_values("rank")
    right.set(xscale="log", yscale="log", xlabel="rank of the token (by weight)", ylabel="probability")
    right.plot(unigrams["rank"], unigrams["unigram"], ".", color=GREY, markersize=2.5)
    right.plot(unigrams["rank"], unigrams["weight"], color=BLACK)
    looks = [Look("weight p (Zipf)", BLACK), Look("stationary probability", GREY, ".", "none")]
    figure.legend(handles=[look.handle() for look in looks], loc="outside upper center", ncols=2)
    return figure


@_reads("06_roles", "roles", corpus=TWO_ROLE)
def roles(tables: Tables) -> Figure:
    """What each table is for: how pure its neighbourhoods are in either role."""
    rows = _where(tables["roles"], agreement=0.0, input_scale=1.0, output_scale=1.0)
    figure, (ax,) = _panels(ONE_COLUMN, 2.6, "")
    for place, table in enumerate(_TABLES):
        for shift, (role, look) in zip((-0.18, 0.18), _ROLE_LOOKS.items(), strict=True):
            own = _where(rows, table=table, role=role)
            _chance(ax, place + shift, own, 0.16)
            _point(ax, place + shift, own["purity"], look)
    _categories(ax, [look.label for look in _TABLES.values()])
    ax.set(xlabel="table", ylabel="purity of 10 neighbours (fraction)", ylim=(0, None))
    looks = [replace(look, line="none") for look in _ROLE_LOOKS.values()]
    return _finish(figure, rows, [*looks, replace(_CHANCE, label="chance")])


@_reads("06_scaling", "roles", corpus=TWO_ROLE)
def role_scaling(tables: Tables) -> Figure:
    """What the tied table serves, and its loss above the language's own, by the scale of either path's gradient."""
    rows = _where(tables["roles"], agreement=0.0)
    titles = "Input path scaled", "Loss", "Output path scaled", "Loss"
    figure, panels = _panels(TWO_COLUMNS, 4.9, *titles, rows=2)
    for path, other, (left, right) in (("input", "output", panels[:2]), ("output", "input", panels[2:])):
        tied = _where(rows, table="tied", **{f"{other}_scale": 1.0})
        for ax in (left, right):
            ax.set_xscale("log")
        for role, look in _ROLE_LOOKS.items():
            _curve(left, _where(tied, role=role), f"{path}_scale", "purity", look, bars=True)
        _level(left, tied["chance"].mean())
        _scales(left, tied[f"{path}_scale"], "purity of 10 neighbours (fraction)", path)
        left.set_ylim(0, None)
        untied = _where(rows, table="input", role="source", arm=UNTIED)
        _reference(right, untied["over_floor"], LOOKS[UNTIED])
        _curve(right, _where(tied, role="source"), f"{path}_scale", "over_floor", LOOKS[TIED], bars=True)
        _scales(right, tied[f"{path}_scale"], "loss over the floor (nats per token)", path)
        right.set_ylim(0, None)
    looks = [*_ROLE_LOOKS.values(), LOOKS[TIED], replace(LOOKS[UNTIED], marker="")]
    return _finish(
        figure, rows, looks, "Dotted: chance, and the ordinary tied arm. Floor: the language's own loss on the same text."
    )


@_reads("06_measures", "alignment", "scaling_alignment", "roles", corpus=TWO_ROLE)
def measures(tables: Tables) -> Figure:
    """Resemblance against purpose: output bias towards an untied pair, and the purity gap that needs no other model."""
    bias = claims.output_bias(_where(claims.with_scaling(tables, "alignment"), kind="orthogonal"))
    gaps = claims.purity_gap(_where(tables["roles"], table="tied", agreement=0.0, output_scale=1.0))
    both = bias.merge(gaps, on=["arm", "input_scale", "seed"])
    figure, (ax,) = _panels(ONE_COLUMN, 2.9, "")
    looks = _scale_looks(both) | {TIED: replace(LOOKS[TIED], label="input ×1 (tied)")}
    arms = list(both.sort_values("input_scale")["arm"].unique())
    for arm in arms:
        own, look = _where(both, arm=arm), looks[arm]
        ax.plot(own["purity_gap"], own["output_bias"], ".", color=look.colour, markersize=3, alpha=0.6)
        ax.plot(own["purity_gap"].mean(), own["output_bias"].mean(), color=look.colour, marker=look.marker, markersize=5)
    _level(ax, 0)
    ax.axvline(0, color=GREY, linewidth=1, linestyle=DOTTED)
    ax.set(xlabel="purity, target − source role (fraction)", ylabel="output bias (orthogonal, corrected)")
    rho = np.mean([part["output_bias"].corr(part["purity_gap"], method="spearman") for _, part in both.groupby("seed")])
    note = f"Large: means. Spearman ρ over scales, mean of the seeds: {rho:.2f}.".replace("-", "−")
    return _finish(figure, both, [replace(looks[arm], line="none") for arm in arms], note, columns=3)


@_reads("06_agreement", "roles", corpus=TWO_ROLE)
def agreement(tables: Tables) -> Figure:
    """What tying costs by how far the two roles of a token agree."""
    rows = _where(tables["roles"], input_scale=1.0, output_scale=1.0)
    figure, (left, right) = _panels(TWO_COLUMNS, 2.7, "Tied table", "Loss over the floor")
    tied = _where(rows, table="tied")
    for role, look in _ROLE_LOOKS.items():
        _curve(left, _where(tied, role=role), "agreement", "purity", look, bars=True)
    _level(left, tied["chance"].mean())
    left.set(ylabel="purity of 10 neighbours (fraction)", ylim=(0, None))
    for value, arm in ((False, UNTIED), (True, TIED)):
        own = rows[(rows["tied"] == value) & (rows["role"] == "source") & (rows["table"] != "output")]
        _curve(right, own, "agreement", "over_floor", LOOKS[arm], bars=True)
    right.set(ylabel="loss over the floor (nats per token)", ylim=(0, None))
    for ax in (left, right):
        places = sorted(rows["agreement"].unique())
        ax.set_xticks(places, [f"{place:g}" for place in places])
        ax.set_xlabel("tokens whose two roles agree (fraction)")
    return _finish(figure, rows, [*_ROLE_LOOKS.values(), LOOKS[UNTIED], LOOKS[TIED]], "Dotted: chance.")


@_reads("00_sizes", "sizes")
def sizes(tables: Tables) -> Figure:
    """C5: what share of all parameters the tables take, and what tying costs, by size."""
    gaps = claims.loss_gaps(tables["sizes"]).sort_values("parameters")
    figure, (left, right) = _panels(TWO_COLUMNS, 2.7, "Tables' share of parameters", "What tying costs")
    one = gaps.groupby("parameters")["share"].first()
    left.set_xscale("log")
    left.plot(one.index, one, color=BLACK, marker="o", markersize=4)
    left.plot(*published.shape_share(), color=BLACK, marker="d", markerfacecolor="white", linestyle="none")
    left.set(xlabel="parameters of the untied model", ylabel="share of both tables (fraction)", ylim=(0, 1))
    looks = {"equal_shape": Look("equal shape", BLACK, "D"), "equal_parameters": Look("equal parameters", BLUE, "o", DASHED)}
    right.set_xscale("log")
    for column, look in looks.items():
        _curve(right, gaps, "parameters", column, look, bars=True)
    _level(right, 0)
    right.set_xticks(one.index, [f"{count / 1e6:.2g}" for count in one.index])
    right.xaxis.set_minor_locator(NullLocator())
    right.set(xlabel="parameters of the untied model (millions)", ylabel="loss, tied − untied (nats per token)")
    hollow = Look("OLMo-1B, by its shape", BLACK, "d", "none", hollow=True)
    return _finish(figure, gaps, [hollow, *looks.values()], "b: above the dotted line the tied model is worse.")


@_reads(
    "00_verdicts",
    *("alignment", "neighbors", "gradients", "lens", "lens_budget", "residual", "losses"),
    *("scaling_alignment", "scaling_lens", "scaling_losses", "sizes"),
    corpus=None,
)
def verdicts(tables: Tables) -> Figure:
    """Every claim on every corpus: estimate, 95 % interval over seeds, and the value that would be no effect."""
    table = claims.verdicts(tables, ("C1", "C2", "C3", "C4", "C5"))
    corpora = [corpus for corpus in _CORPORA if corpus in set(table["corpus"])]
    figure, panels = _panels(TWO_COLUMNS, 3.4, *claims.HEADLINES.values(), rows=2)
    for ax, statistic in zip(panels, claims.HEADLINES, strict=True):
        for place, corpus in enumerate(corpora):
            for row in _where(table, statistic=statistic, corpus=corpus).to_dict("records"):
                look = _CORPORA[corpus]
                ax.plot(row["estimate"], -place, marker=look.marker, color=look.colour, markersize=4.5)
                if row["seeds"] > 1:
                    ax.plot([row["low"], row["high"]], [-place, -place], color=look.colour, linewidth=1.2)
                ax.annotate(row["verdict"], (row["estimate"], -place + 0.17), ha="center", fontsize=6)
        ax.axvline(0.5 if "share" in statistic else 0, color=GREY, linewidth=1, linestyle=DOTTED)
        ax.set(ylim=(0.6 - len(corpora), 0.6), yticks=[])
        ax.margins(x=0.25)
        ax.grid(visible=False, axis="y")
    figure.legend(handles=[_CORPORA[corpus].handle() for corpus in corpora], loc="outside upper center", ncols=len(corpora))
    words = f"Mean and 95 % t interval over n = {table['seeds'].max()} seeds. Dotted: no effect (of a share: one half). "
    words += "C3, C5: tied less untied. Losses in nats, bits and nats a token."
    figure.supxlabel(textwrap.fill(words, round(22 * figure.get_figwidth())), x=0.01, ha="left", color="#555555")
    return figure


def scale_view(tables: Tables, scale: float) -> Figure:
    """What the slider shows of one swept scale: its place among the others, its lens curve, its loss."""
    arm = profiles.scaled(scale)
    lens = claims.with_scaling(tables, "lens")
    looks = _scale_looks(lens)
    with _style():
        figure, (left, middle, right) = _panels(TWO_COLUMNS, 2.6, "Alignment of W", "Tuned lens", "Validation loss")
        _alignment_by_scale(left, claims.with_scaling(tables, "alignment"))
        _lens_curves(middle, lens, dict.fromkeys((UNTIED, TIED, arm)))
        middle.set_ylim(0, 1.1 * _where(lens, lens="tuned", indexing="matched")["kl_bits"].max())  # at every stop the same
        _by_scale(right, claims.with_scaling(tables, "losses"), "validation_loss", "loss (nats per token)")
        for ax in (left, right):
            ax.axvline(scale, color=looks[arm].colour, linewidth=6, alpha=0.25)
        return _finish(figure, lens, [*_W_WITH.values(), *(looks[name] for name in dict.fromkeys((UNTIED, TIED, arm)))])


# Drawing and keeping them


def draw(name: str, tables: Tables | Mapping[str, pd.DataFrame]) -> Figure:
    """The figure called `name` (a key of `FIGURES`) from tidy tables; ValueError for a name that is unknown."""
    if name not in FIGURES:
        raise ValueError(f"name: {name!r} is unknown; choose one of {', '.join(FIGURES)}")
    with _style():
        return FIGURES[name].function(tables)


def folder(name: str, profile: str, corpus: str | None) -> Path:
    """Where the figure `name`, drawn from `corpus`, is kept: figures/<profile>; below it if it is at home in another corpus."""
    home = FIGURES[name].corpus
    return paths.figures(profile) if corpus in (None, home) else paths.figures(profile) / corpus


def save(figure: Figure, name: str, tables: Any) -> list[Path]:
    """Write NAME.pdf and NAME.png (300 dots an inch) whole into the `folder` of `tables`, and return their paths.

    `tables` is the `study.Study` or `study.Results` that the figure was drawn from: the checksums of the tables that it reads
    stand in the files' metadata (see `source`). Equal input gives equal bytes.
    """
    belongs = json.dumps(_source(name, tables), sort_keys=True)
    written = []
    for kind, metadata in (("pdf", {"Keywords": belongs, "CreationDate": None}), ("png", {"Source": belongs})):
        path = _folder_of(name, tables) / f"{name}.{kind}"
        with _style(), files.replacing(path) as temporary:
            figure.savefig(temporary, format=kind, metadata=metadata)
        written.append(path)
    return written


def source(path: Path) -> dict[str, str]:
    """The sha256 of each table that a saved PNG was drawn from, by corpus/name; empty if it names none or cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return json.loads(image.info["Source"])
    except (OSError, KeyError, ValueError):
        return {}


def _source(name: str, tables: Any) -> dict[str, str]:
    return {key: digest for key, digest in tables.checksums.items() if key.partition("/")[2] in FIGURES[name].needs}


def _folder_of(name: str, tables: Any) -> Path:
    profile = tables.profile
    return folder(name, profile.name, profile.corpus if FIGURES[name].corpus else None)


def publish(name: str, study: Any) -> Figure:
    """Draw a figure from a `study.Study` (or `Results`) and save it, unless a committed file belongs to these tables."""
    figure = draw(name, study)
    kept = [_folder_of(name, study) / f"{name}.{kind}" for kind in ("pdf", "png")]
    current = study.profile.name in profiles.COMMITTED and kept[0].is_file() and source(kept[1]) == _source(name, study)
    if not current:
        save(figure, name, study)
    return figure


def render(profile: str, progress: bool = True) -> list[Path]:
    """Draw and save every figure of `profile` from its tables on disk alone, on the corpus it is at home in; the paths written.

    Raises ValueError if one of those tables is missing or damaged.
    """
    from tqdm.auto import tqdm

    from tying_utils.study import Results

    results, written = Results(profile, only_read=True), []
    for name, drawing in tqdm(FIGURES.items(), desc=f"drawing {profile}", disable=not progress, leave=False):
        tables = results if drawing.corpus is None else results.studies.get(drawing.corpus)
        if tables is not None and all(table in tables for table in drawing.needs):
            written += save(draw(name, tables), name, tables)
    return written
