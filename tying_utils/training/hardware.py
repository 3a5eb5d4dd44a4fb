"""Where a run trains and in what, and what a step does on a GPU alone: on the CPU none of that is used, so that runs there
stay what they were."""

import timeit
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tying_utils.training.config import DTYPES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE = 10  # passes, each way
_WORTH_TRYING = 60.0  # seconds of training left; a compiler takes about as long
_GAIN = 0.95  # what is compiled must take less than this part of the time


@dataclass(frozen=True)
class Hardware:
    """Where a run trains and in what, chosen once. `reason` says why, in words."""

    device: torch.device
    dtype: torch.dtype
    reason: str
    compiles: bool = True  # whether a card may compile the blocks where a probe finds that it pays

    @property
    def on_gpu(self) -> bool:
        """Return whether a step does what would change a run's last bits on the CPU, where it is left undone."""
        return self.device.type == "cuda"

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which logits are made."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def choose_hardware(device: str = "auto", dtype: str = "auto") -> Hardware:
    """Choose CUDA, else MPS, else the CPU; bfloat16 autocast where the card computes in it, else float32.

    Weights stay float32. Raises ValueError for a device or dtype that is unknown or not on this machine.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {device!r} is not on this machine; use 'auto' or 'cpu'") from error
    if dtype not in DTYPES:
        raise ValueError(f"dtype: {dtype!r} is unknown; choose one of {', '.join(map(repr, DTYPES))}")
    if dtype != "auto":
        return Hardware(place, getattr(torch, dtype), f"{dtype} on {place.type}, as asked for")
    if place.type == "cuda":
        major, minor = torch.cuda.get_device_capability(place)
        if major >= 8:
            return Hardware(place, torch.bfloat16, f"bfloat16 autocast: compute capability {major}.{minor} has it")
        return Hardware(place, torch.float32, f"float32: compute capability {major}.{minor} has no bfloat16 units")
    return Hardware(place, torch.float32, f"float32: on {place.type} it is the reference")


def without_mask(model: "PreTrainedModel") -> bool:
    """Have `model` attend causally without looking for padding or packed texts first; return whether it could be done.

    transformers looks at the positions of every batch, for which the host waits for the device. Windows here are whole, and
    an attention that is registered without a mask of its own is spared the look.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    config: Any = model.config
    if config.model_type == "gpt_neo":  # its local attention has a mask of its own
        return False
    AttentionInterface.register("causal_sdpa", sdpa_attention_forward)
    model.set_attn_implementation("causal_sdpa")
    return True


def logits_at_once(device: torch.device, least: int) -> int:
    """Return how many logits may exist at a time: what a quarter of a card's memory holds at 16 bytes each, at least `least`.

    The 16 are for values in bfloat16 and float32 with the gradients of both. Fewer at a time are made twice, which costs a
    tenth of a step where the vocabulary is large.
    """
    if device.type != "cuda":
        return least
    return max(least, torch.cuda.get_device_properties(device).total_memory // 64)


def blocks(model: nn.Module) -> nn.ModuleList:
    """Return the transformer blocks of `model`, in order. Raises ValueError where there is no list of them."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            return module
    raise ValueError(f"model: {type(model).__name__} has no list of blocks")


def compile_where_it_pays(
    model: nn.Module,
    once: Callable[[], object],
    *,
    device: torch.device,
    passes: int,
    agreed: Callable[[bool], bool] = bool,
    backend: str = "inductor",
) -> tuple[bool, str]:
    """Compile the blocks of `model` if `PROBE` passes are faster so; return whether it was done, and why, in words.

    `once` is a forward and a backward pass that waits for the `device`, `passes` how many of them are left to train, and
    `agreed` says whether all that train along found the same. Where a single pass tells that training is over before a
    compiler is, no more are tried: ten are a fifth of a run of 50 steps. The blocks alone are compiled: embedding and head,
    whose gradients are watched, stay as they are.
    """
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return False, f"eager: compute capability {major}.{minor} is below 8.0"
    once()
    plain = 0.0
    for probes in (1, PROBE):
        plain = _seconds(once, probes)
        if not agreed(plain * passes >= _WORTH_TRYING):
            return False, f"eager: {plain * passes:.0f} s of training are over before a compiler is"
    compiled, failure = float("inf"), ""
    try:
        for block in blocks(model):
            # On the instance, so that it can be taken back; `Module.compile` has no way back.
            block.forward = torch.compile(block.forward, backend=backend)
        once()  # this one compiles, the next may once more
        once()
        compiled = _seconds(once)
    except Exception as error:  # whatever a compiler trips over, training goes on without it
        failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    times = f"{1e3 * compiled:.1f} ms a pass compiled, {1e3 * plain:.1f} ms eager"
    if agreed(compiled < _GAIN * plain):
        return True, f"compiled: {times}"
    for block in blocks(model):
        vars(block).pop("forward", None)
    return False, f"eager: the compiler failed with {failure}" if failure else f"eager: {times}"


def _seconds(once: Callable[[], object], probes: int = PROBE) -> float:
    return timeit.timeit(once, number=probes) / probes
