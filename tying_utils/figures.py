"""Tidy tables to figures at their printed size; nothing here trains or measures.

Every figure shows each seed as a thin line or a small dot, their mean, and the 95 % t interval of that mean. A table or an
arm has one colour, marker and line in all figures (`LOOKS`), told apart in grey as well.
"""

import io
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator
from matplotlib.transforms import offset_copy

from tying_utils import claims, files, paths, profiles, published
from tying_utils.claims import Tables
from tying_utils.measures import statistics
from tying_utils.profiles import SHARED_START, TIED, UNTIED

STYLE = Path(__file__).with_name("paper.mplstyle")
ONE_COLUMN, TWO_COLUMNS = 3.35, 6.9  # inches
WINDOW = 20  # steps of the rolling mean


@dataclass(frozen=True)
class Look:
    """How one table, arm or pair is drawn, and what the legend calls it."""

    label: str
    colour: str
    marker: str
    line: Any = "-"


BLUE, ORANGE, GREEN, BLACK, GREY = "#0173b2", "#de8f05", "#029e73", "#000000", "#777777"
DASHED, DOTTED = (0, (4, 1.5)), (0, (1, 1))
LOOKS = {
    "input": Look("untied input E", BLUE, "o"),
    "output": Look("untied output U", ORANGE, "s"),
    TIED: Look("tied", BLACK, "D"),
    UNTIED: Look("untied", GREEN, "^", DASHED),
}
for _place, (_scale, _marker) in enumerate(zip(profiles.SCALES, ("v", "D", "<", ">", "P", "X"), strict=True)):
    _shade = to_hex(matplotlib.colormaps["plasma"](0.05 + 0.8 * _place / (len(profiles.SCALES) - 1)))
    LOOKS.setdefault(profiles.scaled(_scale), Look(f"input ×{_scale:g}", _shade, _marker))
W = replace(LOOKS[TIED], label="tied W")
_PAIRS = {
    ("input", "tied"): replace(LOOKS["input"], label="E–W"),
    ("output", "tied"): replace(LOOKS["output"], label="U–W"),
    ("input", "output"): Look("E–U", GREY, "^"),
}
_PUBLISHED = Look("published (OLMo-1B)", BLACK, "d")


