"""One table, two gradients: the split tie.

In a tied model autograd adds the gradient of the input path (the embedding lookup) and of the output path (the logits)
before anyone can see them apart. Two leaves on one storage keep them apart at no cost: each path accumulates into its own
leaf's .grad, and the optimizer is given their weighted sum.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tying_utils.models import tables

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SplitTie:
    """Split the tie of `model` in place, so that each path's gradient stands whole until it is combined.

    The output layer's weight becomes a Parameter of its own on the embedding's storage. One optimizer step is then: any
    number of backward passes; optionally `path_gradients()`; `combine()`; clipping; `optimizer.step()`. With both scales 1
    the combined gradient is the ordinary tied gradient. It touches the table's gradient only, never the trunk's (the
    intervention of arXiv 2603.26663, section 5, there a factor on the gradient at the embedding's output).

    Split after the model is on its device and in its dtype: whatever moves or copies parameters one by one
    (`model.to("cuda")`, a cast, `copy.deepcopy`) breaks the sharing. That is checked at every `combine`. `save_pretrained`
    writes an ordinary tied checkpoint; `release()` makes the model ordinary again.

    Raises ValueError if `model` is untied.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        if not tables(model).tied:
            raise ValueError("model: a tied model is needed, this one is untied; build it with tied=True")
        self._model = model
        self._embedding: Any = model.get_input_embeddings()
        self._head: Any = model.get_output_embeddings()
        if self._head.weight is self._embedding.weight:  # otherwise it is split already: share the leaves
            self._head.weight = torch.nn.Parameter(self._embedding.weight.data)
        self._combined = False
        self._buffer: Tensor | None = None  # of the combined gradient: the same memory at every step
        # A leaf's hook runs before its gradient is accumulated: here the combined gradient of the last step makes room,
        # so that path gradients count from the last combine even where nobody calls zero_grad.
        self._hooks = [
            self._embedding.weight.register_hook(self._start_input_afresh),
            self._head.weight.register_hook(self._start_output_afresh),
        ]

    def _start_input_afresh(self, grad: Tensor) -> None:
        if self._combined:
            self._embedding.weight.grad = None
            self._combined = False

    def _start_output_afresh(self, grad: Tensor) -> None:
        # The output path comes first in a backward pass. Where zero_grad dropped the input path's gradient to skip a step,
        # the optimizer knew nothing of this leaf, and its gradient would outlive the step.
        if self._embedding.weight.grad is None:
            self._head.weight.grad = None

    @property
    def weight(self) -> torch.nn.Parameter:
        """The Parameter (V, d) that the optimizer should hold; the other leaf never carries a combined gradient."""
        return self._embedding.weight

    def parameters(self) -> list[torch.nn.Parameter]:
        """The model's parameters, the shared table once: what to give to the optimizer and to clipping."""
        return [p for p in self._model.parameters() if p is not self._head.weight]

    def path_gradients(self) -> tuple[Tensor, Tensor]:
        """The weight gradients (V, d) of the input and of the output path, accumulated since the last combine.

        The tensors are the leaves' own, not copies, and stand whole after `combine`. A path without any backward pass since
        then has a gradient of zeros.
        """
        self._check_shared()
        source = None if self._combined else self._embedding.weight.grad
        target = self._head.weight.grad
        zeros = torch.zeros_like
        return (
            zeros(self._embedding.weight) if source is None else source,
            zeros(self._head.weight) if target is None else target,
        )

    def combine(self, input_scale: float = 1.0, output_scale: float = 1.0) -> None:
        """Write grad W = input_scale * G_in + output_scale * G_out into the one gradient that the optimizer sees.

        Raises ValueError for a scale that is negative or not finite, where there was no backward pass since the last
        combine, or where the two leaves no longer share their storage.
        """
        for name, scale in (("input_scale", input_scale), ("output_scale", output_scale)):
            check_scale(name, scale)
        source, target = self.path_gradients()
        if self._combined or self._head.weight.grad is None or self._embedding.weight.grad is None:
            raise ValueError("combine: no gradient of both paths since the last combine; run loss.backward() first")
        if self._buffer is None:
            self._buffer = torch.empty_like(source)
        if input_scale == 1.0:
            torch.add(source, target, alpha=output_scale, out=self._buffer)
        else:
            torch.mul(source, input_scale, out=self._buffer).add_(target, alpha=output_scale)
        self._embedding.weight.grad = self._buffer
        # An optimizer that was handed every parameter of the model skips the second leaf: it has no gradient.
        self._head.weight.grad = None
        self._combined = True

    def release(self) -> None:
        """End the split: the model is an ordinary tied model again, its values unchanged."""
        self._check_shared()
        for hook in self._hooks:
            hook.remove()
        self._head.weight = self._embedding.weight
        self._combined = False

    def _check_shared(self) -> None:
        source, target = self._embedding.weight, self._head.weight
        if source is target or source.data_ptr() != target.data_ptr():
            raise ValueError(
                "model: it no longer has two leaves on one storage (it was moved, cast, copied, tied or released after the "
                "split); call model.tie_weights() and split again once it is where it will train"
            )


def check_scale(name: str, scale: float) -> float:
    """Return `scale` as a float if it is finite and at least 0, else raise ValueError."""
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale) or scale < 0:
        raise ValueError(f"{name}: a finite number of at least 0 is needed, got {scale!r}")
    return float(scale)


def above_zero(name: str, scale: float) -> float:
    """Return `scale` as a float if it is finite and above 0, else raise ValueError."""
    if check_scale(name, scale) == 0:
        raise ValueError(f"{name}: a finite number above 0 is needed, got {scale!r}")
    return float(scale)
