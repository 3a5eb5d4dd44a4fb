"""Notebook 03, claim C3: the early layers of a tied model are further from its prediction, and contribute less."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from tying_utils.base.names import TIED, UNTIED
from tying_utils.experiments import style
from tying_utils.experiments.judge import Evidence, Statistic
from tying_utils.experiments.looks import DARK, DOTTED, LOOKS, NO_EFFECT, Look
from tying_utils.experiments.style import ONE_COLUMN, TWO_COLUMNS
from tying_utils.experiments.tables import Tables, tied_less_untied, tuned, where

FIGURES = style.Gallery()


def early_layers(residual: pd.DataFrame) -> pd.DataFrame:
    """Return by arm and seed the summed share of the residual stream's norm that the first half of the layers holds."""
    blocks = residual[residual["layer"] >= 0]
    early = blocks[blocks["layer"] < (blocks["layer"].max() + 1) / 2]
    return early.groupby(["arm", "seed"], as_index=False)["share"].sum()


def gap_at_equal_loss(lens: pd.DataFrame, losses: pd.DataFrame, layer: int = 0) -> pd.DataFrame:
    """Return by seed the lens KL of the tied arm minus that of the untied one where both have the same loss.

    An arm that has learnt less is nearer to its own prediction or further from it for that alone. So each arm's KL is read as
    a function of its loss over checkpoints or runs of several lengths, linear between neighbouring losses, and the two are
    subtracted over the losses that both arms of a seed cover; beyond them nothing is extrapolated.

    Args:
        lens: columns arm, seed, layer and kl_bits, of one kind of lens, with what tells the lengths of an arm and seed apart.
        losses: a row for each arm, seed and length, with the column validation_loss (nats per token). It is put to the rows
            of `lens` by all columns that both tables have.
        layer: where the lens reads, 0 the input.

    Returns:
        A row per seed: low, high (the losses that both arms cover, nats per token), gap (mean over them) and gap_at_low (at
        the lowest), float64, bits per token. All four are nan where the arms have no loss in common.

    Raises:
        ValueError: `losses` that have not exactly one finite loss for each row of `lens`, or a table without these columns.
    """
    for name, table, needed in (("lens", lens, ("layer", "kl_bits")), ("losses", losses, ("validation_loss",))):
        if missing := {"arm", "seed", *needed} - {*table}:
            raise ValueError(f"{name}: the columns {sorted(missing)} are needed beside {[*table]}")
    lens = where(lens, layer=layer)
    both = [str(column) for column in lens if column in losses]
    points = lens.merge(losses[[*both, "validation_loss"]], how="left", on=both)
    if len(points) > len(lens) or not np.isfinite(points[["validation_loss", "kl_bits"]]).all(axis=None):
        raise ValueError(f"losses: one finite validation_loss is needed for each {', '.join(both)} of lens, got more or none")
    rows = []
    for seed, own in points.groupby("seed"):
        # Lengths of equal loss count as one point, their mean.
        untied, tied = (where(own, arm=arm).groupby("validation_loss")["kl_bits"].mean() for arm in (UNTIED, TIED))
        low, high = max(untied.index.min(), tied.index.min()), min(untied.index.max(), tied.index.max())
        if not low <= high:  # nan where an arm is missing
            rows.append((seed, *[np.nan] * 4))
            continue
        at = np.unique([low, high, *(loss for loss in (*untied.index, *tied.index) if low <= loss <= high)])
        gap = np.interp(at, tied.index, tied) - np.interp(at, untied.index, untied)
        rows.append((seed, low, high, np.trapezoid(gap, at) / (high - low) if high > low else gap[0], gap[0]))
    return pd.DataFrame(rows, columns=["seed", "low", "high", "gap", "gap_at_low"])


def gap_by_steps(lens_steps: pd.DataFrame) -> pd.DataFrame:
    """Return the lens KL at the input, tied minus untied, by how long the lens was trained and on which text it is read.

    lens_steps: the table called so of the axis of length. Columns: place (where it has one), tokens_per_weight, trained (of the
    lens: "25 steps" from the identity, say, or "to its end"), text, seed, gap (bits per token).
    """
    rows = where(lens_steps, layer=0)
    words = rows["steps"].astype(int).astype(str) + " steps"
    return _gap(rows.assign(trained=words.where(rows["lens"] == "stopped", "to its end")), "trained", "text", of="kl_bits")


def gap_without(ablation: pd.DataFrame) -> pd.DataFrame:
    """Return by how much more the loss of the tied model rises than that of the untied one, part by part.

    ablation: the table called so of the axis of length. Columns: place (where it has one), tokens_per_weight, without ("the
    embedding", "layer 1" and so on), how ("mean" or "zero" takes the part's place), seed, gap (nats per token).
    """
    layers = "layer " + (ablation["layer"] + 1).astype(str)
    return _gap(ablation.assign(without=layers.where(ablation["layer"] >= 0, "the embedding")), "without", "how", of="increase")


def _gap(table: pd.DataFrame, *keys: str, of: str) -> pd.DataFrame:
    """Return the column `of` of the tied arm minus that of the untied one, called gap, in the order of the table."""
    index = [key for key in ("place", "tokens_per_weight", *keys, "seed") if key in table]
    wide = table.pivot_table(index=index, columns="arm", values=of, sort=False)
    return (wide[TIED] - wide[UNTIED]).dropna().rename("gap").reset_index()