class Picture(Figure):
    """A figure outside pyplot that a notebook shows once, as the value of a cell."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        with io.BytesIO() as buffer:
            self.savefig(buffer, format="png", dpi=200)
            width, height = self.get_size_inches() * 110
            return buffer.getvalue(), {"width": round(width), "height": round(height)}


@dataclass(frozen=True)
class Drawing:
    """What draws a figure, and the tables that it reads."""

    function: Callable[[Tables], Figure]
    needs: tuple[str, ...]


FIGURES: dict[str, Drawing] = {}


def _reads(name: str, *needs: str) -> Callable[[Callable[[Tables], Figure]], Callable[[Tables], Figure]]:
    def register(function: Callable[[Tables], Figure]) -> Callable[[Tables], Figure]:
        FIGURES[name] = Drawing(function, needs)
        return function

    return register


# What repeats in every figure


def _panels(
    width: float, height: float, *titles: str, rows: int = 1, widths: Sequence[float] | None = None
) -> tuple[Picture, list[Axes]]:
    """A figure with a panel for each title, lettered where there are several."""
    figure = Picture(figsize=(width, height), layout="constrained")
    columns = len(titles) // rows
    panels = list(figure.subplots(rows, columns, squeeze=False, width_ratios=widths).flat)
    for letter, ax, title in zip("abcdef", panels, titles, strict=False):
        if len(titles) > 1:
            ax.set_title(letter, loc="left", fontweight="bold")
        ax.set_title(title)
    return figure, panels


def _finish(figure: Figure, frame: pd.DataFrame, looks: Sequence[Look | Line2D], note: str = "", columns: int = 0) -> Figure:
    """The legend above the panels and the small print below them, which says how many seeds there are."""
    handles = [look if isinstance(look, Line2D) else _handle(look) for look in looks]
    figure.legend(handles=handles, loc="outside upper center", ncols=columns or len(handles))
    n = frame["seed"].nunique()
    seeds = f"n = {n} seeds (thin lines or dots), mean with 95 % t interval." if n > 1 else "n = 1 seed, no interval."
    small = textwrap.fill(f"{seeds} {note}".strip(), round(20 * figure.get_figwidth()))
    figure.supxlabel(small, x=0.01, ha="left", color="#555555", linespacing=1.3)
    return figure


def _handle(look: Look, **changes: Any) -> Line2D:
    style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "linestyle": look.line, "label": look.label}
    return Line2D([], [], **(style | {"markersize": 3.5} | changes))


_HOLLOW: dict[str, Any] = {"markerfacecolor": "white", "linestyle": "none"}
_PUBLISHED_HANDLE = _handle(_PUBLISHED, **_HOLLOW)
_CHANCE_HANDLE = Line2D([], [], color=GREY, linewidth=1, linestyle=DOTTED, label="chance (rows permuted)")


def _interval(values: Any) -> tuple[float, float]:
    interval = statistics.mean_interval(values)
    return interval.low, interval.high


def _curve(ax: Axes, frame: pd.DataFrame, x: str, y: str, look: Look, *, bars: bool = False, hollow: bool = False) -> None:
    """Each seed thin, their mean, and its interval: a band, or bars where the points are few."""
    common: dict[str, Any] = {"data": frame, "x": x, "y": y, "ax": ax, "color": look.colour, "linestyle": look.line}
    sns.lineplot(**common, units="seed", estimator=None, linewidth=0.5, alpha=0.45, legend=False)
    if bars:
        spread: dict[str, Any] = {"err_style": "bars", "err_kws": {"elinewidth": 0.8, "capsize": 1.5}}
    else:
        spread = {"err_style": "band", "err_kws": {"alpha": 0.15, "linewidth": 0}}
    points = frame[x].nunique()
    every = 1 if points <= 25 else (points // 16, points // 8)
    face = {"markerfacecolor": "white", "markeredgecolor": look.colour} if hollow else {}
    sns.lineplot(**common, errorbar=_interval, marker=look.marker, markevery=every, legend=False, **spread, **face)


def _point(ax: Axes, x: float, values: pd.Series, look: Look) -> None:
    """A small dot a seed, and beside them their mean with its interval."""
    interval = statistics.mean_interval(values)
    beside = offset_copy(ax.transData, ax.figure, x=-5.5, units="points")
    ax.plot(np.full(len(values), x), values, ".", color=look.colour, markersize=3, alpha=0.6, transform=beside)
    error = [[interval.mean - interval.low], [interval.high - interval.mean]]
    bars = None if len(values) == 1 else error
    ax.errorbar(x, interval.mean, bars, color=look.colour, marker=look.marker, markersize=4.5, elinewidth=1, capsize=2)


def _chance(ax: Axes, x: float, rows: pd.DataFrame) -> None:
    """A short line at the mean chance level, with its 95 % band where the table has one."""
    if "chance_low" in rows and rows["chance_low"].notna().all():
        ax.fill_between(
            [x - 0.35, x + 0.35], rows["chance_low"].mean(), rows["chance_high"].mean(), color=GREY, alpha=0.25, lw=0
        )
    ax.hlines(rows["chance"].mean(), x - 0.35, x + 0.35, color=GREY, linewidth=1, linestyle=DOTTED)


def _categories(ax: Axes, labels: Sequence[str]) -> None:
    ax.set_xticks(range(len(labels)), labels)
    ax.set_xlim(-0.6, len(labels) - 0.4)
    ax.grid(visible=False, axis="x")


def _scaled(tables: Tables, name: str) -> pd.DataFrame:
    """The table and its scaled arms; the untied pair, which stands in both, once."""
    return pd.concat([tables[name], tables[f"scaling_{name}"]], ignore_index=True).drop_duplicates()


def _tuned(lens: pd.DataFrame, arm: str, indexing: str = "matched", kind: str = "tuned") -> pd.DataFrame:
    return lens[(lens["arm"] == arm) & (lens["indexing"] == indexing) & (lens["lens"] == kind)]


def _layers(ax: Axes, last: int, first: str = "input", final: str = "output") -> None:
    """Ticks "input, 1, 2, ..., output", thinned where there are many layers."""
    stride = 1 if last <= 6 else 2 if last <= 12 else 4
    inner = [layer for layer in range(stride, last, stride) if stride == 1 or layer <= last - stride]
    ax.set_xticks([0, *inner, last], [first, *map(str, inner), final])
    ax.set_xlabel("layer")


def _scale_axis(ax: Axes) -> None:
    ticks = profiles.SCALES
    ax.set_xticks(ticks, [f"{scale:g}" for scale in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.axvline(1, color=GREY, linewidth=0.6, linestyle=DOTTED)
    ax.set_xlabel("input scale (1: ordinary tied)")


def _reference(ax: Axes, values: pd.Series, look: Look) -> None:
    """A level line for a condition without a scale: each seed thin, their mean, its interval as a band."""
    interval = statistics.mean_interval(values)
    for value in values:
        ax.axhline(value, color=look.colour, linewidth=0.5, alpha=0.45, linestyle=look.line)
    ax.axhline(interval.mean, color=look.colour, linestyle=look.line)
    if len(values) > 1:
        ax.axhspan(interval.low, interval.high, color=look.colour, alpha=0.12, linewidth=0)


def _rolled(frame: pd.DataFrame, *columns: str, points: int = 300) -> pd.DataFrame:
    """Rolling means by seed, thinned to about `points` steps, the last among them."""
    parts = []
    for _, rows in frame.sort_values("step").groupby("seed"):
        means = {column: statistics.rolling_mean(rows[column], WINDOW) for column in columns}
        parts.append(rows[["seed", "step"]].assign(**means).iloc[:: -max(1, len(rows) // points)])
    return pd.concat(parts, ignore_index=True)


# The figures


def _corrected_pair(ax: Axes, alignment: pd.DataFrame) -> None:
    """Corrected alignment of the tied table with E and with U, by kind of map."""
    kinds = ("orthogonal", "linear")
    for place, kind in enumerate(kinds):
        rows = alignment[(alignment["arm"] == TIED) & (alignment["kind"] == kind)]
        for shift, source in ((-0.18, "input"), (0.18, "output")):
            _point(ax, place + shift, rows[rows["source"] == source]["corrected"], LOOKS[source])
    _categories(ax, [f"{kind} map" for kind in kinds])
    ax.axhline(0, color=GREY, linewidth=1, linestyle=DOTTED)
    ax.set(xlabel="how W is compared", ylabel="alignment, chance-corrected", ylim=(-0.05, None))


def _share(ax: Axes, tied: pd.DataFrame, column: str, look: Look, *, hollow: bool = False) -> None:
    _curve(ax, _rolled(tied, column), "step", column, look, hollow=hollow)
    ax.set(xlabel="step (optimizer)", ylabel="output share of the norm", ylim=(0, 1))


def _lens_curves(ax: Axes, lens: pd.DataFrame, arms: Sequence[str], indexing: str = "matched") -> None:
    for arm in arms:
        _curve(ax, _tuned(lens, arm, indexing), "layer", "kl_bits", LOOKS[arm], bars=True)
    _layers(ax, int(lens["layer"].max()))
    ax.set(ylabel="lens KL (bits per token)", ylim=(0, None))


@_reads("00_overview", "alignment", "gradients", "lens", "scaling_alignment")
def overview(tables: Tables) -> Figure:
    """The four claims in short: alignment, gradients, lens, input scale."""
    titles = "Alignment of W with E and U", "Output path's share of the gradient", "Tuned lens by layer", "Output bias of W"
    figure, (a, b, c, d) = _panels(TWO_COLUMNS, 4.7, *titles, rows=2)
    _corrected_pair(a, tables["alignment"])
    gradients = tables["gradients"]
    _share(b, gradients[gradients["arm"] == TIED], "output_share", LOOKS[TIED])
    b.axhline(0.5, color=GREY, linewidth=1, linestyle=DOTTED)
    _lens_curves(c, tables["lens"], (UNTIED, TIED))
    bias = claims.output_bias(_scaled(tables, "alignment").query("kind == 'orthogonal'"))
    d.set_xscale("log")
    _curve(d, bias, "input_scale", "output_bias", LOOKS[TIED], bars=True)
    d.axhline(0, color=GREY, linewidth=1, linestyle=DOTTED)
    _scale_axis(d)
    d.set_ylabel("alignment with U − with E")
    looks = [LOOKS[name] for name in ("input", "output", TIED, UNTIED)]
    note = f"b: rolling mean of {WINDOW} steps. d: orthogonal map, chance-corrected. Dotted: chance (a), equal norms (b), no bias (d)."
    return _finish(figure, tables["alignment"], looks, note)


@_reads("01_alignment", "alignment", "neighbors")
def alignment(tables: Tables) -> Figure:
    """Tables 1 and 5: how near the tables lie, each pair beside its chance and the published value."""
    rows = pd.concat([tables["alignment"], tables["neighbors"].assign(kind="KNN@10")], ignore_index=True)
    paper = published.knn().rename(columns={"a": "target", "b": "source"}).assign(kind="KNN@10")
    swapped = paper["target"] == "untied input"  # KNN is symmetric; Table 1 writes this pair from input to output
    paper.loc[swapped, ["source", "target"]] = paper.loc[swapped, ["target", "source"]].to_numpy()
    paper = pd.concat([published.alignment(), paper]).query("models == 'OLMo'").replace(regex="^untied ", value="")
    kinds = {"identity": "Identity", "orthogonal": "Orthogonal map", "linear": "Linear map", "KNN@10": "Neighbours"}
    figure, panels = _panels(TWO_COLUMNS, 2.6, *kinds.values())
    for ax, kind in zip(panels, kinds, strict=True):
        for place, ((source, target), look) in enumerate(_PAIRS.items()):
            pair = "kind == @kind and source == @source and target == @target"
            own = rows[rows["arm"].isin((UNTIED, TIED))].query(pair)
            _chance(ax, place, own)
            _point(ax, place, own["value"], look)
            ax.plot(place + 0.2, paper.query(pair)["value"], marker=_PUBLISHED.marker, color=look.colour, **_HOLLOW)
        _categories(ax, [look.label for look in _PAIRS.values()])
        ax.set(xlabel="pair of tables", ylabel="mean row cosine", ylim=(-0.05, 1))
    panels[-1].set_ylabel("KNN@10 overlap (fraction)")
    here = Line2D([], [], color=BLACK, marker="o", markersize=3.5, linestyle="none", label="measured here")
    note = "E: untied input table, U: untied output table, W: tied table."
    return _finish(figure, rows, [here, _PUBLISHED_HANDLE, _CHANCE_HANDLE], note)


@_reads("01_cosines", "cosines")
def cosines(tables: Tables) -> Figure:
    """Figure 1: per-token cosines of the tied table with the linear images of E and of U."""
    rows = tables["cosines"]
    figure, (ax,) = _panels(ONE_COLUMN, 2.5, "")
    looks = []
    for source, symbol in (("input", "E"), ("output", "U")):
        looks.append(replace(LOOKS[source], label=f"{LOOKS[source].label} → W"))
        own = rows[(rows["arm"] == TIED) & (rows["source"] == source)]
        _curve(ax, own, "cosine", "density", looks[-1])
    ax.set(xlabel="cosine similarity after a linear map, per token", ylabel="density (tokens per unit of cosine)")
    ax.set(xlim=(-0.25, 1), ylim=(0, None))
    return _finish(figure, rows, looks)


@_reads("01_control", "alignment", "control_alignment")
def control(tables: Tables) -> Figure:
    """What a start that both arms share adds to the alignment of W with E."""
    figure, (ax,) = _panels(ONE_COLUMN, 2.6, "")
    rows = pd.concat([tables["alignment"], tables["control_alignment"]]).query("kind == 'orthogonal'")
    for place, arm in enumerate((TIED, SHARED_START)):
        for shift, source in ((-0.2, "input"), (0.2, "output")):
            own = rows[(rows["arm"] == arm) & (rows["source"] == source)]
            ax.hlines(
                own["chance"].mean(), place + shift - 0.17, place + shift + 0.17, color=GREY, linewidth=1, linestyle=DOTTED
            )
            _point(ax, place + shift, own["value"], LOOKS[source])
    _categories(ax, ["independent starts", "shared start"])
    ax.set(xlabel="how the tied and untied arm start", ylabel="mean row cosine, orthogonal map", ylim=(0, 1))
    looks = [replace(LOOKS[source], label=f"W with {LOOKS[source].label}", line="none") for source in ("input", "output")]
    return _finish(figure, rows, [*looks, _CHANCE_HANDLE], columns=2)


@_reads("02_gradients", "gradients")
def gradients(tables: Tables) -> Figure:
    """Figure 4: both path gradients of the tied table, like with like and as published, and the Adam update."""
    table = tables["gradients"]
    tied = table[table["arm"] == TIED]
    figure, (left, middle, right) = _panels(TWO_COLUMNS, 2.5, "Path gradients", "Gradient", "Adam update")
    looks = {
        "input_norm": replace(LOOKS["input"], label="input path"),
        "output_norm": replace(LOOKS["output"], label="output path"),
        "published_input_norm": replace(LOOKS["input"], label="input path as published", line=DASHED),
    }
    left.set_yscale("log")
    rolled = _rolled(tied, *looks)
    for column, look in looks.items():
        _curve(left, rolled, "step", column, look, hollow=look.line == DASHED)
    left.set(xlabel="step (optimizer)", ylabel="gradient norm (Frobenius)")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter(NullFormatter())
    share, as_published = (
        replace(LOOKS[TIED], label="share, like with like"),
        replace(LOOKS[TIED], label="share as published", line=DASHED),
    )
    _share(middle, tied, "published_output_share", as_published, hollow=True)
    _share(middle, tied, "output_share", share)
    _share(right, tied, "output_update_share", share)
    for ax in (middle, right):
        ax.axhline(0.5, color=GREY, linewidth=1, linestyle=DOTTED)
    handles = [
        _handle(look, **({"markerfacecolor": "white"} if look.line == DASHED else {}))
        for look in (*looks.values(), share, as_published)
    ]
    note = f"Tied arm, rolling mean of {WINDOW} steps; dotted: equal norms.\nAs published: the input norm is of the activation gradient, the output norm of the weight gradient."
    return _finish(figure, tied, handles, note)


@_reads("03_lens", "lens")
def lens(tables: Tables) -> Figure:
    """Figure 2: what each layer lacks of the model's own prediction, with matched lenses and one layer off."""
    table = tables["lens"]
    figure, (left, right) = _panels(TWO_COLUMNS, 2.7, "Each lens on its own layer", "One layer off, as published")
    looks = []
    for arm in (UNTIED, TIED):
        looks += [LOOKS[arm], replace(LOOKS[arm], label=f"{arm}, logit lens", line=DOTTED)]
        sns.lineplot(
            _tuned(table, arm, kind="logit"),
            x="layer",
            y="kl_bits",
            ax=left,
            color=LOOKS[arm].colour,
            linestyle=DOTTED,
            linewidth=0.9,
            alpha=0.6,
            errorbar=None,
            legend=False,
        )
    _lens_curves(left, table, (UNTIED, TIED))
    _lens_curves(right, table, (UNTIED, TIED), "published")
    handles = [
        _handle(look, **({} if look in LOOKS.values() else {"marker": "none", "linewidth": 0.9, "alpha": 0.6}))
        for look in looks
    ]
    return _finish(
        figure,
        table,
        handles,
        "Right: the same lenses, translator k − 1 on layer k and a lens on the last state, where the KL must be 0.",
    )


