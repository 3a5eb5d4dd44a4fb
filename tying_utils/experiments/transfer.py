"""Notebook 11: how soon a run learns a second text, what it forgets of the first, and what a probe reads off its tables.

Figures have a panel per text, whatever corpus its starts were trained on.
"""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from tying_utils.base.names import NEW_ROLES, TIED, UNTIED, WIKITEXT, scaled
from tying_utils.experiments import style
from tying_utils.experiments.judge import Evidence, Side, Statistic
from tying_utils.experiments.looks import ARMS, CHANCE, LOOKS, NO_EFFECT, TABLES, Look
from tying_utils.experiments.style import TWO_COLUMNS
from tying_utils.experiments.tables import Tables, where

FIGURES = style.Gallery()
_STARTS = {
    UNTIED: LOOKS[UNTIED],
    TIED: LOOKS[TIED],
    **ARMS,
}
_SHORT = {UNTIED: "untied", TIED: "tied", scaled(5): "input\n×5", "norm-match": "norm-\nmatch", "untie": "untied\nat ⅔"}
TARGET_AT = 1 / 3  # of its steps, the untied arm has the target loss: most arms then reach it in theirs


def steps_to(steps: ArrayLike, losses: ArrayLike, target: float) -> tuple[float, bool]:
    """Return the step at which a curve of losses first comes down to `target`, interpolated linearly between evaluations.

    It is (step, True); where the curve never does, (the last step, False), a lower bound. Raises ValueError unless the steps
    grow.
    """
    x, y = np.asarray(steps, float), np.asarray(losses, float)
    if not len(x) or x.shape != y.shape or (np.diff(x) <= 0).any():
        raise ValueError(f"steps: growing steps, a loss each, are needed, got {x.tolist()} for {len(y)} losses")
    below = np.flatnonzero(y <= target)
    if not len(below):
        return float(x[-1]), False
    last = below[0]
    if last == 0:
        return float(x[0]), True
    return float(np.interp(-target, -y[[last - 1, last]], x[[last - 1, last]])), True


def outcomes(losses: pd.DataFrame, forgetting: pd.DataFrame) -> pd.DataFrame:
    """Return how each run was fine-tuned, from the tables transfer_losses and transfer_forgetting, by corpus, `to`, arm, seed.

    Columns beside these: target, the loss on the new text that the untied arm of the seed has after a third of its steps
    (`TARGET_AT`; nats per token, one for all arms); steps, how many bring the arm there, and reached, whether any do (if not,
    steps are all there are, a lower bound); first and last, its loss before and after; bits_per_byte, the last one in bits per
    byte (nan in the two-role language, which has no bytes); forgetting, how much the loss on the old text has grown (nats per
    token).
    """
    keys, rows = ["corpus", "to", "arm", "seed"], []
    for (corpus, to, seed), part in losses.groupby(["corpus", "to", "seed"], sort=False):
        curves = {arm: curve.sort_values("step") for arm, curve in part.groupby("arm", sort=False)}
        untied = curves[UNTIED]
        target = float(np.interp(TARGET_AT * untied["step"].max(), untied["step"], untied["loss"]))
        for arm, curve in curves.items():
            steps, reached = steps_to(curve["step"], curve["loss"], target)
            ends = {"first": curve["loss"].iloc[0], "last": curve["loss"].iloc[-1]}
            ends["bits_per_byte"] = ends["last"] / math.log(2) / curve["bytes_per_token"].iloc[-1]
            own = {"target": target, "steps": steps, "reached": reached, **ends}
            rows.append({"corpus": corpus, "to": to, "arm": arm, "seed": seed, **own})
    lost = forgetting.assign(forgetting=forgetting["after"] - forgetting["before"])
    return pd.DataFrame(rows).merge(lost[[*keys, "forgetting"]], on=keys, validate="1:1")


def evidence(tables: Tables) -> Evidence:
    """Yield the statistics of "transfer", from the tables transfer_losses, transfer_forgetting and transfer_probe."""
    rows, probes = outcomes(tables["transfer_losses"], tables["transfer_forgetting"]), tables["transfer_probe"]
    measured = {"steps": ("steps to the target loss", "steps"), "forgetting": ("forgetting, nats", "nats per token")}
    for to, part in rows.groupby("to", sort=False):
        for column, (words, unit) in measured.items():
            for arm, gap in _less_tied(part, column).items():
                label = f"{words}, {to}, {arm} - tied"
                yield Statistic(f"{column}, {to}, {arm}", "transfer", label, unit, claimed="below"), gap
    # The role that a table holds is the one that it has to give up: less of the target's, and new target roles cost it less.
    if set(NEW_ROLES) <= set(rows["to"]):
        source, target = (_less_tied(where(rows, to=to), "steps") for to in NEW_ROLES)
        for arm in (arm for arm in where(probes, table="tied")["arm"].unique() if arm != TIED):
            label = f"steps to the target loss, {' minus '.join(NEW_ROLES)}, {arm} - tied"
            yield Statistic(f"steps, new roles, {arm}", "transfer", label, "steps"), source[arm] - target[arm]
    for question, own in where(probes, arm=TIED).groupby("question", sort=False):
        untied = where(probes, arm=UNTIED, table="input", question=question)
        label = f"probe for the {question}, corrected, tied - untied input table"
        side: Side = "above" if question == "target role" else "below"
        probe = Statistic(f"probe, {question}", "transfer", label, "corrected accuracy", claimed=side)
        yield probe, own.set_index("seed")["corrected"] - untied.set_index("seed")["corrected"]


