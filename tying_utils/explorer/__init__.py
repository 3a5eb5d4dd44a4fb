"""Sliders over the scales and over model sizes, and live training. Each name is imported when it is first asked for."""

from typing import TYPE_CHECKING

from tying_utils.base.lazy import lazily

if TYPE_CHECKING:
    from tying_utils.explorer.advice import Decide, decide
    from tying_utils.explorer.live import live
    from tying_utils.explorer.sliders import Explore, explore

__all__ = ["Decide", "Explore", "decide", "explore", "live"]
__getattr__ = lazily(
    __name__, {"live": "live", "Explore": "sliders", "explore": "sliders", "Decide": "advice", "decide": "advice"}
)
