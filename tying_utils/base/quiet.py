"""Keep transformers' own bars and notes out of the way: the user sees this package's bars, or none."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def _worth_telling(record: logging.LogRecord) -> bool:
    """Return whether a message says more than that a faster kernel is not installed."""
    message = record.getMessage()
    return not ("falling back to its reference" in message or "fast path is not available" in message)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' progress bars, and what it says of missing kernels, and put the user's settings back."""
    from huggingface_hub.utils.tqdm import progress_bar_states
    from transformers.utils import logging as theirs

    shown, held = theirs.is_progress_bar_enabled(), dict(progress_bar_states)  # the hub client's own settings, by group
    handlers = [one for one in logging.getLogger("transformers").handlers if _worth_telling not in one.filters]  # none twice
    for handler in handlers:
        handler.addFilter(_worth_telling)
    _silently(theirs.disable_progress_bar)
    try:
        yield
    finally:
        if shown:
            _silently(theirs.enable_progress_bar)
        progress_bar_states.clear()  # transformers turns the hub client's bars on and off with its own
        progress_bar_states.update(held)
        for handler in handlers:
            handler.removeFilter(_worth_telling)


def _silently(switch: Callable[[], None]) -> None:
    """Call `switch`, which warns where the environment (HF_HUB_DISABLE_PROGRESS_BARS) has decided."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        switch()
