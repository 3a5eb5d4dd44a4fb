"""The sliders: tidy tables in, widgets out; nothing here trains (see `live`).

Every control has a label and works by keyboard, the numbers are beside the picture as text, and the picture is one image
that is replaced in place: nothing stacks and nothing flickers, in JupyterLab as in Colab. Core ipywidgets only, 7.7.1 or 8.
All of it fits on one screen of 1280 x 720.
"""

import asyncio
import json
import math
from contextlib import suppress
from typing import Any

import numpy as np

from tying_utils.base import checks
from tying_utils.explorer import panels
from tying_utils.explorer.panels import SweepView
from tying_utils.explorer.scale_map import MAPPED, ScaleMap
from tying_utils.explorer.shown import SLIDER, SNUG, WIDE, Shown, flow, large, said
from tying_utils.study import sweep
from tying_utils.study.sweep import ORDINARY, Sweep

MEAN = "mean"  # over the seeds: a choice of its own, since None is no choice to a Dropdown


class Explore(Shown):
    """Sliders over the swept scales and the training step, with linked panels and a map. Made by `explore`."""

    alt = "Linked panels of the sweep: alignment with the output bias, and the output path's share, over training"

    def __init__(self, profile: str, corpus: str | None, input_scale: float, output_scale: float) -> None:
        self.profile, self.corpora = profile, sweep.corpora(profile)
        scales = checks.above_zero("input_scale", input_scale), checks.above_zero("output_scale", output_scale)
        self.start = sweep.study(profile, corpus).profile.corpus, *scales
        self._views: dict[str, SweepView] = {}
        self._maps: dict[str, ScaleMap] = {}
        self._shown: SweepView | None = None
        self._settling, self._rising = False, True

    def view(self, corpus: str) -> SweepView:
        """Return the panels of `corpus`; ValueError names a file that is missing or damaged, and the command that makes it."""
        if corpus not in self._views:
            self._views[corpus] = SweepView(Sweep.of(sweep.study(self.profile, corpus)))
        return self._views[corpus]

    def map(self, corpus: str) -> ScaleMap:
        """Return the map of `corpus`; ValueError as `view`."""
        if corpus not in self._maps:
            self._maps[corpus] = ScaleMap(self.view(corpus).sweep, lambda pair: self._settle(*pair))
        return self._maps[corpus]

    def still(self) -> bytes:
        """Return a PNG of the panels at the smallest input scale, at 1 and at the largest, one below the other."""
        corpus, _, output_scale = self.start
        try:
            view = self.view(corpus)
        except ValueError as error:
            return panels.words(str(error))
        swept, pictures = view.sweep, []
        output_scale = sweep.nearest("output_scale", output_scale, swept.output_scales)
        for scale in sorted(
            {swept.input_scales[0], sweep.nearest("input_scale", 1.0, swept.input_scales), swept.input_scales[-1]}
        ):
            chosen = (scale, output_scale), swept.steps[-1]
            bias, loss = (f"{before:.2f} → {after:.2f}" for before, after in [*compared(swept, *chosen).values()][:2])
            pictures.append(view.show(*chosen, words=f": output bias {bias}, loss {loss}".replace("-", "−")))
        return panels.stacked(pictures)

    def _build(self) -> Any:
        import ipywidgets as widgets

        corpus, *scales = self.start
        self.corpus = widgets.Dropdown(options=self.corpora, value=corpus, description="corpus", **SNUG)
        self.seed = widgets.Dropdown(options=[MEAN], description="seed", **SNUG)
        self.mapped = widgets.Dropdown(options=MAPPED, description="map", **SNUG)
        self.typed = widgets.Text(description="any input scale", placeholder="7", continuous_update=False, style=WIDE)
        self.typed.layout.width = "165px"
        names = ("input scale", "output scale", "step")
        sliders = [widgets.SelectionSlider(options=[1.0], description=name, **SLIDER) for name in names]
        self.input_scale, self.output_scale, self.step = sliders
        self.play = widgets.Play(
            interval=900, description="play the input scale", tooltip="Sweep the input scale there and back"
        )
        self.reset = widgets.Button(description="Reset", tooltip="Back to the ordinary tied arm", layout={"width": "auto"})
        self.note = widgets.HTML(layout={"min_height": "22px"})  # so that nothing jumps when it speaks
        self.numbers, self.state = widgets.HTML(), widgets.HTML()
        self.screen = widgets.Image(
            format="png", layout={"flex": "2 1 0", "min_width": "400px", "width": "0", "height": "auto"}
        )
        self.place = widgets.Box(layout={"flex": "1 1 0", "min_width": "260px"})
        self.line = widgets.Text(description="as Python", layout={"flex": "1 1 auto", "width": "auto"}, style=WIDE)
        self.copy = widgets.Button(description="Copy", tooltip="Copy the line of Python that trains this condition")
        self._clipboard = widgets.Output()
        for control in (self.seed, self.mapped, *sliders):
            control.observe(self._changed, names="value")
        self.corpus.observe(lambda _: self._open(self.input_scale.value, self.output_scale.value), names="value")
        self.typed.observe(lambda _: self._take(self.typed.value), names="value")
        self.play.observe(self._tick, names="value")
        self.reset.on_click(lambda _: self._reset())
        self.copy.on_click(self._copy)
        self._open(*scales)
        with suppress(RuntimeError):  # there is a loop in a kernel only; a thread would share matplotlib's settings with a cell
            asyncio.get_running_loop().call_later(0.5, self._preload)
        controls = flow(self.play, self.reset, self.corpus, self.seed, self.mapped, self.typed)
        pictures, below = flow(self.screen, self.place, align="flex-start"), widgets.HBox([self.line, self.copy])
        return widgets.VBox([flow(*sliders), controls, self.note, self.numbers, pictures, self.state, below, self._clipboard])

    def _preload(self) -> None:
        """Open what is not shown yet, so that a switch is fast."""
        for corpus in self.corpora:
            if corpus not in self._maps:
                with suppress(ValueError):  # it is named where it is chosen
                    self.map(corpus).show(ORDINARY)

    def _open(self, input_scale: float, output_scale: float) -> None:
        """Set the controls to what the chosen corpus was swept over, as near to the given scales as there is."""
        corpus: Any = self.corpus.value
        if corpus not in self._maps:
            self.note.value = said(f"loading {corpus} ...")
        try:
            self._shown, self.place.children = self.view(corpus), [self.map(corpus).widget]
        except ValueError as error:
            self._shown, self.place.children = None, []
            self.note.value, self.numbers.value, self.state.value, self.line.value = said(str(error), alert=True), "", "", ""
            self.screen.value = panels.words("There is no sweep to show.")
            return
        swept = self._shown.sweep
        self._settling = True
        self.input_scale.options = [(f"{scale:g}", scale) for scale in swept.input_scales]
        self.output_scale.options = [(f"{scale:g}", scale) for scale in swept.output_scales]
        self.step.options, self.step.value = [(str(step), step) for step in swept.steps], swept.steps[-1]
        self.seed.options, self.seed.value = [MEAN, *swept.seeds], MEAN
        self.play.value, self.play.max = 0, 2 * (len(swept.input_scales) - 1)
        self._settle(input_scale, output_scale)

    def _settle(self, input_scale: float, output_scale: float) -> None:
        """Move both sliders to the nearest swept scales, say so where they differ, and draw once."""
        assert self._shown is not None
        swept, moved = self._shown.sweep, []
        self._settling = True
        sliders, wishes = (self.input_scale, self.output_scale), (input_scale, output_scale)
        for slider, scales, wanted in zip(sliders, (swept.input_scales, swept.output_scales), wishes, strict=True):
            slider.value = sweep.nearest(slider.description, wanted, scales)
            if not math.isclose(slider.value, wanted):
                moved.append(f"{slider.description} {wanted:g} was not swept: {slider.value:g} is the nearest.")
        self._settling = False
        self._draw()
        self.note.value = said(" ".join([*moved, "Live trains any scale."])) if moved else ""

    def _tick(self, change: Any) -> None:
        """Take Play's next count as one more stop of the input scale, back and forth between both ends."""
        if change["new"] <= change["old"] or self._shown is None:
            return
        last = len(self.input_scale.options) - 1
        if self.input_scale.index in (0, last):
            self._rising = self.input_scale.index == 0
        self.input_scale.index += 1 if self._rising else -1

    def _reset(self) -> None:
        self.play.playing, self.play.value = False, 0
        if self._shown is not None:
            self.step.value, self.seed.value = self._shown.sweep.steps[-1], MEAN
            self._settle(*ORDINARY)

    def _take(self, text: str) -> None:
        if not text.strip() or self._shown is None:
            return
        try:
            self._settle(float(text), self.output_scale.value)
        except ValueError:
            self.note.value = said(f"any input scale: a number above 0 is needed, as 7 or 0.5, got {text!r}", alert=True)

    def _changed(self, _: Any) -> None:
        if not self._settling and self._shown is not None:
            self.note.value = ""
            self._draw()

    def _draw(self) -> None:
        view, seed = self._shown, None if self.seed.value == MEAN else self.seed.value
        what: Any = self.mapped.value
        assert view is not None
        scales = self.input_scale.value, self.output_scale.value
        self.screen.value = view.show(scales, self.step.value, seed)
        self.numbers.value = large(compared(view.sweep, scales, self.step.value, seed))
        self.state.value = said(described(view.sweep, scales, self.step.value, seed))
        self.map(view.sweep.corpus).show(scales, what, seed)
        self.line.value = view.sweep.line(scales, seed)

    def _copy(self, _: Any) -> None:
        from IPython.display import Javascript

        self._clipboard.outputs = ()
        self._clipboard.append_display_data(Javascript(f"navigator.clipboard.writeText({json.dumps(self.line.value)})"))
        self.note.value = said("Copied; where the browser does not allow it, select the line.")


