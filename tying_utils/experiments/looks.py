"""How tables, arms, roles and corpora look in every figure: one meaning for a colour."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.lines import Line2D

from tying_utils.base.names import LABELS, PYTHON, TIED, TWO_ROLE, UNTIED, WIKITEXT, scaled


@dataclass(frozen=True)
class Look:
    """How one table, arm or pair is drawn, and what the legend calls it."""

    label: str
    colour: str
    marker: str = ""
    line: Any = "-"
    hollow: bool = False

    @property
    def mark(self) -> dict[str, Any]:
        """Return what `Axes.plot` needs to draw a point of it."""
        face = "white" if self.hollow else self.colour
        return {"color": self.colour, "marker": self.marker, "markerfacecolor": face, "markeredgecolor": self.colour}

    def handle(self) -> Line2D:
        """Return what a legend shows of it."""
        return Line2D([], [], label=self.label, linestyle=self.line, markersize=3.5, **self.mark)


# Each of the first four has one meaning: input, output, untied, tied. All else is grey, purple or rose.
BLUE, ORANGE, GREEN, BLACK = "#0173b2", "#de8f05", "#029e73", "#000000"
GREY, DARK, PURPLE, ROSE = "#777777", "#404040", "#9c4f96", "#cc6677"
LEANING = LinearSegmentedColormap.from_list("leaning", [BLUE, "#f7f7f7", ORANGE])  # to the input, to neither, to the output
DASHED, DOTTED = (0, (4, 1.5)), (0, (1, 1))
LOOKS = {
    "input": Look("untied input E", BLUE, "o"),
    "output": Look("untied output U", ORANGE, "s"),
    TIED: Look("tied", BLACK, "D"),
    UNTIED: Look("untied", GREEN, "^", DASHED),
}
W_WITH = {name: replace(LOOKS[name], label=f"W with {LOOKS[name].label}") for name in ("input", "output")}
ROLE_LOOKS = {"source": Look("source role", BLUE, "o"), "target": Look("target role", ORANGE, "s")}
TABLES = {"input": LOOKS["input"], "output": LOOKS["output"], "tied": replace(LOOKS[TIED], label="tied W")}
PAIRS = {
    ("input", "tied"): replace(LOOKS["input"], label="tied W and\nuntied input E"),
    ("output", "tied"): replace(LOOKS["output"], label="tied W and\nuntied output U"),
    ("input", "output"): Look("untied E\nand U", GREY, "v"),
}
CORPORA = {
    PYTHON: Look(LABELS[PYTHON], DARK, "o", "none"),
    WIKITEXT: Look(LABELS[WIKITEXT], DARK, "v", "none", hollow=True),
    TWO_ROLE: Look(LABELS[TWO_ROLE], "#8c8c8c", "X", "none"),
}
SOURCE = Look("source of packages", DARK, "P", "none")
ARMS = {
    scaled(5): Look("tied, input ×5", PURPLE, "v"),
    "norm-match": Look("tied, norm-match", ROSE, "P", DASHED),
    "untie": Look("untied at ⅔", GREY, "X", DOTTED),
}
NO_EFFECT = Look("no effect", GREY, line=DOTTED)
CHANCE = Look("chance (rows permuted)", GREY, line=DOTTED)


def scale_looks(table: pd.DataFrame) -> dict[str, Look]:
    """Return the looks of all arms, with the scaled ones in `table`: darker for a larger scale."""
    scales = sorted(table.loc[table["arm"] != UNTIED, "input_scale"].unique())
    looks = dict(LOOKS)
    for place, scale in enumerate(scales):
        shade = to_hex(colormaps["RdPu"](0.35 + 0.65 * place / max(1, len(scales) - 1)))
        looks.setdefault(scaled(scale), Look(f"input ×{scale:g}", shade, "vP<>hX*dp"[place % 9]))
    return looks


def in_order(labels: Sequence[str]) -> list[Look]:
    """Return looks for what has an order and no colour of its own, such as sizes: from light to dark grey."""
    shades = np.linspace(0.38, 0.8, len(labels))
    kinds = zip("vPX*hp", (DOTTED, DASHED, "-") * 2, strict=True)
    return [
        Look(label, to_hex(colormaps["Greys"](shade)), marker, line)
        for label, shade, (marker, line) in zip(labels, shades, kinds, strict=False)
    ]