@_reads("04_scaling", "alignment", "scaling_alignment", "lens", "scaling_lens", "losses", "scaling_losses")
def scaling(tables: Tables) -> Figure:
    """Tables 2 and 6: alignment, early layers and loss against the factor on the input path's gradient."""
    figure, (left, middle, right) = _panels(TWO_COLUMNS, 2.6, "Alignment of W", "Lens at the input", "Price")
    for ax in (left, middle, right):
        ax.set_xscale("log")
    rows = _scaled(tables, "alignment").query("kind == 'orthogonal' and target == 'tied'")
    for source in ("input", "output"):
        _curve(left, rows[rows["source"] == source], "input_scale", "corrected", LOOKS[source], bars=True)
    left.set(ylabel="alignment, chance-corrected", ylim=(0, None))
    curves = _scaled(tables, "lens").query("lens == 'tuned' and indexing == 'matched' and layer == 0")
    for ax, table, column, label in (
        (middle, curves, "kl_bits", "lens KL (bits per token)"),
        (right, _scaled(tables, "losses"), "validation_loss", "validation loss (nats per token)"),
    ):
        _reference(ax, table[table["arm"] == UNTIED][column], LOOKS[UNTIED])
        _curve(ax, table[table["arm"] != UNTIED], "input_scale", column, LOOKS[TIED], bars=True)
        ax.set_ylabel(label)
    for ax in (left, middle, right):
        _scale_axis(ax)
    looks = [replace(LOOKS[source], label=f"W with {LOOKS[source].label}") for source in ("input", "output")]
    return _finish(figure, rows, [*looks, LOOKS[TIED], replace(LOOKS[UNTIED], marker="none")], "Alignment: orthogonal map.")


