"""What each notebook compares, as a picture of boxes and arrows: nothing in it is measured."""

import io
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from PIL import Image

from tying_utils.experiments import style
from tying_utils.experiments.looks import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE

_HEIGHT, _ROWS = 1.5, 6  # of a table, in the units of the panel; rows that are drawn of it
_LIGHT = "#f2f2f2"
START = "start"
HEIGHTS = {START: 4.6}  # of the schematics that are not three units high


def _table(ax: Axes, x: float, y: float, colour: str, name: str, words: str = "", height: float = _HEIGHT) -> None:
    """Draw a table centred at x, y: its rows, its name inside, and `words` below."""
    for row in range(_ROWS):
        low = y - height / 2 + row * height / _ROWS
        ax.add_patch(Rectangle((x - 0.35, low), 0.7, height / _ROWS, facecolor="white", edgecolor=colour, linewidth=0.9))
    box = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": colour, "linewidth": 0.9}
    ax.text(x, y, name, ha="center", va="center", color=colour, fontsize=10, fontweight="bold", bbox=box)
    ax.text(x, y - height / 2 - 0.1, words, ha="center", va="top", fontsize=7)


def _box(ax: Axes, x: float, y: float, words: str, width: float = 1.5, height: float = 0.5, colour: str = GREY) -> None:
    low = (x - width / 2, y - height / 2)
    ax.add_patch(FancyBboxPatch(low, width, height, boxstyle="round,pad=0.03", facecolor=_LIGHT, edgecolor=colour))
    ax.text(x, y, words, ha="center", va="center", fontsize=7)


def _arrow(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], words: str = "", colour: str = GREY, both: bool = False
) -> None:
    """Draw an arrow, or one with two heads, with `words` above its middle."""
    look = {"arrowstyle": "<|-|>" if both else "-|>", "mutation_scale": 9, "linewidth": 1.4, "color": colour}
    ax.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **look))
    middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.08
    ax.text(*middle, words, ha="center", va="bottom", fontsize=7, color=colour)


def _dial(ax: Axes, x: float, y: float, name: str, colour: str) -> None:
    box = {"boxstyle": "circle,pad=0.2", "facecolor": "white", "edgecolor": colour, "linewidth": 1.4}
    ax.text(x, y, name, ha="center", va="center", fontsize=8, color=colour, bbox=box)


def _model(ax: Axes, x: float, y: float, tables: tuple[str, str], colours: tuple[str, str], words: str) -> None:
    """Draw a model from left to right: tokens, table, layers, table, next token."""
    _table(ax, x, y, colours[0], tables[0], "reads tokens")
    _arrow(ax, (x + 0.45, y), (x + 1.15, y))
    _box(ax, x + 1.8, y, words, 1.1, 1.2)
    _arrow(ax, (x + 2.45, y), (x + 3.15, y))
    _table(ax, x + 3.6, y, colours[1], tables[1], "writes tokens")


def models(ax: Axes) -> None:
    """Draw an untied model and a tied one."""
    _model(ax, 0.8, 1.5, ("E", "U"), (BLUE, ORANGE), "untied:\ntwo\ntables")
    _model(ax, 5.6, 1.5, ("W", "W"), (BLACK, BLACK), "tied:\none table\nused twice")


def alignment(ax: Axes) -> None:
    """Draw a tied table between the two tables of an untied model."""
    _table(ax, 1.5, 1.5, BLUE, "E", "input table of an untied model")
    _table(ax, 5.0, 1.5, BLACK, "W", "table of a tied model")
    _table(ax, 8.5, 1.5, ORANGE, "U", "output table of an untied model")
    _arrow(ax, (1.95, 1.5), (4.55, 1.5), "rotate E onto W:\nhow alike are the rows?", BLUE, both=True)
    _arrow(ax, (5.45, 1.5), (8.05, 1.5), "rotate U onto W:\nhow alike are the rows?", ORANGE, both=True)


def _two_paths(ax: Axes, left: str, right: str) -> None:
    _box(ax, 1.2, 1.5, "tokens are\nread", 1.4, 0.8)
    _table(ax, 5.0, 1.5, BLACK, "W", "both gradients add up in one table")
    _box(ax, 8.8, 1.5, "the next token\nis predicted", 1.6, 0.8)
    _arrow(ax, (1.95, 1.5), (4.55, 1.5), left, BLUE)
    _arrow(ax, (7.95, 1.5), (5.45, 1.5), right, ORANGE)


def gradients(ax: Axes) -> None:
    """Draw the two gradients of a tied table."""
    _two_paths(ax, "gradient of the input path\nrows that were read", "gradient of the output path\nevery row")


