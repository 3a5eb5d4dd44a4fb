"""The sliders: tidy tables in, widgets out; nothing here trains (see `live`).

Every control has a label and works by keyboard, the state stands beside the picture as text, and the picture is one image
that is replaced in place: nothing stacks and nothing flickers, in JupyterLab as in Colab. Core ipywidgets only, 7.7.1 or 8.
"""

import html
import json
import math
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np

from tying_utils.base import checks
from tying_utils.explorer import panels
from tying_utils.explorer.panels import SweepView
from tying_utils.study import sweep
from tying_utils.study.sweep import Sweep

WIDE = {"description_width": "initial"}
MEAN = "mean"  # over the seeds: a choice of its own, since None is no choice to a Dropdown


class Shown(ABC):
    """What a notebook shows: a widget, and a still picture wherever widgets are unknown or not installed."""

    alt: str  # what is to be seen, in words

    @abstractmethod
    def _build(self) -> Any: ...

    @abstractmethod
    def still(self) -> bytes:
        """Return a PNG in place of the widget."""

    @cached_property
    def widget(self) -> Any:
        """Return the ipywidgets widget. Raises ImportError where ipywidgets is not installed."""
        return self._build()

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle: dict[str, Any] = {"text/plain": self.alt}
        with suppress(ImportError):
            view = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
            bundle["application/vnd.jupyter.widget-view+json"] = view
        if len(bundle) == 1 or "google.colab" not in sys.modules:  # Colab knows widgets, and would have to choose
            bundle["image/png"] = self.still()
        return bundle, {"image/png": {"alt": self.alt}}


def said(words: str, alert: bool = False) -> str:
    """Return `words` as HTML that a screen reader speaks when it changes."""
    role, style = ("alert", "color:#b00020;font-weight:bold") if alert else ("status", "")
    return f'<div role="{role}" aria-live="polite" style="{style}">{html.escape(words)}</div>'


class Explore(Shown):
    """Sliders over the swept scales and the training step, with linked panels. Made by `explore`."""

    alt = "Linked panels of the sweep: alignment and output share over training, tuned lens by layer, loss by input scale"

    def __init__(self, profile: str, corpus: str | None, input_scale: float, output_scale: float) -> None:
        self.profile, self.corpora = profile, sweep.corpora(profile)
        scales = checks.above_zero("input_scale", input_scale), checks.above_zero("output_scale", output_scale)
        self.start = sweep.study(profile, corpus).profile.corpus, *scales
        self._views: dict[str, SweepView] = {}
        self._shown: SweepView | None = None
        self._settling = False

    def view(self, corpus: str) -> SweepView:
        """Return the panels of `corpus`; ValueError names a file that is missing or damaged, and the command that makes it."""
        if corpus not in self._views:
            self._views[corpus] = SweepView(Sweep.of(sweep.study(self.profile, corpus)))
        return self._views[corpus]

    def still(self) -> bytes:
        """Return a PNG of the panels at the smallest input scale, at 1 and at the largest, one below the other."""
        corpus, _, output_scale = self.start
        try:
            view = self.view(corpus)
        except ValueError as error:
            return panels.words(str(error))
        swept = view.sweep
        output_scale = sweep.nearest("output_scale", output_scale, swept.output_scales)
        chosen = sorted({swept.input_scales[0], sweep.nearest("input_scale", 1.0, swept.input_scales), swept.input_scales[-1]})
        return panels.stacked([view.show((scale, output_scale), swept.steps[-1]) for scale in chosen])

    def _build(self) -> Any:
        import ipywidgets as widgets

        corpus, *scales = self.start
        self.corpus = widgets.Dropdown(options=self.corpora, value=corpus, description="corpus")
        self.seed = widgets.Dropdown(options=[MEAN], description="seed")
        self.typed = widgets.Text(description="any input scale", placeholder="7", continuous_update=False, style=WIDE)
        names = ("input scale", "output scale", "step")
        sliders = [widgets.SelectionSlider(options=[1.0], description=name, style=WIDE) for name in names]
        self.input_scale, self.output_scale, self.step = sliders
        self.note, self.state = widgets.HTML(), widgets.HTML()
        self.screen = widgets.Image(format="png", layout=widgets.Layout(max_width="900px"))
        self.line = widgets.Text(description="as Python", layout=widgets.Layout(width="75%"), style=WIDE)
        self.copy = widgets.Button(description="Copy", tooltip="Copy the line of Python that trains this condition")
        self._clipboard = widgets.Output()
        for control in (self.seed, self.input_scale, self.output_scale, self.step):
            control.observe(self._changed, names="value")
        self.corpus.observe(lambda _: self._open(self.input_scale.value, self.output_scale.value), names="value")
        self.typed.observe(lambda _: self._take(self.typed.value), names="value")
        self.copy.on_click(self._copy)
        self._open(*scales)
        rows = (self.corpus, self.seed, self.typed), (self.input_scale, self.output_scale, self.step)
        below = widgets.HBox([self.line, self.copy])
        return widgets.VBox([*(widgets.HBox(row) for row in rows), self.note, self.state, self.screen, below, self._clipboard])

    def _open(self, input_scale: float, output_scale: float) -> None:
        """Set the controls to what the chosen corpus was swept over, as near to the given scales as there is."""
        corpus: Any = self.corpus.value
        try:
            self._shown = self.view(corpus)
        except ValueError as error:
            self._shown = None
            self.note.value, self.state.value, self.line.value = said(str(error), alert=True), "", ""
            self.screen.value = panels.words("There is no sweep to show.")
            return
        swept = self._shown.sweep
        self._settling = True
        self.input_scale.options = [(f"{scale:g}", scale) for scale in swept.input_scales]
        self.output_scale.options = [(f"{scale:g}", scale) for scale in swept.output_scales]
        self.step.options, self.step.value = [(str(step), step) for step in swept.steps], swept.steps[-1]
        self.seed.options, self.seed.value = [MEAN, *swept.seeds], MEAN
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
        self.note.value = said(" ".join([*moved, "Live trains any scale."] if moved else ""))

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
        assert view is not None
        scales = self.input_scale.value, self.output_scale.value
        self.screen.value = view.show(scales, self.step.value, seed)
        self.state.value = said(described(view.sweep, scales, self.step.value, seed))
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


