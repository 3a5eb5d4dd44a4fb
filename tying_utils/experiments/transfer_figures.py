"""The figures of fine-tuning: how soon a second text is learned, what is forgotten, and what a probe reads off the tables.

Seeds, means and intervals as in the figures of the claims; a panel a text, whatever corpus its starts were trained on.
"""

from dataclasses import replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tying_utils.base.names import TIED, UNTIED, WIKITEXT, scaled
from tying_utils.experiments import drawing, transfer_outcomes
from tying_utils.experiments.claims import Tables
from tying_utils.experiments.drawing import BLUE, DOTTED, LOOKS, ORANGE, PURPLE, TWO_COLUMNS, Look

FIGURES = drawing.Gallery()
_STARTS = {
    UNTIED: LOOKS[UNTIED],
    TIED: LOOKS[TIED],
    scaled(5): Look("input ×5", ORANGE, "s"),
    "norm-match": Look("norm-match", BLUE, "o"),
    "untie": Look("untie at ⅔", PURPLE, "v", DOTTED),
}
_SHORT = {UNTIED: "untied", TIED: "tied", scaled(5): "×5", "norm-match": "norm-\nmatch", "untie": "untie"}
_LETTERS = {"input": "E", "output": "U", "tied": "W"}


def _panels(height: float, rows: int, titles: list[str]) -> tuple[Figure, list[list[Axes]]]:
    """`rows` of panels, a column for each of `titles`."""
    figure, panels = drawing.panels(TWO_COLUMNS, height, *titles, *[""] * len(titles) * (rows - 1), rows=rows)
    return figure, [panels[row * len(titles) : (row + 1) * len(titles)] for row in range(rows)]


def _title(to: str) -> str:
    return "Python, then English" if to == WIKITEXT else f"Two-role, {to}"


def _looks(table: pd.DataFrame) -> dict[str, Look]:
    """Of the arms in `table`, in one order."""
    return {arm: look for arm, look in _STARTS.items() if arm in set(table["arm"])}


@FIGURES.reads("11_loss", "transfer_losses", corpus=None)
def loss(tables: Tables) -> Figure:
    """Loss on the new text by step of fine-tuning, and how far each arm is from the tied one of its seed."""
    table = tables["transfer_losses"].sort_values(["seed", "step"])
    table = table.assign(above=table["loss"] - table["floor"].fillna(0))
    tied = drawing.where(table, arm=TIED)[["to", "seed", "step", "loss"]]
    table = table.merge(tied.rename(columns={"loss": "tied_loss"}), on=["to", "seed", "step"])
    table = table.assign(less_tied=table["loss"] - table["tied_loss"])
    names, looks = list(table["to"].unique()), _looks(table)
    figure, (upper, lower) = _panels(4.6, 2, [_title(to) for to in names])
    for to, above, below in zip(names, upper, lower, strict=True):
        own = drawing.where(table, to=to)
        known = own["floor"].notna().all()
        for arm, look in looks.items():
            drawing.curve(above, drawing.where(own, arm=arm), "step", "above", look)
            if arm != TIED:
                drawing.curve(below, drawing.where(own, arm=arm), "step", "less_tied", look)
        drawing.level(below, 0)
        above.set(xlabel="step of fine-tuning", ylabel="loss over the floor (nats)" if known else "loss (nats per token)")
        below.set(xlabel="step of fine-tuning", ylabel="loss, arm − tied (nats)")
    words = (
        "All arms are fine-tuned with the ordinary gradient on the same batches. Under the dotted line an arm is ahead of the "
    )
    words += "tied one of its seed. Nats a token; floor: the language's own loss."
    return drawing.finish(figure, table, looks.values(), words)


@FIGURES.reads("11_outcomes", "transfer_losses", "transfer_forgetting", corpus=None)
def outcomes(tables: Tables) -> Figure:
    """How many steps reach the target loss on the new text, and how much is forgotten of the old one, by arm."""
    rows = transfer_outcomes.outcomes(tables["transfer_losses"], tables["transfer_forgetting"])
    names, looks = list(rows["to"].unique()), _looks(rows)
    figure, (upper, lower) = _panels(4.4, 2, [_title(to) for to in names])
    for to, above, below in zip(names, upper, lower, strict=True):
        own = drawing.where(rows, to=to)
        if not own["reached"].all():
            drawing.level(above, own["steps"].max())
        for ax, column, label in ((above, "steps", "steps to the target loss"), (below, "forgetting", "forgetting (nats)")):
            for place, (arm, look) in enumerate(looks.items()):
                values = drawing.where(own, arm=arm)[column]
                drawing.point(ax, place, values, look)
                ax.update_datalim([(place, value) for value in values])  # a seed may lie beyond the interval
            ax.autoscale_view()
            drawing.categories(ax, [_SHORT[arm] for arm in looks])
            ax.set(xlabel="start", ylabel=label)
    missed = int((~rows["reached"]).sum())
    words = "Target: the loss of the untied arm of the seed after a third of its steps. "
    words += f"{missed} of {len(rows)} runs do not reach it and count with all their steps (dotted). " if missed else ""
    words += "Forgetting: loss on the old text after fine-tuning, less that before (nats per token)."
    return drawing.finish(figure, rows, [replace(look, line="none") for look in looks.values()], words)


@FIGURES.reads("11_probe", "transfer_probe", corpus=None)
def probe(tables: Tables) -> Figure:
    """What a linear probe reads off the rows of each table, beside chance."""
    table = tables["transfer_probe"]
    looks, questions = _looks(table), list(table["question"].unique())
    titles = ("Python, kind of token" if question == "category" else f"Two-role, {question}" for question in questions)
    figure, panels = drawing.panels(TWO_COLUMNS, 2.9, *titles)
    places = [(arm, name) for arm in looks for name in _LETTERS if len(drawing.where(table, arm=arm, table=name))]
    for ax, question in zip(panels, questions, strict=True):
        for x, (arm, name) in enumerate(places):
            own = drawing.where(table, arm=arm, table=name, question=question)
            drawing.chance(ax, x, own, 0.35)
            drawing.point(ax, x, own["value"], looks[arm])
        drawing.categories(ax, [_LETTERS[name] for _, name in places])
        ax.set(xlabel="table", ylabel="balanced accuracy (fraction)", ylim=(0, 1))
    words = "E: input table, U: output table, W: tied table. On rows held out in five folds."
    chance = replace(drawing.CHANCE, label="chance (labels permuted)")
    return drawing.finish(figure, table, [*(replace(look, line="none") for look in looks.values()), chance], words)
