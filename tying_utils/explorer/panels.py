"""Pictures for sliders: what stands still is drawn once, and only what moves is drawn again, within a blink.

Axes never jump: their limits hold every condition that can be shown.
"""

import io
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

from tying_utils.base.names import TIED, UNTIED
from tying_utils.experiments import style
from tying_utils.experiments.style import BLACK, DASHED, GREY, LOOKS, ROLE_LOOKS, W_WITH, Look
from tying_utils.study.sweep import Scales, Sweep

DPI = 150


class Stage:
    """A figure of which only the artists `moving` change: the rest is drawn once and kept as pixels."""

    def __init__(self, figure: Figure, moving: Iterable[Artist]) -> None:
        figure.set_dpi(DPI)
        self.moving = list(moving)
        self._canvas = FigureCanvasAgg(figure)
        self._canvas.draw()  # with everything in it, so that the layout leaves room for all
        figure.set_layout_engine("none")  # it has done its work, and would do it again for every picture
        for artist in self.moving:
            artist.set_animated(True)
        self._canvas.draw()
        self._still = self._canvas.copy_from_bbox(figure.bbox)
        self.figure = figure

    def png(self) -> bytes:
        """Return the picture as it is now."""
        self._canvas.restore_region(self._still)
        for artist in self.moving:
            (artist.axes or self.figure).draw_artist(artist)
        opaque = Image.fromarray(np.asarray(self._canvas.buffer_rgba())).convert("RGB")
        with io.BytesIO() as buffer:
            opaque.save(buffer, format="PNG", compress_level=1)  # quickly rather than small
            return buffer.getvalue()


class _Bundle:
    """One curve that moves: thin lines for the seeds, and their mean."""

    def __init__(self, ax: Axes, x: Sequence[float], look: Look) -> None:
        self.ax, self.x = ax, np.asarray(x, dtype=float)
        self.seeds = LineCollection([], colors=look.colour, linewidths=0.5, alpha=0.45)
        ax.add_collection(self.seeds, autolim=False)
        face = "white" if look.hollow else look.colour
        (self.mean,) = ax.plot([], [], color=look.colour, linestyle=look.line, marker=look.marker, markerfacecolor=face)

    @property
    def artists(self) -> list[Artist]:
        return [self.seeds, self.mean]

    def show(self, values: np.ndarray) -> None:
        """Set the curve to `values` (seeds, points): one row is drawn as the line itself."""
        several = len(values) > 1
        self.seeds.set_segments([np.column_stack([self.x, row]) for row in values] if several else [])
        self.mean.set_data(self.x, values.mean(0))


