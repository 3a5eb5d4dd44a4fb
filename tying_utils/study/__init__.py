"""A scale and its arms: runs to tidy tables, read or measured. Each name is imported when it is first asked for."""

from typing import TYPE_CHECKING

from tying_utils.base.lazy import lazily

if TYPE_CHECKING:
    from tying_utils.study.study import Results, Study

__all__ = ["Results", "Study"]
__getattr__ = lazily(__name__, dict.fromkeys(__all__, "study"))
