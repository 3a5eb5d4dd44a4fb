"""A page that plays without Python: the swept scales of each corpus with sliders, in one file that loads nothing.

Vega-Lite draws; each chart binds its parameters to the page's own inputs, so that they move together.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tying_utils.base import files
from tying_utils.base.names import TIED
from tying_utils.experiments.looks import BLUE, CORPORA, GREY, ORANGE
from tying_utils.measures.statistics import mean_interval
from tying_utils.study import profiles, sweep
from tying_utils.study.sweep import Scales, Sweep

MEAN = "mean"
_SHOWN = "datum.input == input && datum.output == output && datum.seed == seed"
_INK = "currentColor"  # the page's, light or dark: the charts are SVG
_TABLES = {"input": "with E (input)", "output": "with U (output)"}
_TEMPLATE = Path(__file__).with_name("explore.html.j2")
_PICTURES = {
    "alignment": ("Which table W is like", "alignment with E and with U; 0 is chance"),
    "share": ("Whose gradient is larger", "output side's share, before the scales; 0.5: equal"),
    "map": ("All pairs: output bias", "orange: closer to U; blue: to E; press a pair"),
}


def library() -> Any:
    """Return Altair. Raises ValueError, with what installs them, where it or vl-convert, which has its scripts, is missing."""
    try:
        import altair
        import vl_convert  # noqa: F401
    except ImportError as error:
        words = f"altair and vl-convert-python are needed for explore.html and could not be imported ({error})"
        raise ValueError(f"{words}: pip install '.[site]' in the checkout") from error
    return altair


def write(page: Path, profile: str = "laptop") -> None:
    """Write the sweep that `profile` explores to `page`, one HTML file that loads nothing: a committed one is only read.

    Raises ValueError for an unknown profile, and without Altair.
    """
    version = library().SCHEMA_VERSION.removeprefix("v").split(".")  # of Vega-Lite
    import vl_convert
    from jinja2 import Template

    swept = [Sweep.of(sweep.study(profile, corpus)) for corpus in sweep.corpora(profile)]
    charts = {f"{of.corpus}-{name}": chart.to_dict() for of in swept for name, chart in _charts(of).items()}
    scripts = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed", ".".join(version[:2]))
    text = Template(_TEMPLATE.read_text(encoding="utf-8"), autoescape=False).render(
        pictures=_PICTURES,
        words=_words(swept),
        parts=[_part(of) for of in swept],
        scripts=scripts.replace("</script", "<\\/script"),
        charts=json.dumps(charts, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/"),
    )
    with files.replacing(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


def numbers(of: Sweep) -> pd.DataFrame:
    """Return a row per condition and seed, and one for their mean: output bias and loss with intervals, and the tied arm's.

    `input` and `output` count the stops of the sliders from 0; the bounds of a single seed are missing.
    """
    measured = {"bias": lambda pair: of.bias(pair)[:, -1], "loss": of.loss}
    rows = []
    for row, pair, seeds in _conditions(of):
        rows.append(row | {"input_scale": pair[0], "output_scale": pair[1]})
        for name, values in measured.items():
            found = mean_interval(values(pair)[seeds])
            tied = mean_interval(values((1.0, 1.0))[seeds]).mean
            rows[-1] |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high, f"{name}_tied": tied}
    return pd.DataFrame(rows)


def curves(of: Sweep) -> pd.DataFrame:
    """Return a row per condition, seed (or mean), curve and step: corrected alignment "input", "output", and output "share"."""
    rows = []
    for row, pair, seeds in _conditions(of):
        measured = {name: (of.steps, of.alignment(pair, name, "corrected")) for name in _TABLES}
        for curve, (steps, values) in (measured | {"share": (of.spans, of.share(pair))}).items():
            for step, column in zip(steps, values[seeds].T, strict=True):
                found = mean_interval(column)
                ends = (found.low, found.high) if found.n > 1 else (found.mean, found.mean)
                rows.append(row | {"curve": curve, "step": step, "value": found.mean, "low": ends[0], "high": ends[1]})
    return pd.DataFrame(rows)


def _conditions(of: Sweep) -> list[tuple[dict[str, Any], Scales, Any]]:
    """Return for every condition and choice of seeds: what the inputs say of it, its scales, and its rows in the arrays."""
    places = [(a, b, pair) for a, x in enumerate(of.input_scales) for b, y in enumerate(of.output_scales) for pair in [(x, y)]]
    choices: dict[Any, Any] = {MEAN: slice(None)} | {seed: [row] for row, seed in enumerate(of.seeds)}
    return [({"input": a, "output": b, "seed": seed}, pair, rows) for a, b, pair in places for seed, rows in choices.items()]


def _words(swept: list[Sweep]) -> str:
    trained = []
    for of in swept:
        config, losses = profiles.get(of.profile, of.corpus).config(TIED, of.seeds[0]), of.tables["sweep_losses"]
        length = config.steps * config.batch_size * config.context / losses["parameters"].max()  # of the untied model's weights
        trained.append(f"{length:.2g} ({CORPORA[of.corpus].label})")
    return (
        "Two gradients write a tied table: one comes from the input side, one from the output side. The sliders multiply them. "
        "A larger input scale moves the table W away from U, the output table of an untied model, and towards E, its input "
        "table; the loss says what that costs. The ordinary tied model, both scales 1, is drawn in grey. These small models "
        f"were trained for {' and '.join(trained)} tokens per weight, about the first hundredth of the paper's training: here "
        "one sees how a table begins, not how it ends."
    )


def _part(of: Sweep) -> dict[str, Any]:
    """Return what the template says of one corpus."""
    stops = {"input": of.input_scales, "output": of.output_scales}
    start = {path: sweep.nearest(f"{path}_scale", scale, stops[path]) for path, scale in (("input", 10), ("output", 1))}
    return {
        "name": of.corpus,
        "title": CORPORA[of.corpus].label,
        "stops": {path: [f"{scale:g}" for scale in scales] for path, scales in stops.items()},
        "start": {path: scales.index(start[path]) for path, scales in stops.items()},
        "seeds": [MEAN, *of.seeds],
        "note": f"Grey: the ordinary tied model. Mean: of {len(of.seeds)} seeds, with its 95 % interval as a band.",
    }


def _charts(of: Sweep) -> dict[str, Any]:
    """Return the Altair charts of one corpus by name; each has the parameters input, output and seed."""
    alt = library()
    inputs = {name: alt.BindDirect(element=f"#{of.corpus}-{name}") for name in ("input", "output", "seed")}
    table, drawn = numbers(of), curves(of)
    aligned = drawn[drawn["curve"] != "share"].replace({"curve": _TABLES})
    low, high = min(0.0, aligned["low"].min()), aligned["high"].max()  # of every condition: axes never jump
    legend = alt.Legend(orient="top", title=None, symbolStrokeWidth=0)
    looks = {
        "color": alt.Color("curve:N", scale=alt.Scale(domain=[*_TABLES.values()], range=[BLUE, ORANGE]), legend=legend),
        "shape": alt.Shape("curve:N", scale=alt.Scale(domain=[*_TABLES.values()], range=["circle", "square"]), legend=legend),
    }
    tied = {"color": alt.value(_INK), "shape": alt.value("diamond")}
    loss = "loss above the language's own" if of.has_floor else "loss"
    charts = {
        "bias": _number(table, "bias", "output bias"),
        "loss": _number(table, "loss", loss, " nats"),
        "alignment": _lines(of, aligned, "corrected alignment", [low, 1.05 * high - 0.05 * low], **looks),
        "share": _lines(of, drawn[drawn["curve"] == "share"], "output share", [0, 1], **tied),
        "map": _map(of, table, {name: inputs[name] for name in ("input", "output")}),
    }
    chosen = [alt.param(name=name, value=MEAN, bind=bind) for name, bind in inputs.items()]  # Vega takes the inputs' values
    return {name: _styled(name, chart, chosen) for name, chart in charts.items()}


def _number(table: pd.DataFrame, name: str, words: str, unit: str = "") -> Any:
    alt = library()
    text = {
        "words": json.dumps(f"{words}, tied → this pair", ensure_ascii=False),
        "large": f"format(datum.{name}_tied, '.2f') + ' → ' + format(datum.{name}, '.2f') + '{unit}'",
        "small": f"datum.seed == '{MEAN}' ? '95 % interval of this pair ' + format(datum.{name}_low, '.2f') + ' to ' + "
        f"format(datum.{name}_high, '.2f') : 'seed ' + datum.seed",
    }
    base = alt.Chart(_csv(table)).transform_filter(_SHOWN).transform_calculate(**text)
    looks: dict[str, Any] = {line: {"y": y, "fontSize": 13} for line, y in (("words", 8), ("large", 34), ("small", 60))}
    looks["large"] |= {"fontSize": 30, "fontWeight": "bold"}
    return alt.layer(*(base.mark_text(align="left", x=0, **look).encode(text=f"{line}:N") for line, look in looks.items()))


def _lines(of: Sweep, frame: pd.DataFrame, title: str, limits: list[float], color: Any, shape: Any) -> Any:
    alt, last = library(), of.steps[-1]
    ticks = [0, *(step for step in (1, 10, 100, 1000) if step < last / 1.5), last]
    x = alt.X("step:Q", title="step (optimizer)", scale=alt.Scale(type="symlog"), axis=alt.Axis(values=ticks))
    y = alt.Y("value:Q", title=title, scale=alt.Scale(domain=limits, nice=False))
    base = alt.Chart(_csv(frame)).encode(x=x, detail="curve:N")
    tied = f"datum.input == {of.input_scales.index(1)} && datum.output == {of.output_scales.index(1)} && datum.seed == seed"
    ghost = base.transform_filter(tied).mark_line(color=GREY, point={"color": GREY, "size": 25}, opacity=0.55)
    moved = base.transform_filter(_SHOWN).encode(color=color)
    band = moved.mark_area(opacity=0.25).encode(y=alt.Y("low:Q", title=title), y2="high:Q")
    line = moved.mark_line(point={"size": 45, "filled": True})
    return alt.layer(ghost.encode(y=y, shape=shape), band, line.encode(y=y, shape=shape))


def _map(of: Sweep, table: pd.DataFrame, inputs: dict[str, Any]) -> Any:
    alt = library()
    most = float(np.abs(table["bias"]).max())
    # Bound to the sliders like the charts' own parameters. Only on cells: a click beside them would choose nothing.
    pick = alt.selection_point(name="pick", fields=[*inputs], bind=inputs, on="rect:click")
    # What is read from CSV as a name is text; the larger output scale is above.
    columns, rows = ([f"{scale:g}" for scale in scales] for scales in (of.input_scales, of.output_scales[::-1]))
    x = alt.X("input_scale:O", title="input scale", sort=columns, axis=alt.Axis(labelAngle=0))
    y = alt.Y("output_scale:O", title="output scale", sort=rows)
    base = alt.Chart(_csv(table)).transform_filter("datum.seed == seed").encode(x=x, y=y)
    colour = alt.Color("bias:Q", scale=alt.Scale(scheme="blueorange", domain=[-most, most]), legend=None)
    shown = [alt.Tooltip(f"{name}:N", title=name.replace("_", " ")) for name in ("input_scale", "output_scale")]
    shown += [alt.Tooltip(f"{name}:Q", format=".2f") for name in ("bias", "loss")]
    cells = base.mark_rect(cursor="pointer").encode(color=colour, tooltip=shown).add_params(pick)
    ink = alt.condition(f"abs(datum.bias) > {0.75 * most}", alt.value("white"), alt.value("black"))
    text = base.mark_text(fontSize=11).encode(text=alt.Text("bias:Q", format=".2f"), color=ink)
    return alt.layer(cells, text, base.transform_filter(_SHOWN).mark_rect(fillOpacity=0, stroke=_INK, strokeWidth=3))


def _styled(name: str, chart: Any, chosen: list[Any]) -> Any:
    ink = {"labelColor": _INK, "titleColor": _INK, "titleFontWeight": "normal", "labelFontSize": 12, "titleFontSize": 12}
    axis = ink | {"domainColor": _INK, "tickColor": _INK, "gridColor": _INK, "gridOpacity": 0.12}
    title, height = (_PICTURES[name][0], 220) if name in _PICTURES else (name, 68)
    shared = chart.properties(width="container", height=height, background="transparent", description=title)
    shared = shared.add_params(*chosen)
    return shared.configure_axis(**axis).configure_legend(**ink).configure_text(color=_INK).configure_view(stroke=None)


def _csv(frame: pd.DataFrame) -> Any:
    """Return a table as inline data in its shortest text, to four digits."""
    alt = library()
    with io.StringIO() as text:
        frame.to_csv(text, index=False, float_format="%.4g")
        return alt.InlineData(values=text.getvalue(), format=alt.DataFormat({"type": "csv"}))
