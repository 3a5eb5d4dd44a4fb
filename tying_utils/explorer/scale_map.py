"""The grid of both scales as a map of buttons: coloured by what was measured, pressed to choose a pair.

Buttons need no frontend of their own and no pixel arithmetic, are read out, and are reached by Tab and pressed by Enter.
"""

from collections.abc import Callable
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import Normalize, to_hex

from tying_utils.experiments.looks import GREY, LEANING, PURPLE
from tying_utils.study.sweep import ORDINARY, Scales, Sweep

BIAS, LOSS = MAPPED = ("output bias", "loss")
_LIGHT = 0.7  # how much of a colour is used: black words stay legible on it


class ScaleMap:
    """A button per swept pair of scales, in a grid; `choose` is called with the pair that is pressed."""

    def __init__(self, sweep: Sweep, choose: Callable[[Scales], None]) -> None:
        import ipywidgets as widgets

        self.sweep = sweep
        columns, rows = len(sweep.input_scales), len(sweep.output_scales)
        shape = {"width": "auto", "height": "auto", "padding": "0", "margin": "1px", "min_width": "0"}
        # A layout is shared: to ring a pair, its button changes to another one.
        self.plain = widgets.Layout(border="1px solid transparent", **shape)
        self.ordinary = widgets.Layout(border=f"3px dashed {GREY}", **shape)
        self.ring = widgets.Layout(border=f"3px solid {PURPLE}", **shape)
        self.title = widgets.HTML()
        self.cells: dict[Scales, Any] = {}
        self._shown: tuple[str, int | None] | None = None
        children: list[Any] = []
        for b in reversed(sweep.output_scales):
            children.append(_label(widgets, f"{b:g}", "right"))
            for a in sweep.input_scales:
                self.cells[a, b] = cell = widgets.Button(layout=self.plain)
                cell.style.text_color, cell.style.font_size = "black", "11px"
                cell.on_click(lambda _, pair=(a, b): choose(pair))
                children.append(cell)
        children += [_label(widgets, "", "right"), *(_label(widgets, f"{a:g}", "center") for a in sweep.input_scales)]
        grid = {"grid_template_columns": f"auto repeat({columns}, minmax(0, 1fr))", "grid_gap": "0"}
        grid |= {"grid_template_rows": f"repeat({rows}, {min(60, 220 // rows)}px) auto", "width": "100%"}
        below = _label(
            widgets, f"input scale → &emsp; <span style='color:{PURPLE}'>▢</span> shown, ┈ ordinary tied arm", "center"
        )
        parts = [self.title, widgets.GridBox(children, layout=grid), below]
        self.widget = widgets.VBox(parts, layout={"width": "100%"})

    def show(self, scales: Scales, what: str = BIAS, seed: int | None = None) -> None:
        """Ring the pair `scales`, and colour all by output bias or loss after training: of `seed`, or means over all."""
        if (what, seed) != self._shown:
            self._colour(what, seed)
            self._shown = what, seed
        for pair, cell in self.cells.items():
            cell.layout = self.ring if pair == scales else self.ordinary if pair == ORDINARY else self.plain

    def _short(self, value: float) -> str:
        """Return a value as its button shows it; without its 0 before the point where a narrow page would cut it."""
        words = f"{value:.2f}".replace("-", "−")
        return words.replace("0.", ".") if len(self.sweep.input_scales) > 6 else words

    def _colour(self, what: str, seed: int | None) -> None:
        rows, sweep = self.sweep.rows(seed), self.sweep
        values = {
            pair: float((sweep.bias(pair)[:, -1] if what == BIAS else sweep.loss(pair))[rows].mean()) for pair in self.cells
        }
        most, least = max(values.values()), min(values.values())
        if what == BIAS:
            most = max(most, -least)
            colours, scale = LEANING, Normalize(-most / _LIGHT, most / _LIGHT)
        else:
            colours, scale = colormaps["Greys"], Normalize(least, least + (most - least) / 0.5)
        for (a, b), cell in self.cells.items():
            value = values[a, b]
            cell.description, cell.style.button_color = self._short(value), to_hex(colours(scale(value)))
            cell.tooltip = f"input scale {a:g}, output scale {b:g}: {what} {value:.3f}. Press to show it."
        words = "loss over the floor" if sweep.has_floor and what == LOSS else what
        legend = "blue: towards E, orange: towards U" if what == BIAS else "darker: higher; nats per token"
        self.title.value = (
            f"<div style='line-height:1.4'><b>{words.capitalize()}, after training</b><br>output scale ↑ &ensp; {legend}</div>"
        )


def _label(widgets: Any, words: str, side: str) -> Any:
    style = f"text-align:{side};line-height:1.4;padding:0 4px;font-size:11px"
    return widgets.HTML(f'<div style="{style}">{words}</div>', layout={"margin": "auto 0"})