def described(swept: Sweep, scales: sweep.Scales, step: int, seed: int | None = None) -> str:
    """Say one condition: alignment, bias and share at `step`, lens and loss after training; mean over seeds, or `seed`."""
    rows = slice(None) if seed is None else [swept.seeds.index(seed)]
    at = swept.steps.index(step)

    def mean(values: np.ndarray) -> float:
        return float(values[rows].mean())

    aligned = {name: mean(swept.alignment(scales, name)[:, at]) for name in ("input", "output")}
    chance = np.mean([mean(swept.alignment(scales, name, "chance")[:, at]) for name in aligned])
    words = [
        f"{swept.corpus}, input scale {scales[0]:g}, output scale {scales[1]:g}, "
        + (f"mean of {len(swept.seeds)} seeds" if seed is None else f"seed {seed}"),
        f"after step {step} W aligns with U to {aligned['output']:.2f} and with E to {aligned['input']:.2f} "
        f"(chance {chance:.2f}): output bias {mean(swept.bias(scales)[:, at]):+.3f}",
    ]
    if step:
        span = int(np.searchsorted(swept.spans, step))
        update = mean(swept.share(scales, "output_update_share")[:, span])
        words.append(f"output share {mean(swept.share(scales)[:, span]):.2f} of the gradient, {update:.2f} of the Adam update")
    kl = mean(swept.lens(scales)[:, 0])
    words.append(f"after training, lens KL at the input {kl:.2f} bits (untied {mean(swept.lens(None)[:, 0]):.2f})")
    name = "loss over the floor" if swept.has_floor else "validation loss"
    words.append(f"{name} {mean(swept.loss(scales)):.3f} nats (untied {mean(swept.loss(None)):.3f})")
    if swept.has_roles:
        target, source = (mean(swept.purity(scales, role)) for role in ("target", "source"))
        words.append(f"purity {target:.2f} in the target role, {source:.2f} in the source role")
    return "; ".join(words) + "."