def explore(
    profile: str = "quick", *, corpus: str | None = None, input_scale: float = 1.0, output_scale: float = 1.0
) -> Explore:
    """Return the explorer of a profile's sweep, or of the committed one where the profile has none: nothing is trained then.

    `corpus` and the scales are where it opens; a scale that was not swept becomes the nearest by ratio, and it says so. A
    sweep that is missing or damaged is named in the explorer, with the command that makes it. Raises ValueError for an
    unknown profile, a corpus without a sweep, or a scale that is not above 0.
    """
    return Explore(profile, corpus, input_scale, output_scale)


def compared(swept: Sweep, scales: sweep.Scales, step: int, seed: int | None = None) -> dict[str, tuple[float, float]]:
    """Return by name what the ordinary tied arm has and what `scales` have: mean over seeds, or `seed`."""
    rows, at = swept.rows(seed), swept.steps.index(step)
    loss = "loss over the floor" if swept.has_floor else "loss"
    measures = {
        f"output bias after step {step}": lambda pair: swept.bias(pair)[:, at],
        f"{loss} at the end, nats per token": swept.loss,
    }
    if swept.has_roles:
        for role in ("target", "source"):
            measures[f"purity, {role} role"] = lambda pair, role=role: swept.purity(pair, role)
    return {name: (float(of(ORDINARY)[rows].mean()), float(of(scales)[rows].mean())) for name, of in measures.items()}


