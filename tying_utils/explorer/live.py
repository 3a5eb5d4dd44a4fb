"""Train a scale of your own while you watch: a slider, a button, a growing curve, and the point that it adds."""

import math
import threading
import time
from typing import Any

from tying_utils.base import checks
from tying_utils.base.names import TIED, TWO_ROLE
from tying_utils.corpora.two_role import Language
from tying_utils.explorer.panels import LiveView
from tying_utils.explorer.shown import SLIDER, SNUG, WIDE, Shown, flow, said
from tying_utils.study import arms, of_language, sweep
from tying_utils.study.sweep import Sweep
from tying_utils.study.trained import Trained
from tying_utils.training import trainer
from tying_utils.training.config import TrainConfig
from tying_utils.training.run_store import Run


class Stopped(Exception):
    """Raised into a training run whose Stop button was pressed."""


class Live(Shown):
    """Controls for one training run at a time in this kernel, on the two-role language. Made by `live`."""

    alt = "A training curve, and which role the trained tables show beside the swept conditions"

    def __init__(self, profile: str, input_scale: float, output_scale: float) -> None:
        self.start = checks.above_zero("input_scale", input_scale), checks.above_zero("output_scale", output_scale)
        study = sweep.study(profile, TWO_ROLE)
        self.profile = study.profile
        self.missing = ""
        try:
            swept = Sweep.of(study)
        except ValueError as error:  # the sweep is company, not a condition
            swept, self.missing = None, str(error)
        self.runs: list[Run] = []
        config = self.config(*self.start, seed=self.profile.seeds[0])
        assert config.language is not None
        floor = Language(config.vocab_size, config.language).entropy_rate
        self.view = LiveView(swept, steps=config.steps, floor=floor, start=math.log(config.vocab_size))
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def config(self, input_scale: float, output_scale: float, seed: int) -> TrainConfig:
        """Return the condition that Train trains: the swept ones, except for the scales."""
        return self.profile.config(TIED, seed).replace(input_scale=input_scale, output_scale=output_scale)

    @property
    def training(self) -> bool:
        """Return whether a run is being trained now."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self, timeout: float | None = None) -> None:
        """Return when the run that is being trained has ended, or after `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)

    def still(self) -> bytes:
        """Return a PNG of the conditions that there are."""
        return self.view.restart()

    def _build(self) -> Any:
        import ipywidgets as widgets
        from transformers import OlmoForCausalLM  # noqa: F401 (takes seconds: now, rather than when Train is pressed)

        self.sliders, self.exact = [], []
        for name, scale in zip(("input scale", "output scale"), self.start, strict=True):
            slider = widgets.FloatLogSlider(value=scale, base=10, min=-3, max=4, step=0.05, description=name, **SLIDER)
            exact = widgets.FloatText(value=scale, description="exactly", layout={"width": "130px"}, style=WIDE)
            slider.observe(lambda change, box=exact: self._slid(change["new"], box, change["owner"].step), names="value")
            exact.observe(lambda change, other=slider: self._typed(change, other), names="value")
            self.sliders.append(slider)
            self.exact.append(exact)
        self.seed = widgets.Dropdown(options=list(self.profile.seeds), description="seed", **SNUG)
        self.train = widgets.Button(description="Train", button_style="primary", tooltip="Train a run with these scales")
        self.stop = widgets.Button(description="Stop", tooltip="Stop the run that is being trained")
        self.bar = widgets.IntProgress(
            max=self.view.steps, description="steps", style=WIDE, layout={"flex": "1 1 200px", "width": "auto"}
        )
        self.note = widgets.HTML(said(self.missing, alert=True) if self.missing else said("Ready."))
        self.screen = widgets.Image(format="png", layout={"max_width": "1000px", "width": "100%"}, value=self.view.restart())
        self.train.on_click(lambda _: self._start())
        self.stop.on_click(lambda _: self._halt())
        scales = [control for pair in zip(self.sliders, self.exact, strict=True) for control in pair]
        return widgets.VBox([flow(*scales), flow(self.seed, self.train, self.stop, self.bar), self.note, self.screen])

    def _slid(self, scale: float, box: Any, step: float) -> None:
        # A browser rounds what a slider is set to and sends it back: within half a step a typed number stays as it is.
        if box.value <= 0 or abs(math.log10(scale / box.value)) > 0.51 * step:
            box.value = float(f"{scale:.3g}")

    def _typed(self, change: Any, slider: Any) -> None:
        if 10**slider.min <= change["new"] <= 10**slider.max:
            slider.value = change["new"]

    def _start(self) -> None:
        if self.training:
            self.note.value = said(f"Still training (step {self.bar.value} of {self.bar.max}): nothing was queued.", alert=True)
            return
        try:
            names = ("input scale", "output scale")
            scales = [checks.above_zero(name, box.value) for name, box in zip(names, self.exact, strict=True)]
            seed: Any = self.seed.value
            config = self.config(*scales, seed=seed)
        except ValueError as error:
            self.note.value = said(str(error), alert=True)
            return
        self._stop.clear()
        self.bar.value, self.screen.value = 0, self.view.restart()
        self._name = f"input scale {scales[0]:g}, output scale {scales[1]:g}, seed {seed}"
        self.note.value = said(f"Preparing {self._name} ...")
        self._thread = threading.Thread(target=self._run, args=(config,), daemon=True)
        self._thread.start()

    def _halt(self) -> None:
        if self.training:
            self._stop.set()
            self.note.value = said("Stopping ...")
        elif not self.runs:  # else what the last run gave stays to be read
            self.note.value = said("Nothing is being trained.")

    def _run(self, config: TrainConfig) -> None:
        began = time.monotonic()
        try:
            run = trainer.train(config, progress=False, on_step=self._step)
            self._join(run, time.monotonic() - began)
        except Stopped:
            self.note.value = said(f"Stopped at step {self.bar.value} of {self.bar.max}: the run was dropped.")
        except Exception as error:  # the traceback of a thread is not shown
            self.note.value = said(f"The run failed: {error}", alert=True)

    def _step(self, step: int, loss: float) -> None:
        if self._stop.is_set():
            raise Stopped
        self.note.value = said(f"Training {self._name}: step {step} of {self.bar.max}, loss {loss:.2f}")
        self.bar.value, self.screen.value = step, self.view.grow(step, loss)

    def _join(self, run: Run, seconds: float) -> None:
        config = run.config
        roles = of_language.roles(Trained(arms.TIED, config.data_seed, run, config.load_corpus()))
        source, target = (float(roles.loc[roles["role"] == role, "purity"].iloc[0]) for role in ("source", "target"))
        over = float(roles["over_floor"].iloc[0])
        self.view.draw_curve(run.metrics["step"].to_list(), run.metrics["loss"].to_list())
        ratio = config.input_scale / config.output_scale
        self.screen.value = self.view.join(ratio=ratio, source=source, target=target, loss=over)
        self.bar.value = self.bar.max
        if run.folder not in [known.folder for known in self.runs]:
            self.runs.append(run)
        self.note.value = said(
            f"Joined ({seconds:.1f} s): input scale {config.input_scale:g}, output scale {config.output_scale:g}, "
            f"seed {config.data_seed}: purity {target:.2f} in the target role, {source:.2f} in the source role, "
            f"loss {over:.3f} nats over the floor. {len(self.runs)} trained here."
        )


def live(profile: str = "quick", *, input_scale: float = 7.0, output_scale: float = 1.0) -> Live:
    """Return controls that train the two-role language in this kernel at any scale above 0, beside the swept conditions.

    A run takes seconds, goes to data/runs like any other, and is loaded where it was trained before. One runs at a time: a
    second press of Train queues nothing and says so. Without a sweep table it works alone. Raises ValueError for an unknown
    profile, and for a scale that is not above 0.
    """
    return Live(profile, input_scale, output_scale)
