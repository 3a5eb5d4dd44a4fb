"""One run on several devices: the processes that torchrun starts, each of them a rank."""

import gc
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Value = TypeVar("Value")

# The others wait while rank 0 writes a checkpoint; where a rank dies, torchrun ends the rest at once.
_PATIENCE = timedelta(hours=1)


@dataclass(frozen=True)
class Ranks:
    """How many processes train the run together, and which of them this is. One process is the default and needs no group."""

    world_size: int = 1
    rank: int = 0

    @classmethod
    def here(cls) -> "Ranks":
        """Return what torchrun says in the environment (WORLD_SIZE, RANK); one process where it did not start this one."""
        return cls(int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0)))

    @property
    def first(self) -> bool:
        """Return whether this is the rank that writes, prints and speaks for the others."""
        return self.rank == 0

    def join(self, device: str = "auto") -> None:
        """Meet the other ranks: NCCL and the GPU of LOCAL_RANK for CUDA, gloo on the CPU. Nothing to do for one process.

        Raises ValueError for a device that the ranks of a machine cannot share out.
        """
        if self.world_size == 1:
            return
        local = int(os.environ.get("LOCAL_RANK", 0))
        cuda = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
        if device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device: {self.world_size} processes cannot share {device!r}; use 'auto', 'cuda' or 'cpu'")
        if not cuda and device == "auto" and torch.backends.mps.is_available():
            raise ValueError(f"device: {self.world_size} processes cannot share 'mps', which 'auto' means here; use 'cpu'")
        if cuda and local >= (there := torch.cuda.device_count()):
            raise ValueError(f"device: process {local} of this machine has no GPU of its own; use --nproc-per-node {there}")
        if cuda:
            torch.cuda.set_device(local)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if cuda else "gloo", timeout=_PATIENCE)

    def leave(self) -> None:
        """Leave the group once all ranks are done, before the interpreter ends: wrapped modules go first."""
        if self.world_size > 1 and dist.is_initialized():
            gc.collect()
            dist.barrier()
            dist.destroy_process_group()

    def local_batch_size(self, batch_size: int, micro_batches: int) -> int:
        """Return the sequences of a batch that each rank takes.

        Raises ValueError where ranks x `micro_batches` do not divide `batch_size`.
        """
        parts = self.world_size * micro_batches
        if batch_size % parts:
            fewer = max(count for count in range(1, self.world_size + 1) if batch_size % (count * micro_batches) == 0)
            raise ValueError(
                f"batch_size: {self.world_size} processes of {micro_batches} micro-batches do not divide a batch of "
                f"{batch_size} sequences; start {fewer} or set batch_size = {-(-batch_size // parts) * parts}"
            )
        return batch_size // self.world_size

    def broadcast(self, value: Value) -> Value:
        """Return rank 0's `value`, which can be pickled, on every rank."""
        if self.world_size == 1:
            return value
        held = [value if self.first else None]
        dist.broadcast_object_list(held, src=0)
        return held[0]  # type: ignore[return-value]

    def broadcast_tensors(self, tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Return rank 0's `tensors` on every rank, on its `device`; they need not lie on a disk that all ranks see."""
        if self.world_size == 1:
            return tensors
        kinds = self.broadcast({name: (value.shape, value.dtype) for name, value in tensors.items()})
        received = {}
        for name, (shape, dtype) in kinds.items():
            value = tensors[name].to(device) if self.first else torch.empty(shape, dtype=dtype, device=device)
            dist.broadcast(value, src=0)
            received[name] = value
        return received

    def all_gather(self, value: Value) -> list[Value]:
        """Return every rank's `value`, in the order of the ranks, on every rank."""
        held: list[Any] = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(held, value)
        return held

    def all_reduce(self, value: Tensor) -> Tensor:
        """Sum `value` over the ranks, in place, and return it."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def data_parallel(self, module: nn.Module) -> nn.Module:
        """Return `module` with its gradients averaged over the ranks in every backward pass except those under `no_sync`.

        Two Parameters on one storage, as of a split tie, have a gradient each. Buffers are constants and are not sent.
        """
        return module if self.world_size == 1 else DistributedDataParallel(module, broadcast_buffers=False)

    def no_sync(self, module: Any) -> AbstractContextManager[Any]:
        """Return a context in which gradients add up on each rank alone, until a backward pass that is not under it."""
        return module.no_sync() if self.world_size > 1 else nullcontext()
