"""What a remedy is, and those that weigh the two path gradients of a tied table, one small frozen class each.

    tie = SplitTie(model, NormMatch(target=0.5))    # and at every step: tie.combine(step=step, steps=steps)

A remedy holds its parameters alone. A `PathRule` says, at every step, by how much each path gradient counts; what it remembers
is a dictionary of tensors that the split tie keeps. The other remedies are in `reparameterise` and `balance`, which lists all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tying_utils.base import checks
from tying_utils.base.checks import positive

Weight = float | Tensor  # of a path's gradient (V, d): one number, a tensor of no dimension, or one weight per row (V, 1)
Scales = tuple[Weight, Weight]  # of the input path's and of the output path's gradient
State = dict[str, Tensor]  # what a rule remembers from step to step, by name


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def share(name: str, value: float, *, whole: bool = True) -> float:
    """Return `value` as a float from 0 to 1, which is allowed where `whole`; else ValueError."""
    if checks.scale(name, value) > 1 or (value == 1 and not whole):
        raise ValueError(f"{name}: a number from 0 {'to' if whole else 'up to but not'} 1 is needed, got {value!r}")
    return float(value)


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """What all remedies say of themselves. Raises ValueError on construction for parameters out of range."""

    name: ClassVar[str]
    line: ClassVar[str]  # what it does, in a line
    fits: ClassVar[tuple[bool, ...]] = (True,)  # which models it can be asked of: tied, untied
    coupled: ClassVar[bool] = False  # whether the tables are stepped by `optimizers.CoupledAdamW`

    def check_width(self, d_model: int) -> None:
        """Raise ValueError where tables of that width cannot have this remedy."""

    def added_parameters(self, vocab_size: int, d_model: int) -> int:
        """Return how many more weights (below 0: fewer) are trained, at the end, than in the model it is asked of."""
        return 0

    def tied_after(self, tied: bool, step: int, steps: int) -> bool:
        """Return whether the model is expressed with one table after `step` of `steps`, if it was asked for as `tied`."""
        return tied

    def rates(self) -> tuple[float, float]:
        """Return what multiplies the learning rate of the input and of the output table."""
        return 1.0, 1.0

    def tables(self, table: Tensor, seed: int) -> nn.Module | None:
        """Return the module (`reparameterise`) whose weights the tables come from, started from an initial `table` (V, d)."""
        return None

    def as_dict(self) -> dict[str, Any]:
        """Return name and parameters as plain values; `balance.get` is the inverse."""
        return {"name": self.name, **dataclasses.asdict(self)}

    def _set(self, **values: Any) -> None:
        """Set fields to what their checks returned: 5 and 5.0 are one remedy."""
        for name, value in values.items():
            object.__setattr__(self, name, value)


class PathRule(Remedy):
    """A remedy that weighs the two path gradients of a tied table: grad W = s_in G_in + s_out G_out at every step."""

    # Entries of the state that each process counts for itself, to be summed over processes before `scales`.
    summed: ClassVar[tuple[str, ...]] = ()
    watches: ClassVar[bool] = False  # whether `watch` hooks the output layer, which then has to be called

    def state(self, table: Tensor) -> State:
        """Return what is remembered from step to step, by name, as before the first step; on the device of `table` (V, d)."""
        return {}

    def watch(self, head: nn.Module, state: State, begin: Callable[[], Any]) -> list[RemovableHandle]:
        """Return hooks on the output layer, for a rule that has to see more than the two gradients; none by default.

        `begin` is to be called before a backward pass is counted: it drops what a skipped step has left of `summed`.
        """
        return []

    def scales(self, source: Tensor, target: Tensor, step: int, steps: int, state: State) -> Scales:
        """Return weights of the input path's and of the output path's gradient (V, d) at `step` (from 1) of `steps`."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Scale(PathRule):
    """Constant scales (arXiv 2603.26663, section 5); with both 1 the ordinary tied gradient."""

    name: ClassVar[str] = "scale"
    line: ClassVar[str] = "constant scales of the two paths"
    input: float = 1.0
    output: float = 1.0

    def __post_init__(self) -> None:
        self._set(input=checks.scale("input", self.input), output=checks.scale("output", self.output))

    def scales(self, source: Tensor, target: Tensor, step: int, steps: int, state: State) -> Scales:
        return self.input, self.output


