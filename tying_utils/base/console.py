"""Words and progress bars. Neither ends a run: what a console cannot show is spelt otherwise, or passed over."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import auto


def say(*words: object, file: TextIO | None = None) -> None:
    """Print `words` in a line, to stdout or `file`. What that cannot encode is spelt with backslashes.

    A stream that is closed or has no room, as a pipe whose reader is gone, is passed over; Python tells of it at its end.
    """
    file = file or sys.stdout
    line = " ".join(map(str, words))
    with suppress(OSError, ValueError):
        try:
            print(line, file=file, flush=True)
        except UnicodeEncodeError:
            encoding = getattr(file, "encoding", None) or "ascii"  # the error would say "charmap" of a code page
            print(line.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)


if TYPE_CHECKING:
    from tqdm.auto import tqdm as tqdm
else:

    class tqdm(auto.tqdm):
        """tqdm's bar in a notebook or a terminal; where it cannot be drawn, the work goes on without it."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            try:
                sys.stderr.flush()
            except (AttributeError, OSError, ValueError):  # there is none, as of pythonw; its reader is gone; it is closed
                options["disable"] = True
            super().__init__(*arguments, **options)

        def display(self, *arguments: Any, **options: Any) -> bool:
            with suppress(OSError, ValueError):
                return super().display(*arguments, **options)
            return False

        def close(self) -> None:
            with suppress(OSError, ValueError):
                super().close()

        @classmethod
        def write(cls, *arguments: Any, **options: Any) -> None:
            with suppress(OSError, ValueError):
                super().write(*arguments, **options)
