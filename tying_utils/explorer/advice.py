"""Sliders for who must decide whether to tie: a sentence, a table, and the measured gaps with the reader's own length."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from tying_utils.base import checks
from tying_utils.experiments import advice, style
from tying_utils.experiments.advice import Advice
from tying_utils.experiments.looks import GREY, PURPLE
from tying_utils.experiments.tables import where
from tying_utils.explorer.panels import Stage
from tying_utils.explorer.shown import SLIDER, SNUG, Shown, flow, said

SIZES = {
    "vocab_size": (512, 2048, 8192, 32_000, 49_152, 50_304, 65_536, 100_352, 128_256, 151_936, 256_000),
    "d_model": (32, 48, 64, 96, 128, 256, 512, 576, 768, 1024, 1536, 2048, 2560, 3072, 4096, 5120, 8192),
    "n_layers": (1, 2, 3, 4, 6, 8, 12, 16, 24, 28, 30, 32, 36, 40, 48, 64, 80, 96),
}
LABELS = {"vocab_size": "vocabulary V", "d_model": "width d", "n_layers": "layers"}
_LIMITS = (0.03, 3000.0)  # tokens per weight: what lies beyond is marked at the edge


class GapsView:
    """The measured gaps, with a bar at the reader's tokens per weight and a ring round the nearest gap of each budget."""

    def __init__(self, measured: pd.DataFrame) -> None:
        with style.styled():
            figure, axes = advice.draw(measured)
            self.bars = [ax.axvline(1, color=GREY, linewidth=5, alpha=0.3) for ax in axes]
            ring = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.5, "color": PURPLE}
            self.rings = [ax.plot([], [], linestyle="none", **ring)[0] for ax in axes]
            for ax in axes:
                ax.set_xlim(*_LIMITS)
            self._stage = Stage(figure, [*self.bars, *self.rings])

    def show(self, advised: Advice) -> bytes:
        """Return a PNG with the length and the nearest gaps of `advised` marked."""
        low, high = _LIMITS
        for bar in self.bars:
            bar.set_xdata([min(max(low, advised.tokens_per_weight), high)] * 2)
        for ring, budget in zip(self.rings, (advice.SHAPE, advice.SIZE), strict=True):
            row = where(advised.nearest, budget=budget)
            ring.set_data(advice.across(row), row["estimate"])
        return self._stage.png()


class Decide(Shown):
    """Sliders for one model's shape, its tokens, and whether memory counts. Made by `decide`."""

    alt = "Measured loss gaps, tied minus untied, by tokens per weight, and what they say of a few typical models"

    def __init__(self, measured: pd.DataFrame, public: pd.DataFrame, start: Mapping[str, Any]) -> None:
        self.measured, self.public = measured, public
        advice.advise(measured, **start)
        self.start, self.view = start, GapsView(self.measured)

    def still(self) -> bytes:
        """Return a PNG of the gaps, with where it opens marked."""
        return self.view.show(advice.advise(self.measured, **self.start))

    def _build(self) -> Any:
        import ipywidgets as widgets

        self.sizes = {}
        for name, sizes in SIZES.items():
            options = sorted({*sizes, self.start[name]})
            found = {"options": options, "value": self.start[name], "description": LABELS[name], **SLIDER}
            self.sizes[name] = widgets.SelectionSlider(**found)
        power = math.log10(self.start["tokens"])
        ends = {"min": min(4, math.floor(power)), "max": max(14, math.ceil(power))}  # a slider would move what lies beyond
        tokens = {"value": float(self.start["tokens"]), "base": 10, **ends, "step": 0.05, "readout_format": ".2e"}
        self.tokens = widgets.FloatLogSlider(description="tokens planned", **tokens, **SLIDER)
        words = {"description": "memory matters: compare at equal parameters", "indent": False}
        self.memory = widgets.Checkbox(value=self.start["memory"], **words, **SNUG)
        self.words, self.facts = widgets.HTML(), widgets.HTML(layout={"flex": "1 1 300px"})
        self.screen = widgets.Image(format="png", layout={"flex": "1.4 1 400px", "width": "auto", "min_width": "0"})
        for control in (*self.sizes.values(), self.tokens, self.memory):
            control.observe(lambda _: self._draw(), names="value")
        self._draw()
        rows = [
            flow(*self.sizes.values()),
            flow(self.tokens, self.memory),
            self.words,
            flow(self.facts, self.screen, align="flex-start"),
        ]
        return widgets.VBox(rows)

    def _draw(self) -> None:
        sizes: dict[str, Any] = {name: slider.value for name, slider in self.sizes.items()}
        advised = advice.advise(self.measured, **sizes, tokens=round(self.tokens.value), memory=self.memory.value)
        facts = advised.table()
        facts.loc[len(facts)] = ["public models of its size", advice.described(advice.peers(self.public, advised.parameters))]
        self.words.value = f'<div style="font-size:1.3em;line-height:1.35">{said(advised.sentence)}</div>'
        # Without its own, a table has the height of a slider for each of its lines.
        self.facts.value = f'<div style="line-height:1.3">{facts.to_html(index=False, header=False, border=0)}</div>'
        self.screen.value = self.view.show(advised)


def decide(measured: pd.DataFrame, public: pd.DataFrame, **start: int) -> Decide:
    """Return sliders over the gaps of `advice.measured`; nothing is trained, and a move takes a blink.

    public: of public models, as `shares.table` gives it. `start` is where it opens, vocab_size, d_model, n_layers, tokens and
    memory; by default the models trained here, at the longest. Raises ValueError for another name, and as `advice.advise`.
    """
    default = [*advice.cases().values()][1] | {"memory": False}
    return Decide(measured, public, default | checks.fields("start", start, default, "decide"))
