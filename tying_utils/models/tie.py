"""One table, two gradients: the split tie.

In a tied model autograd adds the gradient of the input path (the embedding lookup) and of the output path (the logits)
before anyone can see them apart. Two leaves on one storage keep them apart at no cost: each path accumulates into its own
leaf's .grad, and the optimizer is given their weighted sum, with weights given by hand or by a rule of `balance`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tying_utils.base import checks
from tying_utils.models.architectures import tables

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tying_utils.models.rules import PathRule, Weight


class SplitTie:
    """Split the tie of `model` in place, so that each path's gradient stands whole until it is combined.

    The output layer's weight becomes a Parameter of its own on the embedding's storage. One optimizer step is then: any
    number of backward passes; optionally `path_gradients()`; `combine()`; clipping; `optimizer.step()`. It touches the
    table's gradient only, never the trunk's (the intervention of arXiv 2603.26663, section 5, there a factor on the gradient
    at the embedding's output). `save_pretrained` writes an ordinary tied checkpoint.

    With a `rule` (`balance.get`) the scales of each step are the rule's: `combine(step=..., steps=...)`. What the rule
    remembers from step to step is `state`, tensors by name; to resume training, put them back.

    Split after the model is on its device and in its dtype: whatever moves or copies parameters one by one
    (`model.to("cuda")`, a cast, `copy.deepcopy`) breaks the sharing, which is checked at every `combine`.

    Raises ValueError if `model` is untied, or for a rule that does not weigh path gradients.
    """

    def __init__(self, model: PreTrainedModel, rule: PathRule | None = None) -> None:
        if rule is not None and not hasattr(rule, "scales"):
            raise ValueError(f"rule: one that weighs the two paths is needed, got {rule!r}; see balance.PathRule")
        if not tables(model).tied:
            raise ValueError("model: a tied model is needed, this one is untied; build it with tied=True")
        self._model = model
        self._embedding: Any = model.get_input_embeddings()
        self._head: Any = model.get_output_embeddings()
        if self._head.weight is self._embedding.weight:  # otherwise it is split already: share the leaves
            self._head.weight = torch.nn.Parameter(self._embedding.weight.data)
        self._combined = False
        self._buffer: Tensor | None = None  # of the combined gradient: the same memory at every step
        # They run before a gradient is accumulated: the combined one of the last step makes room, zero_grad or not.
        self._hooks = [
            self._embedding.weight.register_hook(self._start_input_afresh),
            self._head.weight.register_hook(self._start_output_afresh),
        ]
        self.rule = rule
        self.state: dict[str, Tensor] = {}
        self.scales: tuple[Weight, Weight] = (1.0, 1.0)  # of the input and of the output path at the last combine
        if rule is not None:
            self.state = rule.state(self.weight.data)
            self._hooks += rule.watch(self._head, self.state)

    def _start_input_afresh(self, grad: Tensor) -> None:
        if self._combined:
            self._embedding.weight.grad = None
            self._combined = False

    def _start_output_afresh(self, grad: Tensor) -> None:
        # The output path comes first in a backward pass. zero_grad, which skips a step, knows nothing of this leaf.
        if self._embedding.weight.grad is None:
            self._head.weight.grad = None

    @property
    def weight(self) -> torch.nn.Parameter:
        """Return the Parameter (V, d) that the optimizer should hold; the other leaf never carries a combined gradient."""
        return self._embedding.weight

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return the model's parameters, the shared table once: what to give to the optimizer and to clipping."""
        return [p for p in self._model.parameters() if p is not self._head.weight]

    def path_gradients(self) -> tuple[Tensor, Tensor]:
        """Return the weight gradients (V, d) of the input and of the output path, accumulated since the last combine.

        The tensors are the leaves' own, not copies, and stand whole after `combine`. A path without any backward pass since
        then has a gradient of zeros.
        """
        self._check_shared()
        source = None if self._combined else self._embedding.weight.grad
        found = source, self._head.weight.grad
        first, second = (torch.zeros_like(self.weight) if gradient is None else gradient for gradient in found)
        return first, second

    def combine(
        self, input_scale: float = 1.0, output_scale: float = 1.0, *, step: int | None = None, steps: int | None = None
    ) -> None:
        """Write grad W = input_scale * G_in + output_scale * G_out into the one gradient that the optimizer sees.

        A split tie with a rule takes the scales from it, for `step` (from 1) of `steps`, and none by hand.

        Raises ValueError for a scale that is negative or not finite, where there was no backward pass since the last
        combine, where the two leaves no longer share their storage, or where a rule is not told its step.
        """
        for name, scale in (("input_scale", input_scale), ("output_scale", output_scale)):
            checks.scale(name, scale)
        if self.rule is not None:
            if step is None or steps is None or not 1 <= step <= steps:
                raise ValueError(f"step and steps: this tie's rule needs 1 <= step <= steps, got {step!r} and {steps!r}")
            if (input_scale, output_scale) != (1.0, 1.0):
                raise ValueError("input_scale and output_scale: this tie's rule sets them; leave them out, or split without it")
        source, target = self.path_gradients()
        if self._combined or self._head.weight.grad is None or self._embedding.weight.grad is None:
            raise ValueError("combine: no gradient of both paths since the last combine; run loss.backward() first")
        if self._buffer is None:
            self._buffer = torch.empty_like(source)
        self.scales = input_scale, output_scale
        if self.rule is not None and step is not None and steps is not None:
            self.scales = self.rule.scales(source, target, step, steps, self.state)
        weigh(source, target, *self.scales, out=self._buffer)
        self._embedding.weight.grad = self._buffer
        # An optimizer that was handed every parameter of the model skips the second leaf: it has no gradient.
        self._head.weight.grad = None
        self._combined = True

    def release(self) -> None:
        """End the split: the model is an ordinary tied model again, its values unchanged."""
        self._end()
        self._head.weight = self._embedding.weight

    def part(self) -> None:
        """End the split the other way: two tables, equal at first, the output layer's leaf a Parameter of its own.

        The model is an ordinary untied one from then on, its configuration too. The optimizer has to be given
        `model.get_output_embeddings().weight`.
        """
        self._end()
        # The Parameter stays the same object: whatever averages its gradient over processes goes on doing so.
        self._head.weight.data = self._head.weight.data.clone()
        self._model.config.tie_word_embeddings = False

    def _end(self) -> None:
        self._check_shared()
        for hook in self._hooks:
            hook.remove()
        self._combined = False

    def _check_shared(self) -> None:
        source, target = self._embedding.weight, self._head.weight
        if source is target or source.data_ptr() != target.data_ptr():
            raise ValueError(
                "model: it no longer has two leaves on one storage (it was moved, cast, copied, tied or released after the "
                "split); call model.tie_weights() and split again once it is where it will train"
            )


def weigh(source: Tensor, target: Tensor, input_scale: Weight, output_scale: Weight, *, out: Tensor) -> Tensor:
    """Return input_scale * source + output_scale * target, elementwise (V, d), into `out`; nothing waits for the device."""
    if isinstance(output_scale, Tensor):
        return torch.mul(source, input_scale, out=out).addcmul_(target, output_scale)
    if not isinstance(input_scale, Tensor) and input_scale == 1.0:
        return torch.add(source, target, alpha=output_scale, out=out)
    return torch.mul(source, input_scale, out=out).add_(target, alpha=output_scale)