@_reads("04_lens", "lens", "scaling_lens")
def scaled_lens(tables: Tables) -> Figure:
    """Lens curves by input scale, and the untied one."""
    table = _scaled(tables, "lens")
    arms = [profiles.scaled(scale) for scale in profiles.SCALES]
    figure, (ax,) = _panels(ONE_COLUMN, 3.0, "")
    _lens_curves(ax, table, [UNTIED, *arms])
    looks = [replace(LOOKS[arm], label="tied (input ×1)") if arm == TIED else LOOKS[arm] for arm in arms]
    return _finish(figure, table, [LOOKS[UNTIED], *looks], columns=3)


@_reads("05_drift", "drift")
def drift(tables: Tables) -> Figure:
    """Figures 3, 8 and 9: how far each table moves from its start, and since it was last kept."""
    table = tables["drift"]
    looks = {"input": LOOKS["input"], "output": LOOKS["output"], "tied": W}
    figure, panels = _panels(TWO_COLUMNS, 2.6, "With the table of step 0", "With the table kept before")
    for ax, column in zip(panels, ("to_start", "to_previous"), strict=True):
        ax.set_xscale("symlog", linthresh=1, linscale=0.4)  # linear from step 0 to 1
        for name, look in looks.items():
            _curve(ax, table[table["table"] == name], "step", column, look)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set(xlabel="step (optimizer)", ylabel="mean row cosine", xlim=(-0.15, None), ylim=(None, 1.02))
    return _finish(figure, table, list(looks.values()))


