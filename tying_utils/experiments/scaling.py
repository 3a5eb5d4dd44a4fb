"""Notebooks 04 and 07, claim C4: a larger scale of the input path's gradient takes the output bias away, at a price."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from tying_utils.base.names import TIED, UNTIED
from tying_utils.experiments import style
from tying_utils.experiments.alignment import output_bias
from tying_utils.experiments.judge import Evidence, Statistic
from tying_utils.experiments.looks import BLACK, CORPORA, DASHED, LEANING, LOOKS, NO_EFFECT, PURPLE, W_WITH, Look
from tying_utils.experiments.style import TWO_COLUMNS
from tying_utils.experiments.tables import Tables, slopes, tuned, where, with_scaling
from tying_utils.study.sweep import Sweep

FIGURES = style.Gallery()


def per_decade(table: pd.DataFrame, column: str) -> pd.Series:
    """Return by seed the least-squares slope of `column` against log10 of the input scale, over all tied arms."""
    tied = table[table["arm"] != UNTIED]
    return slopes(tied, column, tied["input_scale"])


def evidence(tables: Tables) -> Evidence:
    """Yield the statistics of C4, from the tables alignment, lens and losses and their scaled likes."""
    bias = output_bias(where(with_scaling(tables, "alignment"), kind="orthogonal"))
    words, unit = "output bias, orthogonal, per decade of input scale", "corrected alignment per decade"
    paper = "x5: 0.168 to 0.147, one run"
    slope = Statistic("bias_per_decade", "C4", words, unit, claimed="below", published=paper)
    yield slope, per_decade(bias, "output_bias")
    words = "lens KL at the input, bits per decade"
    lens = Statistic("lens_per_decade", "C4", words, "bits per token per decade", claimed="below")
    yield lens, per_decade(tuned(with_scaling(tables, "lens"), 0), "kl_bits")
    words, paper = "validation loss, nats per decade of input scale", "WikiText-2 perplexity 35.71 to 36.64"
    price = Statistic("loss_per_decade", "C4 price", words, "nats per token per decade", published=paper)
    yield price, per_decade(with_scaling(tables, "losses"), "validation_loss")


def sweep_evidence(tables: Tables) -> Evidence:
    """Yield the statistics of C4 over both scales, from the table sweep_alignment."""
    rows, unit = tables["sweep_alignment"], "corrected alignment per decade"
    bias = output_bias(where(rows, step=rows["step"].max()))
    words = "output bias, orthogonal, per decade of"
    own = where(bias, input_scale=1.0)
    output = Statistic("bias_per_output_decade", "C4 sweep", f"{words} output scale, input scale 1", unit)
    yield output, slopes(own, "output_bias", own["output_scale"])
    ratio = Statistic("bias_per_ratio_decade", "C4 sweep", f"{words} input over output scale, all pairs", unit, claimed="below")
    yield ratio, slopes(bias, "output_bias", bias["input_scale"] / bias["output_scale"])


def _by_scale(ax: Axes, table: pd.DataFrame, column: str, ylabel: str) -> None:
    """Draw the tied arms against their scale, and the untied one, which has none, as level lines."""
    ax.set_xscale("log")
    style.reference(ax, where(table, arm=UNTIED)[column], LOOKS[UNTIED])
    tied = table[table["arm"] != UNTIED]
    style.curve(ax, tied, "input_scale", column, LOOKS[TIED], bars=True)
    style.scale_axis(ax, tied["input_scale"], ylabel)


@FIGURES.reads("04_scaling", "alignment", "scaling_alignment", "lens", "scaling_lens", "losses", "scaling_losses")
def scaling(tables: Tables) -> Figure:
    """Draw Tables 2 and 6: alignment, early layers and loss against the factor on the input path's gradient."""
    figure, (left, middle, right) = style.panels(
        TWO_COLUMNS, 2.6, "Is W nearer to E or to U?", "How far is the input (lens)?", "What does it cost?"
    )
    alignment = with_scaling(tables, "alignment")
    left.set_xscale("log")
    for source, look in W_WITH.items():
        rows = where(alignment, kind="orthogonal", target="tied", source=source)
        style.curve(left, rows, "input_scale", "corrected", look, bars=True)
    style.level(left, 0)
    style.scale_axis(left, rows["input_scale"], "alignment (cosine, corrected)")
    lens = tuned(with_scaling(tables, "lens"), 0)
    _by_scale(middle, lens, "kl_bits", "lens KL (bits per token)")
    _by_scale(right, with_scaling(tables, "losses"), "validation_loss", "loss (nats per token)")
    looks = [*W_WITH.values(), LOOKS[TIED], replace(LOOKS[UNTIED], marker=""), replace(NO_EFFECT, label="chance")]
    return style.finish(figure, alignment, looks, "a: orthogonal map, chance-corrected. b: tuned lens.")


