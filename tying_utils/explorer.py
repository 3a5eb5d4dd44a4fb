"""The slider over the scale factor: tidy tables in, a widget out; nothing here trains."""

import io
from typing import Any

import ipywidgets as widgets
import pandas as pd

from tying_utils import claims, figures, profiles
from tying_utils.claims import Tables


def state(tables: Tables, scale: float) -> pd.Series:
    """What the slider shows of one input scale, means over seeds: output bias, lens KL at the input, validation loss."""
    arm = profiles.scaled(scale)
    bias = claims.output_bias(claims.with_scaling(tables, "alignment").query("kind == 'orthogonal'"))
    lens = claims.with_scaling(tables, "lens").query("lens == 'tuned' and indexing == 'matched' and layer == 0")
    losses = claims.with_scaling(tables, "losses")
    return pd.Series(
        {
            "output bias": bias.loc[bias["arm"] == arm, "output_bias"].mean(),
            "lens KL at the input, bits": lens.loc[lens["arm"] == arm, "kl_bits"].mean(),
            "validation loss, nats": losses.loc[losses["arm"] == arm, "validation_loss"].mean(),
        }
    )


def scale_slider(tables: Tables) -> widgets.VBox:
    """A slider over the trained input scales with linked panels and the state as text.

    `tables` needs alignment, lens and losses and the three scaling tables beside them (a `study.Study` has them all).
    """
    scales = sorted(claims.with_scaling(tables, "losses")["input_scale"].unique())
    slider = widgets.SelectionSlider(
        options=[(f"{scale:g}", scale) for scale in scales],
        value=1.0,
        description="input scale",
        continuous_update=False,
    )
    words = widgets.HTML()
    # An image, not an Output: it is replaced in place, so that nothing stacks and nothing flickers.
    screen = widgets.Image(format="png", layout=widgets.Layout(max_width="760px"))

    def show(change: Any = None) -> None:
        values = ", ".join(f"{name} {value:.3f}" for name, value in state(tables, slider.value).items())
        words.value = f"<b>input scale {slider.value:g}</b>: {values}"
        with io.BytesIO() as buffer:
            figures.scale_view(tables, slider.value).savefig(buffer, format="png", dpi=200)
            screen.value = buffer.getvalue()

    slider.observe(show, names="value")
    show()
    return widgets.VBox([slider, words, screen])