@_reads("05_frequency", "frequency")
def frequency(tables: Tables) -> Figure:
    """Figure 5: row norms by how often the token occurs in the training text."""
    table = tables["frequency"]
    looks = {"input": LOOKS["input"], "output": LOOKS["output"], "tied": W}
    figure, panels = _panels(TWO_COLUMNS, 2.6, *(look.label for look in looks.values()))
    for ax, (name, look) in zip(panels, looks.items(), strict=True):
        own = table[table["table"] == name]
        tokens = own.groupby("log10_count")[["norm_mean", "norm_std"]].mean()
        low, high = tokens["norm_mean"] - tokens["norm_std"], tokens["norm_mean"] + tokens["norm_std"]
        ax.fill_between(tokens.index, low, high, color=look.colour, alpha=0.12, linewidth=0)
        _curve(ax, own, "log10_count", "norm_mean", look, bars=True)
        rho = statistics.mean_interval(own.groupby("seed")["spearman"].first())
        looks[name] = replace(look, label=f"{look.label}: Spearman ρ = {rho.mean:.2f}")
        ax.set(xlabel="log10(count + 1) of the token", ylabel="row norm (L2)")
    return _finish(figure, table, list(looks.values()), "Wide band: one standard deviation of the tokens in a bin.")


# Drawing and keeping them


