"""Where the parts run, and at what size."""

import gc
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from tying_utils.card.plan import LeftOut


@dataclass(frozen=True)
class Setting:
    """A device, a folder for what is gone at the end, and whether sizes are those that show that the way is right (`smoke`)."""

    device: torch.device
    scratch: Path
    smoke: bool

    def fresh(self) -> None:
        """Forget what earlier tasks have left: models held by their own hooks, cached memory, and compiled code.

        A compiler that has seen a function at two sizes compiles it for any size, and from the ninth on not at all.
        """
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()

    def peak(self) -> dict[str, int]:
        """Return the most bytes of the card's memory that were held since it was `fresh`; nothing where there is no card."""
        return {"peak_bytes": torch.cuda.max_memory_allocated(self.device)} if self.device.type == "cuda" else {}

    def room(self, size: int, smaller: str) -> None:
        """Raise `LeftOut` unless the card has `size` bytes free, once it is `fresh`; `smaller` says what would fit."""
        self.fresh()
        if self.device.type == "cuda" and size > (free := torch.cuda.mem_get_info(self.device)[0]):
            raise LeftOut(f"{size / 1e9:.1f} GB of the card's memory are needed, {free / 1e9:.1f} are free; {smaller}")
