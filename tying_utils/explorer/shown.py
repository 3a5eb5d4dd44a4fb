"""What every widget here shares: how it is shown where there are no widgets, how it speaks, and rows that use their width."""

import html
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

from tying_utils.experiments.looks import GREY

WIDE = {"description_width": "initial"}
SLIDER: dict[str, Any] = {"style": WIDE, "layout": {"flex": "1 1 250px", "width": "auto"}}  # all of the width that its row has
SNUG: dict[str, Any] = {"style": WIDE, "layout": {"width": "auto"}}


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
    return f'<div role="{role}" aria-live="polite" style="line-height:1.4;{style}">{html.escape(words)}</div>'


def large(numbers: Mapping[str, tuple[float, float]]) -> str:
    """Return HTML of large numbers, each under its name: that of the ordinary tied arm in grey, and that of what is shown."""
    tiles = (
        f'<div>{html.escape(name)}<div style="font-size:1.6em;line-height:1.25;white-space:nowrap">'
        f'<span style="color:{GREY}">{before:.2f} →</span> <b>{after:.2f}</b></div></div>'
        for name, (before, after) in numbers.items()
    )
    whose = f'<div style="color:{GREY};align-self:end">grey: ordinary tied arm</div>'
    tiles = "".join(tiles).replace(">-", ">−")
    return f'<div style="display:flex;flex-wrap:wrap;gap:0 2.5em;line-height:1.3">{tiles}{whose}</div>'


def flow(*children: Any, align: str = "center") -> Any:
    """Return widgets side by side that go to a further line where the page is narrow."""
    import ipywidgets as widgets

    return widgets.HBox(children, layout={"flex_flow": "row wrap", "align_items": align, "grid_gap": "0 10px"})