def draw(name: str, tables: Tables | Mapping[str, pd.DataFrame]) -> Figure:
    """The figure called `name` (a key of `FIGURES`) from tidy tables; ValueError for a name that is unknown."""
    if name not in FIGURES:
        raise ValueError(f"name: {name!r} is unknown; choose one of {', '.join(FIGURES)}")
    with matplotlib.style.context(["default", str(STYLE)]):
        return FIGURES[name].function(tables)


def save(figure: Figure, name: str, profile: str, tables: Any) -> list[Path]:
    """Write figures/<profile>/<name>.pdf and .png (300 dots an inch) whole, and return their paths.

    Equal input gives equal bytes. Where `tables` has a manifest (`study.Study`), the checksums of the tables that the figure
    reads stand in the files' metadata: see `source`.
    """
    belongs = json.dumps(_source(name, tables), sort_keys=True)
    metadata = {"pdf": {"Keywords": belongs, "CreationDate": None}, "png": {"Source": belongs}}
    written = []
    for kind in ("pdf", "png"):
        path = paths.figures(profile) / f"{name}.{kind}"
        with matplotlib.style.context(["default", str(STYLE)]), files.replacing(path) as temporary:
            figure.savefig(temporary, format=kind, metadata=metadata[kind])
        written.append(path)
    return written