def lens(ax: Axes) -> None:
    """Draw a lens at each layer of a model."""
    _table(ax, 0.8, 1.1, BLACK, "W", "embedding", 1.2)
    stops = [2.6, 4.4, 6.2]
    for number, x in enumerate(stops, 1):
        _box(ax, x, 1.1, f"layer {number}", 1.0, 0.7)
    _box(ax, 8.6, 1.1, "final\nprediction", 1.3, 0.8, BLACK)
    places = [1.25, *(x + 0.55 for x in stops)]
    for start, end in zip(places, [2.05, 3.85, 5.65, 7.9], strict=True):
        _arrow(ax, (start, 1.1), (end, 1.1))
        _arrow(ax, (start + 0.3, 1.15), (start + 0.3, 2.2), colour=PURPLE)
        ax.text(start + 0.3, 2.25, "lens", ha="center", va="bottom", fontsize=7, color=PURPLE)
    ax.text(8.6, 2.35, "how far is what the lens reads\nfrom the final prediction?", ha="center", fontsize=7, color=PURPLE)


def scaling(ax: Axes) -> None:
    """Draw a dial on the input path's gradient."""
    _two_paths(ax, "", "gradient of the output path")
    ax.text(3.2, 2.05, "gradient of the input path", ha="center", fontsize=7, color=BLUE)
    _dial(ax, 3.2, 1.5, "× s", BLUE)
    ax.text(2.5, 0.7, "turn it up: does W leave U for E?", ha="center", fontsize=7)


def drift(ax: Axes) -> None:
    """Draw a table before and after training."""
    for y, colour, name in ((2.4, BLUE, "E"), (1.0, ORANGE, "U")):
        _table(ax, 1.5, y, colour, name, height=1.1)
        _table(ax, 6.0, y, colour, name, height=1.1)
        _arrow(ax, (2.0, y), (5.5, y), "training: how far does each row turn?", colour)
    ax.text(1.5, 0.15, "first step", ha="center", fontsize=7)
    ax.text(6.0, 0.15, "later step", ha="center", fontsize=7)
    ax.text(8.4, 1.7, "and do rare and common\ntokens differ?", ha="center", va="center", fontsize=7)


def roles(ax: Axes) -> None:
    """Draw the two hidden classes of a token."""
    _box(ax, 1.4, 1.5, "the tokens before", 1.8, 0.7)
    _box(ax, 5.0, 1.5, "a token\nwith two hidden classes", 2.0, 0.9, BLACK)
    _box(ax, 8.6, 1.5, "the tokens after", 1.8, 0.7)
    _arrow(ax, (2.35, 1.5), (3.95, 1.5), "its target class:\nwhat it may follow", ORANGE)
    _arrow(ax, (6.05, 1.5), (7.65, 1.5), "its source class:\nwhat may follow it", BLUE)
    ax.text(2.9, 0.75, "an output table needs this", ha="center", fontsize=7, color=ORANGE)
    ax.text(7.1, 0.75, "an input table needs this", ha="center", fontsize=7, color=BLUE)


def explorer(ax: Axes) -> None:
    """Draw a dial on each path's gradient."""
    _two_paths(ax, "", "")
    for x, name, colour, words in ((3.2, "× s_in", BLUE, "input path"), (6.8, "× s_out", ORANGE, "output path")):
        ax.text(x, 2.2, f"gradient of the {words}", ha="center", fontsize=7, color=colour)
        _dial(ax, x, 1.5, name, colour)


def public(ax: Axes) -> None:
    """Draw the public models that are compared."""
    pairs = (("OLMo-1B-0724", "OLMo-1B"), ("Pythia-2.8B", "GPT-Neo-2.7B"), ("Qwen3-8B", "Qwen3-4B"))
    for x, (untied, tied) in zip((1.7, 5.0, 8.3), pairs, strict=True):
        for shift, colour, name in ((-1.05, BLUE, "E"), (0, BLACK, "W"), (1.05, ORANGE, "U")):
            _table(ax, x + shift, 1.6, colour, name)
        ax.text(x, 0.35, f"{tied}: W\n{untied}: E and U", ha="center", va="center", fontsize=7)


def remedies(ax: Axes) -> None:
    """Draw the ways between one table and two."""
    _table(ax, 0.8, 1.5, BLACK, "W", "tied")
    _table(ax, 8.6, 1.5, BLUE, "E")
    _table(ax, 9.5, 1.5, ORANGE, "U")
    ax.text(9.05, 0.65, "untied", ha="center", va="top", fontsize=7)
    for y, words in (
        (2.4, "weigh the two gradients"),
        (1.5, "change the optimizer's step"),
        (0.6, "other tables, or untie later"),
    ):
        _box(ax, 4.7, y, words, 3.4, 0.5)
        _arrow(ax, (1.3, 1.5), (2.95, y))
        _arrow(ax, (6.45, y), (8.15, 1.5))


