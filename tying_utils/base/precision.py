"""The precision that numbers are promised in, whatever the caller's torch is set to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def plain() -> Iterator[None]:
    """Compute in the dtypes that tensors have: no autocast, and float32 as the default; both are put back.

    The default is the whole process's: where it is another, let one thread measure or train at a time.
    """
    default = torch.get_default_dtype()
    with ExitStack() as stack:
        for device in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