@dataclass(frozen=True, kw_only=True)
class Schedule(PathRule):
    """Constant scales in the steps with start < step / steps <= stop, and 1 in the others.

    Early only: start 0; late only: stop 1. The question is that of arXiv 2603.26663, where the dominance of the output path is
    found early in training; the schedules are ours.
    """

    name: ClassVar[str] = "schedule"
    line: ClassVar[str] = "constant scales in a part of training alone: early (start 0) or late (stop 1)"
    input: float = 5.0
    output: float = 1.0
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        self._set(input=checks.scale("input", self.input), output=checks.scale("output", self.output))
        self._set(start=share("start", self.start), stop=share("stop", self.stop))
        if self.start >= self.stop:
            raise ValueError(f"start and stop: start < stop is needed, got {self.start} and {self.stop}")

    def scales(self, source: Tensor, target: Tensor, step: int, steps: int, state: State) -> Scales:
        # Divided, as documented: 0.57 * 100 is below 57.
        return (self.input, self.output) if self.start < step / steps <= self.stop else (1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class NormMatch(PathRule):
    """Hold the output share of the combined gradient, ||s_out G_out|| / (||s_in G_in|| + ||s_out G_out||), at `target`.

    Both paths are scaled, so that the sum of their norms stays what it was. With `smoothing` b in (0, 1) the norms are moving
    averages (n <- b n + (1 - b) ||G||, over 1 - b^step). A path without a gradient keeps the scale 1. Ours; GradNorm
    (arXiv 1711.02257) learns weights of many losses to a like end.
    """

    name: ClassVar[str] = "norm-match"
    line: ClassVar[str] = "hold the output share of the gradient's norm at a target, with or without smoothing"
    target: float = 0.5
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        self._set(target=share("target", self.target), smoothing=share("smoothing", self.smoothing, whole=False))

    def state(self, table: Tensor) -> State:
        # float32 at least: a bfloat16 average stands still where a step adds less than a 256th of it.
        return {"norms": torch.zeros(2, device=table.device, dtype=_precise(table.dtype))}

    def scales(self, source: Tensor, target: Tensor, step: int, steps: int, state: State) -> Scales:
        held = state["norms"]
        norms = torch.stack([torch.linalg.vector_norm(path, dtype=held.dtype) for path in (source, target)])
        # A step that overflowed, which a scaler of gradients skips, would be remembered for good.
        held.copy_(torch.where(norms.isfinite().all(), held.lerp(norms, 1 - self.smoothing), held))
        norms = held / (1 - self.smoothing**step)
        total = norms.sum()
        wanted = torch.stack([total * (1 - self.target), total * self.target])
        first, second = torch.where(norms > 0, wanted / norms, 1.0).to(source.dtype).unbind()
        return first, second


@dataclass(frozen=True, kw_only=True)
class PCGrad(PathRule):
    """Where the path gradients conflict (negative inner product), each loses its component along the other.

    Algorithm 1 of arXiv 2001.06782 with the two paths as tasks and the table as the shared weights; the projections
    G_in - (G_in.G_out / ||G_out||^2) G_out and its mirror image add up to a weighted sum of the two gradients. by="table"
    takes the whole table as one vector, by="row" (ours) each token's row.
    """

    name: ClassVar[str] = "pcgrad"
    line: ClassVar[str] = "project conflicting path gradients onto each other's normal plane, by table or by row"
    by: str = "table"

    def __post_init__(self) -> None:
        if self.by not in ("table", "row"):
            raise ValueError(f"by: 'table' or 'row' is needed, got {self.by!r}")

    def scales(self, source: Tensor, target: Tensor, step: int, steps: int, state: State) -> Scales:
        def dot(a: Tensor, b: Tensor) -> Tensor:
            wide = _precise(a.dtype)  # squares of half precision underflow
            rows = torch.einsum("vd,vd->v", a.to(wide), b.to(wide))
            return rows[:, None] if self.by == "row" else rows.sum()

        product, first, second = dot(source, target), dot(source, source), dot(target, target)
        conflict = (product < 0) & (first > 0) & (second > 0)

        def weight(norm: Tensor) -> Tensor:
            return torch.where(conflict, 1 - product / norm, 1.0).to(source.dtype)

        return weight(first), weight(second)


@dataclass(frozen=True, kw_only=True)
class Shrink(PathRule):
    """Embedding layer gradient shrink: the input path's gradient times alpha, as GLM-130B trained with 0.1.

    arXiv 2210.02414 writes it as embedding * alpha + embedding.detach() * (1 - alpha), which leaves the values alone. In a tied
    model it is the constant input scale alpha. It turns the table further to the output: a control, not a cure.
    """

    name: ClassVar[str] = "shrink"
    line: ClassVar[str] = "GLM-130B's embedding gradient shrink: the input path times alpha"
    alpha: float = 0.1

    def __post_init__(self) -> None:
        self._set(alpha=share("alpha", self.alpha))

    def scales(self, source: Tensor, target: Tensor, step: int, steps: int, state: State) -> Scales:
        return self.alpha, 1.0


@dataclass(frozen=True, kw_only=True)
class RareGate(PathRule):
    """Adaptive gradient gating (AGG, arXiv 2109.03127): rare tokens are pushed less by other tokens' targets.

    With a_k the count of token k among the targets of the last `memory` steps, token k is rare where f_k = a_k / steps < alpha.
    In row k of the output path's gradient, what a position with another target adds is multiplied by f_k where that
    target is not rare and by min(a_k / mean of a over rare tokens, 1) where it is; what positions with the target k add,
    and all rows of tokens that are not rare, stay. The trunk's gradient stays whole.

    The path gradient itself comes gated, and both scales are 1. The counts are of the steps before the present one (in the
    first nothing is gated), so that neither micro-batches nor processes change them; the released code counts the present
    batch too, over one epoch. The target of a position is read off the logits' gradient, which of a cross-entropy is negative
    there alone. `alpha` is in appearances per step: it depends on the batch.
    """

    name: ClassVar[str] = "rare-gate"
    line: ClassVar[str] = "AGG: gate what other tokens' targets do to the output gradient of rare tokens"
    summed: ClassVar[tuple[str, ...]] = ("present",)
    watches: ClassVar[bool] = True
    alpha: float = 0.03
    memory: int = 100

    def __post_init__(self) -> None:
        self._set(alpha=share("alpha", self.alpha), memory=positive("memory", self.memory))

    def state(self, table: Tensor) -> State:
        V, at = len(table), table.device
        return {
            "counts": torch.zeros(self.memory, V, device=at),  # a row per step, the oldest overwritten
            "present": torch.zeros(V, device=at),  # of the step that is not yet combined
            "seen": torch.zeros(1, device=at),  # steps
            "gates": torch.ones(2, V, device=at),  # by whether the position's target is rare: no, yes
        }

    def watch(self, head: nn.Module, state: State, begin: Callable[[], Any]) -> list[RemovableHandle]:
        weight: Any = head.weight
        counter = torch.zeros_like(state["present"], requires_grad=True)  # whose gradient is how often each target occurred
        opened = list[list[Tensor]]()  # holds, while the head is called, where the gradient of that call's logits will go

        def before(module: nn.Module, args: Any) -> Any:
            opened.clear()
            if torch.is_grad_enabled() and weight.requires_grad and module is head:  # a deep copy of the model copies the hooks
                opened.append([])
                return _Gate.apply(args[0], weight, counter, state["gates"], opened[0]), *args[1:]

        def after(module: nn.Module, args: Any, output: Tensor) -> None:
            if opened and module is head:
                output.register_hook(opened.pop().append)

        def count(counter: Tensor) -> None:
            begin()
            if counter.grad is not None:
                state["present"].add_(counter.grad)
            counter.grad = None

        hooks = [head.register_forward_pre_hook(before), head.register_forward_hook(after)]
        return [*hooks, counter.register_post_accumulate_grad_hook(count)]

    def scales(self, source: Tensor, target: Tensor, step: int, steps: int, state: State) -> Scales:
        state["counts"].index_copy_(0, (state["seen"] % self.memory).long(), state["present"][None])
        state["present"].zero_()
        state["seen"] += 1
        counts = state["counts"].sum(0)
        frequency = counts / state["seen"].clamp(max=self.memory)
        rare = frequency < self.alpha
        mean = (counts * rare).sum() / rare.sum().clamp(min=1)
        among_rare = (counts / mean.clamp(min=1e-7)).clamp(max=1.0)
        state["gates"].copy_(torch.where(rare, torch.stack([frequency, among_rare]), 1.0))
        return 1.0, 1.0


class _Gate(torch.autograd.Function):
    """What the head reads, as it is. Backward: what gating changes of the weight's gradient (V, d), and counts of targets (V,).

    Both are gradients, so that a backward pass accumulates them or does not, as it does the weight's own.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, counter: Tensor, gates: Tensor, slopes: list[Tensor]) -> Tensor:
        ctx.save_for_backward(hidden)
        ctx.gates, ctx.slopes, ctx.dtype = gates, slopes, weight.dtype
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (hidden,), grad = ctx.saved_tensors, ctx.slopes[-1]  # those before are of passes that went no further than the logits
        ctx.slopes.clear()
        grad, hidden = grad.flatten(0, -2), hidden.flatten(0, -2)
        least, target = grad.min(1)
        common, rare = ctx.gates
        # Positions that the loss ignores have no gradient and no target.
        counts = torch.zeros_like(common).index_add_(0, target, (least < 0).float())
        seldom = common < 1  # f_k < alpha <= 1 for rare tokens, 1 for the others
        factor = torch.where(seldom[target][:, None], rare, common).scatter_(1, target[:, None], 1.0)
        change = (grad * (factor - 1)).to(ctx.dtype).T @ hidden.to(ctx.dtype)
        return grads[0], change, counts, None, None