class SweepView:
    """The linked panels of a sweep: alignment and output share over training, lens KL by layer, loss by input scale."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        with style.styled():
            self._build()

    def _build(self) -> None:
        sweep = self.sweep
        loss = "Loss over the floor" if sweep.has_floor else "Validation loss"
        titles = "Alignment of W", "Output path's share", "Tuned lens, after training", f"{loss}, after training"
        figure, axes = style.panels(7.4, 5.0, *titles, rows=2)
        self.figure, (a, b, c, d) = figure, axes
        self.band = a.fill_between(sweep.steps, 0, 0, color=GREY, alpha=0.25, linewidth=0)
        self.alignment = {name: _Bundle(a, sweep.steps, look) for name, look in W_WITH.items()}
        paths = {"gradient": Look("gradient", BLACK), "update": Look("Adam update", BLACK, line=DASHED)}
        self.share, self.update = (_Bundle(b, sweep.spans, look) for look in paths.values())
        depth = sweep.lens(None).shape[1]
        self.lens = {name: _Bundle(c, range(depth), LOOKS[name]) for name in (UNTIED, TIED)}
        self.loss = _Bundle(d, sweep.input_scales, LOOKS[TIED])
        self.level = d.axhline(0, color=LOOKS[UNTIED].colour, linestyle=LOOKS[UNTIED].line)
        self.steps = [ax.axvline(0, color=GREY, linewidth=5, alpha=0.3) for ax in (a, b)]
        self.chosen = d.axvline(1, color=GREY, linewidth=5, alpha=0.3)
        self.title = figure.supxlabel("input scale 1", fontsize="medium", fontweight="bold")
        style.level(b, 0.5)
        self._fix_axes(*axes)
        looks = [*W_WITH.values(), Look("chance", GREY), *paths.values(), LOOKS[TIED], LOOKS[UNTIED]]
        style.legend(figure, looks, columns=4)
        bundles = [*self.alignment.values(), self.share, self.update, *self.lens.values(), self.loss]
        moving = [self.band, *self.steps, self.chosen, self.level, self.title]
        self._stage = Stage(figure, [*moving, *(artist for bundle in bundles for artist in bundle.artists)])

    def _fix_axes(self, a: Axes, b: Axes, c: Axes, d: Axes) -> None:
        """Give every panel room for all conditions and seeds."""
        sweep, last = self.sweep, self.sweep.steps[-1]
        for ax in (a, b):
            ax.set_xscale("symlog", linthresh=1, linscale=0.5)
            ax.set(xlabel="step (optimizer)", xlim=(-0.1, 1.15 * last))
            ticks = [0, *(step for step in (1, 10, 100, 1000, 10_000) if step < last / 1.5), last]
            ax.set_xticks(ticks, [str(step) for step in ticks])
            ax.minorticks_off()
        low, high = _range(sweep.alignment(pair, name) for pair in sweep.conditions for name in W_WITH)
        a.set(ylabel="alignment (orthogonal, uncorrected)", ylim=(min(0, low), 1.05 * high))
        b.set(ylabel="output share of the norm", ylim=(0, 1))
        style.layers(c, "input", "output", sweep.lens(None).shape[1] - 1)
        _, high = _range(sweep.lens(pair) for pair in (None, *sweep.conditions))
        c.set(ylabel="lens KL (bits per token)", ylim=(-0.03 * high, 1.05 * high))
        d.set_xscale("log")
        name = "loss over the floor" if sweep.has_floor else "loss"
        style.scale_axis(d, sweep.input_scales, f"{name} (nats per token)")
        low, high = _range(sweep.loss(pair) for pair in (None, *sweep.conditions))
        room = 0.05 * (high - low)
        d.set(xlim=(sweep.input_scales[0] / 1.5, 1.5 * sweep.input_scales[-1]), ylim=(low - room, high + room))

    def show(self, scales: Scales, step: int, seed: int | None = None) -> bytes:
        """Return a PNG of one condition with `step` marked: of `seed`, or of all of them and their mean."""
        sweep = self.sweep
        rows = slice(None) if seed is None else [sweep.seeds.index(seed)]
        for name, bundle in self.alignment.items():
            bundle.show(sweep.alignment(scales, name)[rows])
        chance = [[sweep.alignment(scales, name, f"chance_{edge}")[rows] for name in W_WITH] for edge in ("low", "high")]
        self.band.set_data(sweep.steps, *np.mean(chance, axis=(1, 2)))
        self.share.show(sweep.share(scales)[rows])
        self.update.show(sweep.share(scales, "output_update_share")[rows])
        self.lens[TIED].show(sweep.lens(scales)[rows])
        self.lens[UNTIED].show(sweep.lens(None)[rows])
        self.loss.show(np.column_stack([sweep.loss((a, scales[1])) for a in sweep.input_scales])[rows])
        self.level.set_ydata([sweep.loss(None)[rows].mean()] * 2)
        for line in self.steps:
            line.set_xdata([step, step])
        self.chosen.set_xdata([scales[0]] * 2)
        whose = f"mean of {len(sweep.seeds)} seeds" if seed is None else f"seed {seed}"
        self.title.set_text(f"input ×{scales[0]:g}, output ×{scales[1]:g}, step {step}, {whose}")
        return self._stage.png()


def _range(arrays: Iterable[np.ndarray]) -> tuple[float, float]:
    """Return the least and the largest of all values."""
    values = np.concatenate([array.ravel() for array in arrays])
    return float(values.min()), float(values.max())


class LiveView:
    """A loss curve that grows, and the runs trained here beside the swept ones: purity and loss by the ratio of the scales.

    `floor` is the language's own loss, `steps` what a run takes; without a `sweep` there are only the runs trained here.
    """

    def __init__(self, sweep: Sweep | None, *, steps: int, floor: float, start: float) -> None:
        self.sweep, self.steps, self.floor, self.start = sweep, steps, floor, start
        self.points: list[dict[str, float]] = []
        self._curve: tuple[list[int], list[float]] = [], []
        self._build()

    def _build(self) -> None:
        with style.styled():
            titles = "Training", "Which role the table shows", "Loss over the floor"
            figure, (left, middle, right) = style.panels(7.4, 2.9, *titles)
            self.curve = left.plot([], [], color=BLACK)[0]
            left.axhline(self.floor, color=LOOKS[UNTIED].colour, linestyle=DASHED)
            left.annotate("floor", (self.steps, self.floor), xytext=(0, 2), textcoords="offset points", ha="right", fontsize=7)
            room = 0.05 * (self.start - self.floor)
            left.set(xlim=(0, self.steps), ylim=(self.floor - room, self.start + 2 * room))
            left.set(xlabel="step (optimizer)", ylabel="training loss (nats per token)")
            ratios, losses = [1.0], [0.0]
            if self.sweep:
                swept = self.sweep.conditions
                ratios = [a / b for a, b in swept]
                losses = [float(self.sweep.loss(pair).mean()) for pair in swept]
                for role, look in ROLE_LOOKS.items():
                    purity = [self.sweep.purity(pair, role).mean() for pair in swept]
                    middle.plot(ratios, purity, look.marker, color=look.colour, alpha=0.4)
                right.plot(ratios, losses, LOOKS[TIED].marker, color=BLACK, alpha=0.4)
                style.level(middle, self.sweep.purity_chance)
                right.axhline(self.sweep.loss(None).mean(), color=LOOKS[UNTIED].colour, linestyle=DASHED)
            here = {"markersize": 9, "markeredgecolor": "white", "markeredgewidth": 0.8, "linestyle": "none", "marker": "*"}
            self.here = {role: middle.plot([], [], color=look.colour, **here)[0] for role, look in ROLE_LOOKS.items()}
            self.here["loss"] = right.plot([], [], color=BLACK, **here)[0]
            ratios += [point["ratio"] for point in self.points]
            losses += [point["loss"] for point in self.points]
            for ax in (middle, right):
                ax.set(xscale="log", xlim=(min(ratios) / 2, 2 * max(ratios)), xlabel="input scale / output scale")
            middle.set(ylabel="purity of 10 neighbours (fraction)", ylim=(0, 1))
            right.set(ylabel="nats per token", ylim=(min(0.0, *losses), 1.1 * max(0.1, *losses)))
            looks = [*ROLE_LOOKS.values(), LOOKS[TIED], Look("untied", LOOKS[UNTIED].colour, line=DASHED)]
            looks = [*(replace(look, line="none") for look in looks[:3]), looks[3], Look("trained here", GREY, "*", "none")]
            style.legend(figure, looks)
        self._limits = middle.get_xlim(), right.get_ylim()
        self._stage = Stage(figure, [self.curve, *self.here.values()])

    def restart(self) -> bytes:
        """Return a PNG with an empty loss curve."""
        return self.draw_curve([], [])

    def draw_curve(self, steps: Sequence[int], losses: Sequence[float]) -> bytes:
        """Return a PNG with the training loss (nats per token) after each of `steps`."""
        self._curve = list(steps), list(losses)
        return self._png()

    def grow(self, step: int, loss: float) -> bytes:
        """Return a PNG with one more point of the loss curve."""
        steps, losses = self._curve
        return self.draw_curve([*steps, step], [*losses, loss])

    def join(self, *, ratio: float, source: float, target: float, loss: float) -> bytes:
        """Return a PNG with one more finished run: its purities in both roles, and its loss over the floor."""
        self.points.append({"ratio": ratio, "source": source, "target": target, "loss": loss})
        (left, right), (low, high) = self._limits
        if not (left < ratio < right and low <= loss <= high):
            self._build()
        return self._png()

    def _png(self) -> bytes:
        self.curve.set_data(*self._curve)
        for name, line in self.here.items():
            line.set_data([point["ratio"] for point in self.points], [point[name] for point in self.points])
        return self._stage.png()


def stacked(pictures: Sequence[bytes]) -> bytes:
    """Return a PNG of PNGs of one width, one below the other."""
    images = [Image.open(io.BytesIO(picture)) for picture in pictures]
    whole = Image.new("RGB", (images[0].width, sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    with io.BytesIO() as buffer:
        whole.quantize(255).save(buffer, format="PNG", optimize=True)
        return buffer.getvalue()


def words(text: str) -> bytes:
    """Return a PNG that says `text`."""
    with style.styled():
        figure = Figure(figsize=(7.4, 1.0))
        figure.text(0.5, 0.5, textwrap.fill(text, 90), ha="center", va="center")
        return Stage(figure, []).png()
