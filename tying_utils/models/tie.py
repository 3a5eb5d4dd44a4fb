"""One table, two gradients: the split tie.

In a tied model autograd adds the gradient of the input path (the embedding lookup) and of the output path (the logits)
before anyone can see them apart. Two leaves on one storage keep them apart at no cost: each path accumulates into its own
leaf's .grad, and the optimizer is given their weighted sum, with weights given by hand or by a rule of `balance`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakMethod, WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

from tying_utils.base import checks
from tying_utils.models.architectures import tables

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tying_utils.models.rules import PathRule, Weight

_SPLIT: WeakValueDictionary[int, SplitTie] = WeakValueDictionary()  # by the id of the embedding, which the tie keeps alive


class SplitTie:
    """Split the tie of `model` in place, so that each path's gradient is there by itself until it is combined.

    The output layer's weight becomes a Parameter of its own on the embedding's storage. One optimizer step is then: any
    number of backward passes; optionally `path_gradients()`; `combine()`; clipping; `optimizer.step()`. It touches the
    table's gradient only, never the trunk's (the intervention of arXiv 2603.26663, section 5, there a factor on the gradient
    at the embedding's output). `save_pretrained` writes an ordinary tied checkpoint.

    With a `rule` (`balance.get`) the scales of each step are the rule's: `combine(step=..., steps=...)`. What the rule
    remembers from step to step is `state`, tensors by name; to resume training, put them back.

    Split after the model is on its device and in its dtype: whatever moves or copies parameters one by one
    (`model.to("cuda")`, a cast, `copy.deepcopy`) breaks the sharing, which is checked at every `combine`. Split before
    DistributedDataParallel wraps it, which averages the gradients of the Parameters that it finds. A split that an earlier run
    left behind, interrupted perhaps, is ended first, with its rule.

    A step is skipped by any way to reset the gradient of `weight`: zero_grad of the optimizer or of the model, to None or to
    zeros, or by hand (though not behind autograd's back, through `.data` or numpy); what the other path and the rule had
    gathered is dropped with it. Unscale and clip after `combine`: before it, `weight.grad` is the input path's part alone.

    Raises ValueError, before anything is changed, if `model` is untied or its table frozen, if the table is not the Parameter
    of two modules (in wrappers of adapters it is looked for), if its lookup gives sparse gradients, if the model trains in
    several processes already, or for a rule that does not weigh path gradients.
    """

    @torch.inference_mode(False)  # in which a state could not be written to later
    def __init__(self, model: PreTrainedModel, rule: PathRule | None = None) -> None:
        if rule is not None and (isinstance(rule, type) or not hasattr(rule, "scales")):
            raise ValueError(f"rule: one that weighs the two paths is needed, got {rule!r}; see balance.PathRule")
        self._embedding, self._head = _ends(model)
        _check_unwrapped(self._embedding.weight)
        state: dict[str, Tensor] = {} if rule is None else rule.state(self._embedding.weight.data)
        if (earlier := _SPLIT.get(id(self._embedding))) is not None:
            with suppress(ValueError):  # of a model that was tied anew since, after its vocabulary was resized, say
                earlier.release()
        self._model = model
        if self._head.weight is self._embedding.weight:
            self._head.weight = nn.Parameter(self._embedding.weight.data)
        self._combined = self._ended = False
        self._noted: tuple[int, int] | None = None  # place and version of the input path's gradient after its last pass
        self._buffer: Tensor | None = None  # of the combined gradient: the same memory at every step
        self._arriving: Tensor | None = None  # the input path's gradient of a pass that finds a combined one in its place
        leaves = self._embedding.weight, self._head.weight
        # At the first gradient of each backward pass, whichever path it is of, before any is accumulated.
        self._hooks = [register_multi_grad_hook(leaves, lambda _: self._drop_what_was_reset(), mode="any")]
        self._hooks += [leaves[0].register_hook(self._arrive)]
        self._hooks += [leaf.register_post_accumulate_grad_hook(_weakly(self._note)) for leaf in leaves]
        self.rule = rule
        self.state = state
        self._counted = False  # whether the rule has counted targets since the last combine
        self.scales: tuple[Weight, Weight] = (1.0, 1.0)  # of the input and of the output path at the last combine
        if rule is not None:
            self._hooks += rule.watch(self._head, self.state, _weakly(self._count))
        _SPLIT[id(self._embedding)] = self

    def _arrive(self, grad: Tensor) -> None:
        self._arriving = grad if self._combined else None

    def _count(self) -> None:
        self._drop_what_was_reset()
        self._counted = True

    def _note(self, leaf: Tensor) -> None:
        """Make room for a new step once a gradient is accumulated, zero_grad or not: `torch.autograd.grad` does not."""
        weight = self._embedding.weight
        if self._combined:
            # The head's gradient comes first and makes room. In a pass without it the new one was added to the combined one.
            weight.grad = None if leaf is not weight or self._arriving is None else self._arriving.clone()
            self._combined = False
        self._arriving = None
        if leaf is weight and weight.grad is not None:
            self._noted = weight.grad.data_ptr(), weight.grad._version

    def _drop_what_was_reset(self) -> None:
        """Reset the output path and the rule's counts where the input path was: an optimizer knows of the one leaf only."""
        if self._noted is None:  # no pass went through the lookup since the last combine, as from given embeddings
            return
        grad = self._embedding.weight.grad
        # Only a gradient that was written to since its last pass is looked at, which waits for the device.
        if grad is None or (self._noted != (grad.data_ptr(), grad._version) and not grad.any()):
            self._head.weight.grad = self._noted = None
            self._counted = False
            for name in self.rule.summed if self.rule else ():
                self.state[name].zero_()

    @property
    def weight(self) -> torch.nn.Parameter:
        """Return the Parameter (V, d) that the optimizer should hold; the other leaf never carries a combined gradient."""
        return self._embedding.weight

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return the model's parameters, the shared table once: what to give to the optimizer and to clipping."""
        return [p for p in self._model.parameters() if p is not self._head.weight]

    def path_gradients(self) -> tuple[Tensor, Tensor]:
        """Return the weight gradients (V, d) of the input and of the output path, accumulated since the last combine.

        The tensors are the leaves' own, not copies, and are unchanged after `combine`. A path without any backward pass since
        then has a gradient of zeros.
        """
        self._check_shared()
        self._drop_what_was_reset()
        source = None if self._combined else self._embedding.weight.grad
        found = source, self._head.weight.grad
        first, second = (torch.zeros_like(self.weight) if gradient is None else gradient for gradient in found)
        return first, second

    @torch.no_grad()  # also of gradients that have a graph of their own
    def combine(
        self, input_scale: float = 1.0, output_scale: float = 1.0, *, step: int | None = None, steps: int | None = None
    ) -> None:
        """Write grad W = input_scale * G_in + output_scale * G_out into the one gradient that the optimizer sees.

        A split tie with a rule takes the scales from it, for `step` (from 1) of `steps`, and none by hand.

        Raises ValueError for a scale that is negative or not finite, where there was no backward pass since the last
        combine, where the two leaves no longer share their storage, where a rule is not told its step, or where one that
        counts targets saw none.
        """
        for name, scale in (("input_scale", input_scale), ("output_scale", output_scale)):
            checks.scale(name, scale)
        if self.rule is not None:
            if step is None or steps is None or checks.positive("step", step) > checks.positive("steps", steps):
                raise ValueError(f"step and steps: this tie's rule needs 1 <= step <= steps, got {step!r} and {steps!r}")
            if (input_scale, output_scale) != (1.0, 1.0):
                raise ValueError("input_scale and output_scale: this tie's rule sets them; leave them out, or split without it")
        source, target = self.path_gradients()
        if self._combined or self._head.weight.grad is None or self._embedding.weight.grad is None:
            raise ValueError("combine: no gradient of both paths since the last combine; run loss.backward() first")
        if self.rule is not None and self.rule.summed and not self._counted:
            raise ValueError(
                f"model: {self.rule.name!r} counts targets where the output layer is called, and since the last combine it saw "
                "none (a fused loss reads the weight alone, and backward(inputs=...) leaves them out); use another rule"
            )
        if self._buffer is None:
            self._buffer = torch.empty_like(source)
        self.scales = input_scale, output_scale
        if self.rule is not None and step is not None and steps is not None:
            self.scales = self.rule.scales(source, target, step, steps, self.state)
            self._counted = False
        weigh(source, target, *self.scales, out=self._buffer)
        self._embedding.weight.grad = self._buffer
        # An optimizer that was handed every parameter of the model skips the second leaf: it has no gradient.
        self._head.weight.grad = self._noted = None
        self._combined = True

    def release(self) -> None:
        """End the split: the model is an ordinary tied model again, its values unchanged, its gradient the sum of both.

        Nothing happens where it is ended already. Raises ValueError where the two leaves no longer share their storage.
        """
        source, target = self._embedding.weight, self._head.weight
        if self._ended or source is target:  # tied again meanwhile
            return self._end()
        self._end()
        if source.data_ptr() != target.data_ptr():
            raise _broken()
        if target.grad is not None:
            source.grad = target.grad if source.grad is None else source.grad + target.grad
        self._head.weight = source

    def part(self) -> None:
        """End the split the other way: two tables, equal at first, the output layer's leaf a Parameter of its own.

        The model is an ordinary untied one from then on, its configuration too. The optimizer has to be given
        `model.get_output_embeddings().weight`.
        """
        self._check_shared()
        self._end()
        # The Parameter stays the same object: whatever averages its gradient over processes goes on doing so.
        self._head.weight.data = self._head.weight.data.clone()
        self._model.config.tie_word_embeddings = False

    def _end(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._combined, self._ended = False, True
        if _SPLIT.get(id(self._embedding)) is self:
            del _SPLIT[id(self._embedding)]

    def _check_shared(self) -> None:
        source, target = self._embedding.weight, self._head.weight
        if self._ended or source is target or source.data_ptr() != target.data_ptr():
            raise _broken()


def _weakly(method: Callable[..., None]) -> Callable[..., None]:
    """Return `method` for hooks on accumulated gradients: the garbage collector does not see them, so they may not hold it."""
    held = WeakMethod(method)

    def called(*args: Any) -> None:
        if (method := held()) is not None:
            method(*args)

    return called


def _broken() -> ValueError:
    return ValueError(
        "model: it no longer has two leaves on one storage (it was moved, cast, copied, tied, released or split anew after the "
        "split); call model.tie_weights() and split again once it is where it will train"
    )


def _check_unwrapped(weight: nn.Parameter) -> None:
    """Raise ValueError where DistributedDataParallel, in several processes, would leave the second leaf to each its own."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return
    gc.collect()  # a wrapper that was let go averages nothing
    wrappers = [one for one in gc.get_objects() if issubclass(type(one), nn.parallel.DistributedDataParallel)]
    if any(p is weight for wrapper in wrappers for p in wrapper.parameters()):
        raise ValueError(
            "model: DistributedDataParallel has wrapped it already and would not average the output path's gradient over "
            "processes; move it to its device, split, and wrap it then (in accelerate: prepare_model(device_placement=False))"
        )


def _ends(model: PreTrainedModel) -> tuple[Any, Any]:
    """Return the modules at the model's two ends whose own Parameter the tied, trainable table is, or raise ValueError."""
    if not hasattr(model, "get_output_embeddings"):
        kind = type(model).__name__
        raise ValueError(f"model: a transformers model is needed, got {kind}; split the model itself, before {kind} wraps it")
    outer: tuple[Any, Any] = model.get_input_embeddings(), model.get_output_embeddings()
    ends = embedding, head = _owner(outer[0]), _owner(outer[1])
    for layer, module, end in zip(("input", "output"), outer, ends, strict=True):
        if end is None and module is not None:
            raise ValueError(
                f"model: the weight of its {layer} layer, {type(module).__name__}, is no Parameter of that layer but computed "
                "or borrowed (by an adapter or a parametrization, say); split before that is added, or leave the tables out of "
                "it (in PEFT: out of target_modules, modules_to_save and trainable_token_indices)"
            )
    wrapper = next((type(module).__name__ for module, end in zip(outer, ends, strict=True) if module is not end), None)
    parted = None not in ends and embedding.weight.data_ptr() != head.weight.data_ptr()
    if parted and wrapper and getattr(model.config, "tie_word_embeddings", True):
        raise ValueError(
            f"model: a tied model is needed, in this one a {wrapper} keeps a copy of the table at one end; leave the tables "
            "out of it (in PEFT: out of modules_to_save, or give ensure_weight_tying=True, which copies both as one)"
        )
    if not tables(model).tied:
        raise ValueError("model: a tied model is needed, this one is untied; build it with tied=True")
    if embedding is head:
        raise ValueError(
            f"model: its output layer is the input's {type(head).__name__} itself, whose one weight cannot be two leaves; give "
            "the output a layer of its own with that weight (model.set_output_embeddings), if its forward pass calls it"
        )
    checks.differentiable("model", embedding.weight)
    if getattr(embedding, "sparse", False):
        raise ValueError("model: its embedding gives sparse gradients, which cannot be weighed; build it with sparse=False")
    if not (embedding.weight.requires_grad and head.weight.requires_grad):
        raise ValueError(
            "model: its table is frozen (requires_grad=False, as adapters leave it), so no path has a gradient; unfreeze it by "
            "model.get_input_embeddings().weight.requires_grad_(True), or train without the split"
        )
    return embedding, head


def _owner(layer: Any) -> Any:
    """Return the module in `layer`, itself or one that it wraps as adapters do, whose own Parameter its weight is, or None."""
    weight = getattr(layer, "weight", None)
    modules = layer.modules() if isinstance(layer, nn.Module) and isinstance(weight, nn.Parameter) else ()
    return next((part for part in modules if dict(part.named_parameters(recurse=False)).get("weight") is weight), None)


def weigh(source: Tensor, target: Tensor, input_scale: Weight, output_scale: Weight, *, out: Tensor) -> Tensor:
    """Return input_scale * source + output_scale * target, elementwise (V, d), into `out`; nothing waits for the device."""
    if isinstance(output_scale, Tensor):
        return torch.mul(source, input_scale, out=out).addcmul_(target, output_scale)
    if not isinstance(input_scale, Tensor) and input_scale == 1.0:
        return torch.add(source, target, alpha=output_scale, out=out)
    return torch.mul(source, input_scale, out=out).add_(target, alpha=output_scale)
