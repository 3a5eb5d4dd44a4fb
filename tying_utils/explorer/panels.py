"""Pictures for sliders: what does not move is drawn once, and only what moves is drawn again, within a blink.

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
from tying_utils.experiments.looks import BLACK, DASHED, DOTTED, GREY, LOOKS, ROLE_LOOKS, W_WITH, Look
from tying_utils.study.sweep import ORDINARY, Scales, Sweep

DPI = 150
GHOST = "#b5b5b5"  # the ordinary tied arm, behind every condition


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
    """The linked panels of a sweep over training: alignment with its distance, the output bias, and the output path's share.

    The ordinary tied arm stays behind every condition as a grey ghost.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        with style.styled():
            self._build()

    def _build(self) -> None:
        sweep = self.sweep
        figure, (a, b) = style.panels(7.2, 3.1, "How W aligns, and its output bias", "Output path's share")
        self.figure = figure
        for ax in (a, b):
            ax.set_title("", loc="left")  # no letters: the third panel is the map
        looks = {"input": replace(W_WITH["input"], label="W with E"), "output": replace(W_WITH["output"], label="W with U")}
        looks |= {"bias": Look("output bias U − E", BLACK, line=DOTTED)}
        looks |= {"output_share": Look("share of gradient", BLACK)}
        looks |= {"output_update_share": Look("share of Adam update", BLACK, line=DASHED)}
        places = {name: (b, sweep.spans) if "share" in name else (a, sweep.steps) for name in looks}
        self.ghosts = {name: _Bundle(*places[name], replace(look, colour=GHOST)) for name, look in looks.items()}
        self.curves = {name: _Bundle(*places[name], look) for name, look in looks.items()}
        self.between = a.fill_between(sweep.steps, 0, 0, color=GREY, alpha=0.15, linewidth=0)
        self.distance = a.plot([], [], color=BLACK, linewidth=2.5, marker="_", markersize=7)[0]
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
        text = {
            "xytext": (8, 0),
            "textcoords": "offset points",
            "va": "center",
            "fontsize": 9,
            "fontweight": "bold",
            "bbox": box,
        }
        self.number = a.annotate("", (0, 0), **text)
        self.step = b.axvline(0, color=GREY, linewidth=5, alpha=0.3)
        self.title = figure.supxlabel("input scale 1", fontsize="medium", fontweight="bold")
        style.level(a, 0)
        style.level(b, 0.5)
        last = sweep.steps[-1]
        for ax in (a, b):
            ax.set_xscale("symlog", linthresh=1, linscale=0.5)
            ax.set(xlabel="step (optimizer)", xlim=(-0.1, (5 if ax is a else 1.3) * last))
            ticks = [0, *(step for step in (1, 10, 100, 1000, 10_000) if step < last / 1.5), last]
            ax.set_xticks(ticks, [str(step) for step in ticks])
            ax.minorticks_off()
        low, high = _range(values for pair in sweep.conditions for values in self._values(pair).values())
        a.set(ylabel="alignment, corrected for chance", ylim=(min(-0.03, 1.05 * low), 1.05 * high))
        b.set(ylabel="output share of the norm", ylim=(0, 1))
        style.legend(figure, [*looks.values(), Look("ordinary tied arm", GHOST)])
        moving = [self.between, self.distance, self.number, self.step, self.title]
        bundles = [*self.ghosts.values(), *self.curves.values()]
        self._stage = Stage(figure, [*(artist for bundle in bundles for artist in bundle.artists), *moving])

    def _values(self, scales: Scales) -> dict[str, np.ndarray]:
        """Return what each curve of the first panel shows of a condition, (seeds, steps)."""
        aligned = {name: self.sweep.alignment(scales, name, "corrected") for name in W_WITH}
        return aligned | {"bias": self.sweep.bias(scales)}

    def _shares(self, scales: Scales) -> dict[str, np.ndarray]:
        """Return what each curve of the second panel shows of a condition, (seeds, spans)."""
        return {name: self.sweep.share(scales, name) for name in ("output_share", "output_update_share")}

    def show(self, scales: Scales, step: int, seed: int | None = None, words: str = "") -> bytes:
        """Return a PNG of a condition with `step` marked: of `seed`, or of all and their mean. `words` follow its name."""
        sweep, rows = self.sweep, self.sweep.rows(seed)
        shown, ordinary = (self._values(pair) | self._shares(pair) for pair in (scales, ORDINARY))
        for name, curve in self.curves.items():
            curve.show(shown[name][rows])
            self.ghosts[name].show(ordinary[name][rows].mean(0, keepdims=True))
        low, high = (shown[name][rows].mean(0) for name in W_WITH)
        self.between.set_data(sweep.steps, low, high)
        at = sweep.steps.index(step)
        ends = float(low[at]), float(high[at])
        self.distance.set_data([step, step], ends)
        self.number.set_text(f"{ends[1] - ends[0]:+.2f}".replace("-", "−"))
        self.number.xy = step, sum(ends) / 2
        self.step.set_xdata([step, step])
        whose = f"mean of {len(sweep.seeds)} seeds" if seed is None else f"seed {seed}"
        self.title.set_text(f"input ×{scales[0]:g}, output ×{scales[1]:g}, step {step}, {whose}{words}")
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
