"""The figure that README opens with: what tying is, and where a tied table lies."""

from dataclasses import replace

from matplotlib.figure import Figure

from tying_utils.base.names import TIED
from tying_utils.experiments import position, schematics, style
from tying_utils.experiments.length import PLACES, over_tokens
from tying_utils.experiments.looks import BLACK, BLUE, GREY, ORANGE
from tying_utils.experiments.style import TWO_COLUMNS
from tying_utils.experiments.tables import where
from tying_utils.study.axis import NAME, Lengths

FIGURES = style.Gallery()


@FIGURES.reads("00_front", "poles", corpus=NAME)
def front(lengths: Lengths) -> Figure:
    """Draw the tables of an untied and a tied model, and where the tied one lies as training goes on."""
    words = "One table with two jobs", "It ends up near the output table"
    figure, (left, right) = style.panels(TWO_COLUMNS, 2.9, *words)
    schematics.panel(left, schematics.START)
    poles = lengths["poles"]
    greys = (BLACK, GREY, GREY)
    looks = {
        place: replace(look, colour=colour)
        for (place, look), colour in zip(PLACES.items(), greys, strict=True)
        if (poles["place"] == place).any()
    }
    for place, look in looks.items():
        found = where(position.positions(where(poles, place=place)), arm=TIED, frequency_out=False)
        style.curve(right, found, "tokens_per_weight", "position", look, bars=found["seed"].nunique() > 2)
    for y, colour, name in ((0, BLUE, "an untied input table"), (1, ORANGE, "an untied output table")):
        right.axhline(y, color=colour, linewidth=1.5)
        right.text(0.13, y + 0.03, name, color=colour, fontsize=7)
    over_tokens(right, "position of the tied table")
    right.set_ylim(-0.08, 1.18)
    note = "Below three seeds no interval. The paper's models saw about 20 tokens per weight. Each point is trained to its end."
    named = poles.assign(place=poles["place"].map({place: look.label for place, look in looks.items()}))
    return style.finish(figure, named, looks.values(), note, every=["place", "tokens_per_weight"], by="place")