@FIGURES.reads("07_map", "sweep_alignment", "sweep_losses", "sweep_share", "sweep_roles", corpus=None)
def sweep_map(tables: Tables) -> Figure:
    """Draw output bias and loss over the grid of both scales, with the line where the table leans to neither side."""
    corpora = list(tables["sweep_losses"]["corpus"].unique())
    titles = [f"{words}, {CORPORA[corpus].label}" for corpus in corpora for words in ("Output bias", "Loss")]
    figure, panels = style.panels(TWO_COLUMNS, 0.3 + 2.5 * len(corpora), *titles, rows=len(corpora))
    lines = {"bias": Look("output bias 0", BLACK), "roles": Look("both roles equally pure", PURPLE, line=DASHED)}
    for corpus, left, right in zip(corpora, panels[::2], panels[1::2], strict=True):
        swept = Sweep("", corpus, {name: where(tables[name], corpus=corpus) for name in FIGURES["07_map"].needs})
        bias = _grid(swept, lambda pair, s=swept: s.bias(pair)[:, -1])
        loss = _grid(swept, swept.loss)
        most = np.abs(bias).max()
        _heat(left, swept, bias, LEANING, (-most, most), "output bias (corrected alignment)")
        words = "loss over the floor" if swept.has_floor else "validation loss"
        _heat(right, swept, loss, "cividis_r", (loss.min(), loss.max()), f"{words} (nats per token)")
        levels = {"bias": bias}
        if swept.has_roles:
            levels["roles"] = _grid(swept, lambda pair, s=swept: s.purity(pair, "target") - s.purity(pair, "source"))
        for ax in (left, right):
            for name, values in levels.items():
                if values.min() < 0 < values.max():
                    ax.contour(values, levels=[0], colors=lines[name].colour, linestyles=[lines[name].line], linewidths=1.5)
    style.legend(figure, lines.values())
    words = f"Cells: means, {style.seeds(tables['sweep_losses'])}. Towards the lower right the input path weighs more; along a "
    words += "rising diagonal the ratio of the scales stays. Where there is no line, the grid does not cross it."
    return style.small_print(figure, words, tight=True)


def _grid(swept: Sweep, values: Callable[[tuple[float, float]], np.ndarray]) -> np.ndarray:
    """Return means over seeds, a row per output scale and a column per input scale."""
    return np.array([[values((a, b)).mean() for a in swept.input_scales] for b in swept.output_scales])


def _heat(ax: Axes, swept: Sweep, values: np.ndarray, colours: Any, limits: tuple[float, float], label: str) -> None:
    """Draw a heat map whose cells say their value too."""
    image = ax.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], origin="lower", aspect="auto")
    ax.get_figure(root=True).colorbar(image, ax=ax, label=label)  # type: ignore[union-attr]
    for (row, column), value in np.ndenumerate(values):
        red, green, blue, _ = image.to_rgba(value)  # type: ignore[misc]
        ink = "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.45 else "black"
        rim = [withStroke(linewidth=1.2, foreground=image.to_rgba(value))]  # against the lines
        words = f"{value:.2f}".replace("-", "−")
        ax.text(column, row, words, ha="center", va="center", fontsize=6, color=ink, path_effects=rim, zorder=5)
    ax.grid(visible=False)
    ax.set_xticks(range(len(swept.input_scales)), [f"{scale:g}" for scale in swept.input_scales])
    ax.set_yticks(range(len(swept.output_scales)), [f"{scale:g}" for scale in swept.output_scales])
    ax.set(xlabel="input scale", ylabel="output scale")