def early_losses(ablation: pd.DataFrame) -> pd.DataFrame:
    """Return by arm and seed what a block of the first half of the layers adds to the loss when its mean takes its place."""
    blocks = where(ablation, component="block", how="mean")
    early = blocks[blocks["layer"] < (blocks["layer"].max() + 1) / 2]
    return early.groupby(["arm", "seed"], as_index=False)["increase"].mean()


def evidence(tables: Tables) -> Evidence:
    """Yield the statistics of C3, from the tables lens, lens_budget and residual."""
    lens, at_input = tables["lens"], "8.86 - 7.01 = 1.85"
    for layer in range(max(1, int(lens["layer"].max()) // 2)):
        name, point, paper = f"lens_gap_layer_{layer}", f"layer {layer}", "one layer off"
        if layer == 0:
            name, point, paper = "lens_gap", "the input", at_input
        gap = Statistic(name, "C3", f"lens KL at {point}, tied - untied, bits", "bits per token", published=paper)
        yield gap, tied_less_untied(tuned(lens, layer), "kl_bits")
    if "lens_budget" in tables:
        budget = where(tables["lens_budget"], layer=0)
        steps = budget["steps"].min()
        words = f"the same at the input, lens stopped after {steps} steps"
        stopped = Statistic("lens_gap_stopped", "C3 lens", words, "bits per token", published=at_input)
        yield stopped, tied_less_untied(where(budget, steps=steps), "kl_bits")
    if "ablation" in tables:
        words = "loss without a block of the first half, tied - untied"
        lost = Statistic("early_ablation", "C3", words, "nats per token", claimed="below")
        yield lost, tied_less_untied(early_losses(tables["ablation"]), "increase")
    words = "early blocks' share of the residual norm, tied - untied"
    blocks = Statistic("early_blocks", "C3", words, "fraction", claimed="below", smallest=0.02)
    yield blocks, tied_less_untied(early_layers(tables["residual"]), "share")


def lens_curves(ax: Axes, lens: pd.DataFrame, arms: Iterable[str], *, kind: str = "tuned", indexing: str = "matched") -> None:
    """Draw lens KL by layer of each of `arms`; `kind` of lens ("tuned", "logit") and `indexing` as in the table."""
    curves = where(lens, lens=kind, indexing=indexing)
    for arm in arms:
        style.curve(ax, where(curves, arm=arm), "layer", "kl_bits", LOOKS[arm], bars=True)
    style.layers(ax, "input", "output", lens["layer"].max())
    ax.set(ylabel="lens KL (bits per token)", ylim=(0, None))


@FIGURES.reads("03_lens", "lens")
def lens(tables: Tables) -> Figure:
    """Draw Figure 2: how far each layer is from the model's own prediction, with matched lenses and one layer off."""
    table, arms = tables["lens"], (UNTIED, TIED)
    figure, (left, middle, right) = style.panels(
        TWO_COLUMNS, 2.6, "Tuned lens, read right", "Tuned lens, as published", "Logit lens"
    )
    lens_curves(left, table, arms)
    lens_curves(middle, table, arms, indexing="published")
    lens_curves(right, table, arms, kind="logit")
    note = "b: one layer off (translator k − 1 on layer k, and one on the last, whose KL must be 0). Vertical scales differ."
    return style.finish(figure, table, [LOOKS[arm] for arm in arms], note)


@FIGURES.reads("03_lens_budget", "lens_budget", "lens")
def lens_budget(tables: Tables) -> Figure:
    """Draw the KL at the input by how long the lens was trained from the identity; the converged lens as level lines."""
    table = where(tables["lens_budget"], layer=0)
    figure, (ax,) = style.panels(ONE_COLUMN, 2.9, "Is the gap there when the lens has learnt?")
    ax.set_xscale("log")
    for arm in (UNTIED, TIED):
        style.curve(ax, where(table, arm=arm), "steps", "kl_bits", LOOKS[arm], bars=True)
        converged = tuned(where(tables["lens"], arm=arm), 0)
        style.reference(ax, converged["kl_bits"], replace(LOOKS[arm], line=DOTTED))
    steps = sorted(table["steps"].unique())
    ax.set_xticks(steps, [str(step) for step in steps])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="steps that the lens was trained for", ylabel="lens KL at the input (bits per token)", ylim=(0, None))
    looks = [LOOKS[UNTIED], LOOKS[TIED], Look("converged lens", DARK, line=DOTTED)]
    return style.finish(figure, table, looks, "Curves: lenses trained from the identity.")


@FIGURES.reads("03_residual", "residual")
def residual(tables: Tables) -> Figure:
    """Draw what the embedding and each layer add to the residual stream, and to the logit of the right next token."""
    table = tables["residual"][tables["residual"]["component"] != "bias"]
    layers = table.groupby(["arm", "seed", "layer"], as_index=False)[["share", "attribution"]].sum()
    layers["place"] = layers["layer"] + 1
    figure, panels = style.panels(TWO_COLUMNS, 2.6, "Who fills the residual stream?", "Who names the next token?")
    for ax, column in zip(panels, ("share", "attribution"), strict=True):
        for arm in (UNTIED, TIED):
            style.curve(ax, where(layers, arm=arm), "place", column, LOOKS[arm], bars=True)
        style.layers(ax, "embedding", str(layers["place"].max()), layers["place"].max())
    panels[0].set(ylabel="share of the summed norms (fraction)", ylim=(0, None))
    panels[1].set(ylabel="added to the right next token (logits)")
    style.level(panels[1], 0)
    return style.finish(figure, table, [LOOKS[UNTIED], LOOKS[TIED], NO_EFFECT], "A layer: attention and MLP together.")