def places(ax: Axes) -> None:
    """Draw where else the claims are asked."""
    for row, words in enumerate(("OLMo", "GPT-NeoX", "GPT-2", "Llama", "Qwen3")):
        _box(ax, 1.2, 2.7 - 0.58 * row, words, 1.7, 0.4)
    _box(ax, 5.0, 1.55, "the same pair each time:\ntied and untied, equal tokens", 2.9, 0.9, BLACK)
    _arrow(ax, (2.2, 1.55), (3.45, 1.55))
    for x, side in zip((7.4, 8.2, 9.2), (0.4, 0.7, 1.0), strict=True):
        for y, height in ((2.3, 0.5), (1.1, 1.2)):
            ax.add_patch(Rectangle((x - side / 2, y - height / 2), side, height, facecolor=_LIGHT, edgecolor=GREY))
    ax.text(8.3, 0.1, "widths d and vocabularies V", ha="center", fontsize=7)
    _arrow(ax, (7.0, 1.55), (6.55, 1.55))


def transfer(ax: Axes) -> None:
    """Draw pretraining and fine-tuning."""
    starts = ((2.2, GREEN, "untied"), (1.4, BLACK, "tied"), (0.6, PURPLE, "tied, gradients scaled or untied later"))
    for y, colour, words in starts:
        _box(ax, 2.0, y, words, 3.3, 0.5, colour)
        _arrow(ax, (3.75, y), (5.3, 1.4), colour=colour)
    ax.text(2.0, 2.65, "pretrained on a first text", ha="center", fontsize=7)
    words = "fine-tuned on a second text, all alike:\nhow soon is it learnt,\nhow much of the first is forgotten?"
    _box(ax, 7.3, 1.4, words, 3.8, 1.1, BLACK)


def advice(ax: Axes) -> None:
    """Draw what is asked of a reader's model, and what answers."""
    for y, words in ((2.5, "V, d, layers"), (1.5, "tokens planned"), (0.5, "does memory matter?")):
        _box(ax, 1.3, y, words, 2.0, 0.5)
        _arrow(ax, (2.4, y), (3.6, 1.5))
    _box(ax, 5.0, 1.5, "the nearest gap\nthat was measured", 2.5, 0.9, BLACK)
    _arrow(ax, (6.35, 1.5), (7.4, 1.5))
    _box(ax, 8.6, 1.5, "tie, untie, or\n“nothing near this\nwas measured”", 2.2, 1.1)


def front(ax: Axes) -> None:
    """Draw the tables of an untied and a tied model with the gradients that each of them gets; 4.6 units high."""
    _table(ax, 2.6, 3.5, BLUE, "E", "untied: reads tokens")
    _table(ax, 7.4, 3.5, ORANGE, "U", "untied: predicts tokens")
    _table(ax, 5.0, 1.2, BLACK, "W", "tied: one table does both")
    reading, predicting = "gradient\nof reading", "gradient\nof predicting"
    for y, ends in ((3.5, ((0.2, 2.15), (9.8, 7.85))), (1.2, ((2.0, 4.5), (8.0, 5.5)))):
        for (start, end), words, colour in zip(ends, (reading, predicting), (BLUE, ORANGE), strict=True):
            _arrow(ax, (start, y), (end, y), words, colour)


SCHEMATICS: dict[str, Callable[[Axes], None]] = {
    START: front,
    "00": models,
    "01": alignment,
    "02": gradients,
    "03": lens,
    "04": scaling,
    "05": drift,
    "06": roles,
    "07": explorer,
    "08": public,
    "09": remedies,
    "10": places,
    "11": transfer,
    "12": advice,
}


def panel(ax: Axes, number: str) -> None:
    """Draw the schematic of notebook `number` into `ax`, whose ticks and frame go: ten units wide, `HEIGHTS` high."""
    ax.set(xlim=(0, 10), ylim=(0, HEIGHTS.get(number, 3.0)), aspect="equal")
    ax.axis("off")
    SCHEMATICS[number](ax)


def schematic(number: str) -> Figure:
    """Return the schematic of the notebook whose name begins with `number`, 6.9 inches wide; KeyError for another."""
    with style.styled():
        figure = style.Picture(figsize=(style.TWO_COLUMNS, 0.7 * HEIGHTS.get(number, 3.0)))
        panel(figure.add_axes((0, 0, 1, 1)), number)
    figure.set_label((SCHEMATICS[number].__doc__ or "").removeprefix("Draw ").rstrip("."))
    return figure


def png(number: str) -> bytes:
    """Return `schematic` as the bytes of a PNG of 1380 pixels across."""
    with io.BytesIO() as buffer, style.styled():
        schematic(number).savefig(buffer, format="png", dpi=200, metadata={"Software": None})
        return buffer.getvalue()


def alike(one: bytes, other: bytes) -> bool:
    """Return whether two PNGs look the same: equal in size, and less than one pixel in a hundred clearly different."""
    a, b = (np.asarray(Image.open(io.BytesIO(data)).convert("L"), dtype=int) for data in (one, other))
    return a.shape == b.shape and float((abs(a - b) > 32).mean()) < 0.01