def source(path: Path) -> dict[str, str]:
    """The sha256 of each table that a saved PNG was drawn from, by name; empty if it names none."""
    from PIL import Image

    with Image.open(path) as image:
        return json.loads(image.info.get("Source", "{}"))


def _source(name: str, tables: Any) -> dict[str, str]:
    entries = (getattr(tables, "manifest", None) or {}).get("tables", {})
    return {table: entries[table]["sha256"] for table in FIGURES[name].needs if table in entries}


def publish(name: str, study: Any) -> Figure:
    """Draw a figure from a `study.Study` and save it, unless a committed profile's file belongs to these tables already."""
    figure, profile = draw(name, study), study.profile.name
    kept = [paths.figures(profile) / f"{name}.{kind}" for kind in ("pdf", "png")]
    current = all(path.is_file() for path in kept) and source(kept[1]) == _source(name, study)
    if profile not in profiles.COMMITTED or not current:
        save(figure, name, profile, study)
    return figure


class _OnDisk:
    """The tables of a profile as its folder holds them: unlike `study.Study` it makes none."""

    def __init__(self, profile: str) -> None:
        self.profile, self.folder = profiles.get(profile), paths.results(profile)
        self.manifest = files.read_json(self.folder / "manifest.json") or {"tables": {}}

    def __getitem__(self, name: str) -> pd.DataFrame:
        path, entry = self.folder / f"{name}.csv", self.manifest["tables"].get(name)
        if entry is None or not files.intact(path, entry["sha256"]):
            raise ValueError(f"{path}: missing, or not as its manifest says; run `make reproduce PROFILE={self.profile.name}`")
        return pd.read_csv(path)


def render(profile: str, progress: bool = True) -> list[Path]:
    """Draw and save every figure that the arms of `profile` allow, from its tables on disk alone; the paths written.

    Raises ValueError if one of those tables is missing or damaged.
    """
    from tqdm.auto import tqdm

    from tying_utils.study import TABLES

    tables, written = _OnDisk(profile), []
    arms = set(tables.profile.arms)
    names = [name for name, drawing in FIGURES.items() if all(arms.issuperset(TABLES[t][1]) for t in drawing.needs)]
    for name in tqdm(names, desc=f"drawing {profile}", disable=not progress, leave=False):
        written += save(draw(name, tables), name, profile, tables)
    return written