def described(swept: Sweep, scales: sweep.Scales, step: int, seed: int | None = None) -> str:
    """Say one condition: alignment, bias and share at `step`, lens and loss after training; mean over seeds, or `seed`."""
    rows, at = swept.rows(seed), swept.steps.index(step)

    def mean(values: np.ndarray) -> float:
        return float(values[rows].mean())

    aligned = {name: mean(swept.alignment(scales, name, "corrected")[:, at]) for name in ("input", "output")}
    words = [
        f"{swept.corpus}, input scale {scales[0]:g}, output scale {scales[1]:g}, "
        + (f"mean of {len(swept.seeds)} seeds" if seed is None else f"seed {seed}"),
        f"after step {step} W aligns with U to {aligned['output']:.2f} and with E to {aligned['input']:.2f}, corrected for "
        f"chance: output bias {mean(swept.bias(scales)[:, at]):+.3f}",
    ]
    if step:
        span = int(np.searchsorted(swept.spans, step))
        update = mean(swept.share(scales, "output_update_share")[:, span])
        words.append(f"output share {mean(swept.share(scales)[:, span]):.2f} of the gradient, {update:.2f} of the Adam update")
    kl = mean(swept.lens(scales)[:, 0])
    words.append(f"after training, lens KL at the input {kl:.2f} bits (untied {mean(swept.lens(None)[:, 0]):.2f})")
    name = "loss over the floor" if swept.has_floor else "validation loss"
    words.append(f"{name} {mean(swept.loss(scales)):.3f} nats (untied {mean(swept.loss(None)):.3f})")
    return "; ".join(words) + "."