def _less_tied(rows: pd.DataFrame, column: str) -> dict[str, pd.Series]:
    """Return by arm and seed how much more of `column` each arm has than the tied one."""
    wide = rows.pivot_table(index="seed", columns="arm", values=column)
    return {arm: wide[arm] - wide[TIED] for arm in rows["arm"].unique() if arm != TIED}


def _titles(names: list[str]) -> list[str]:
    return ["Python, then English" if to == WIKITEXT else f"Two-role, {to}" for to in names]


def _looks(table: pd.DataFrame) -> dict[str, Look]:
    """Return the looks of the arms in `table`, in one order."""
    return {arm: look for arm, look in _STARTS.items() if arm in set(table["arm"])}


@FIGURES.reads("11_loss", "transfer_losses", corpus=None)
def loss(tables: Tables) -> Figure:
    """Draw how far the loss of each start on the new text is from that of the tied one of its seed, by step of fine-tuning."""
    table = tables["transfer_losses"].sort_values(["seed", "step"])
    tied = where(table, arm=TIED)[["to", "seed", "step", "loss"]]
    table = table.merge(tied.rename(columns={"loss": "tied_loss"}), on=["to", "seed", "step"])
    table = table.assign(less_tied=table["loss"] - table["tied_loss"])
    names, looks = list(table["to"].unique()), {arm: look for arm, look in _looks(table).items() if arm != TIED}
    figure, panels = style.panels(TWO_COLUMNS, 2.8, *_titles(names))
    for to, ax in zip(names, panels, strict=True):
        for arm, look in looks.items():
            style.curve(ax, where(table, to=to, arm=arm), "step", "less_tied", look)
        style.level(ax, 0)
        ax.set(xlabel="step of fine-tuning", ylabel="loss, arm − tied (nats per token)")
    words = (
        "All starts are fine-tuned with the ordinary gradient on the same batches. Below 0 a start is ahead of the tied one."
    )
    return style.finish(figure, table, [*looks.values(), replace(NO_EFFECT, label="as the tied start")], words, bars=False)


@FIGURES.reads("11_outcomes", "transfer_losses", "transfer_forgetting", corpus=None)
def outcome(tables: Tables) -> Figure:
    """Draw how many steps reach the target loss on the new text, and how much is forgotten of the old one, by arm."""
    rows = outcomes(tables["transfer_losses"], tables["transfer_forgetting"])
    names, looks = list(rows["to"].unique()), _looks(rows)
    figure, panels = style.panels(TWO_COLUMNS, 4.6, *_titles(names), *[""] * len(names), rows=2)
    for to, above, below in zip(names, panels[: len(names)], panels[len(names) :], strict=True):
        own = where(rows, to=to)
        if not own["reached"].all():
            style.level(above, own["steps"].max())
        for ax, column, label in (
            (above, "steps", "steps to the target loss"),
            (below, "forgetting", "forgetting (nats per token)"),
        ):
            for place, (arm, look) in enumerate(looks.items()):
                values = where(own, arm=arm)[column]
                style.point(ax, place, values, look)
                ax.update_datalim([(place, value) for value in values])  # a seed may lie beyond the interval
            ax.autoscale_view()
            style.categories(ax, [_SHORT[arm] for arm in looks])
            ax.set(xlabel="start", ylabel=label)
    missed = int((~rows["reached"]).sum())
    words = "Target: the loss of the untied arm of the seed after a third of its steps. "
    words += f"{missed} of {len(rows)} runs do not reach it and count with all their steps. " if missed else ""
    words += "Forgetting: loss on the old text after fine-tuning minus that before."
    marks = [replace(look, line="none") for look in looks.values()]
    return style.finish(figure, rows, [*marks, *([replace(NO_EFFECT, label="all steps")] if missed else [])], words)


@FIGURES.reads("11_probe", "transfer_probe", corpus=None)
def probe(tables: Tables) -> Figure:
    """Draw what a linear probe reads off the rows of each table, beside chance."""
    table = tables["transfer_probe"]
    looks, questions = _looks(table), list(table["question"].unique())
    titles = ("Python, kind of token" if question == "category" else f"Two-role, {question}" for question in questions)
    places = [(arm, name) for arm in looks for name in TABLES if len(where(table, arm=arm, table=name))]
    figure, panels = style.panels(TWO_COLUMNS, 0.25 * len(places) + 1.2, *titles)
    for ax, question in zip(panels, questions, strict=True):
        for y, (arm, name) in enumerate(places):
            own = where(table, arm=arm, table=name, question=question)
            style.chance(ax, y, own, 0.35, across=True)
            style.row(ax, y, own["value"], looks[arm])
        ax.set(xlabel="balanced accuracy (fraction)", xlim=(0, 1))
    names = {"input": ", input E", "output": ", output U", "tied": ", W"}
    style.named_rows(panels, [looks[arm].label + names[name] for arm, name in places])
    chance = replace(CHANCE, label="chance (labels permuted)")
    marks = [*(replace(look, line="none") for look in looks.values()), chance]
    return style.finish(figure, table, marks, "On rows held out in five folds.")
