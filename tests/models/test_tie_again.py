"""Stop and go on: steps that are skipped, in every way to reset gradients, and models that an earlier run left split."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tying_utils import models
from tying_utils.measures.gradients import share_of
from tying_utils.models.rules import NormMatch, RareGate
from tying_utils.models.tie import SplitTie

V, D, STEPS = 40, 8, 4
PARTS = torch.randint(0, V, (STEPS, 2, 9), generator=torch.Generator().manual_seed(0))
BAD = torch.full((2, 9), 3)
GATE = RareGate(alpha=1.0, memory=STEPS)


def build() -> Any:
    return models.build("llama", tied=True, vocab_size=V, d_model=D, n_layers=1, n_heads=2, context=16).double()


def backward(model: Any, part: Tensor) -> None:
    model(part, labels=part).loss.backward()


def by_hand(tie: SplitTie, value: Any) -> None:
    for p in tie.parameters():
        p.grad = value(p)


def in_place(tie: SplitTie) -> None:
    for p in tie.parameters():
        if p.grad is not None:
            p.grad *= 0


RESETS: dict[str, Callable[[Any, SplitTie, torch.optim.Optimizer], Any]] = {
    "optimizer, to none": lambda model, tie, optimizer: optimizer.zero_grad(),
    "optimizer, to zeros": lambda model, tie, optimizer: optimizer.zero_grad(set_to_none=False),
    "optimizer of all leaves, to zeros": lambda model, tie, _: torch.optim.SGD(model.parameters()).zero_grad(set_to_none=False),
    "model": lambda model, tie, _: model.zero_grad(),
    "model, to zeros": lambda model, tie, _: model.zero_grad(set_to_none=False),
    "by hand, to none": lambda model, tie, _: by_hand(tie, lambda p: None),
    "by hand, to other zeros": lambda model, tie, _: by_hand(tie, torch.zeros_like),
    "by hand, times zero": lambda model, tie, _: in_place(tie),
    "only the table": lambda model, tie, _: tie.weight.grad.zero_(),  # type: ignore[union-attr]
    "all at once": lambda model, tie, _: torch._foreach_zero_([p.grad for p in tie.parameters() if p.grad is not None]),  # type: ignore
}
ways = pytest.mark.parametrize("reset", RESETS.values(), ids=RESETS)


@ways
@pytest.mark.parametrize("bad", [1, 2], ids=["one micro-batch", "two micro-batches"])
def test_a_skipped_step_leaves_nothing_behind(reset, bad):
    model, reference = build(), build()
    tie, other = SplitTie(model), SplitTie(reference)
    for _ in range(bad):
        backward(model, BAD)
    reset(model, tie, torch.optim.SGD(tie.parameters()))
    assert not any(gradient.any() for gradient in tie.path_gradients())
    with pytest.raises(ValueError, match="no gradient of both paths since the last combine"):
        tie.combine()
    for part in PARTS[:2]:
        backward(model, part)
        backward(reference, part)
    assert other.path_gradients()[1].any()
    torch.testing.assert_close(tie.path_gradients(), other.path_gradients(), rtol=1e-12, atol=1e-15)


def train(model: Any, tie: SplitTie, reset: Any, skipped: set[int]) -> None:
    optimizer = torch.optim.AdamW(tie.parameters(), lr=1e-2)
    for step, part in enumerate(PARTS, 1):
        if step in skipped:
            backward(model, BAD)
            reset(model, tie, optimizer)
        backward(model, part)
        tie.combine(step=step, steps=STEPS)
        torch.nn.utils.clip_grad_norm_(tie.parameters(), 0.5)
        optimizer.step()
        reset(model, tie, optimizer)


@ways
@pytest.mark.parametrize("rule", [None, GATE], ids=["summed", "gated"])
def test_training_with_skipped_steps_ends_where_it_does_without(reset, rule):
    """What a rule counts is dropped, too, and the micro-batches of a step still add up."""
    model, reference = build(), build()
    if reset is RESETS["only the table"]:
        reset = RESETS["optimizer, to zeros"]  # the trunk's would add up
    tie, other = SplitTie(model, rule), SplitTie(reference, rule)
    train(model, tie, reset, {1, 3})
    train(reference, other, RESETS["model"], set())
    torch.testing.assert_close(models.tables(model).table, models.tables(reference).table, rtol=1e-9, atol=1e-12)
    for name in tie.state:
        torch.testing.assert_close(tie.state[name], other.state[name])


def test_a_gradient_that_is_scaled_in_between_is_no_reset():
    model, reference = build(), build()
    tie, other = SplitTie(model), SplitTie(reference)
    for part, scale in zip(PARTS, (0.5, 0.25, 3.0, 1.0), strict=True):
        backward(model, part)
        for p in model.parameters():
            p.grad *= scale
    for part, scale in zip(PARTS, (0.375, 0.75, 3.0, 1.0), strict=True):  # as if each loss had been scaled
        (scale * reference(part, labels=part).loss).backward()
    torch.testing.assert_close(tie.path_gradients(), other.path_gradients(), rtol=1e-4, atol=1e-6)


def test_a_path_whose_gradient_is_zero_drops_nothing():
    model = build()
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()  # no gradient comes back through the output layer
    tie = SplitTie(model)
    for part in PARTS[:2]:
        hidden = torch.ones(2, 9, D, dtype=torch.float64)
        (model.get_output_embeddings()(hidden).sum() + 0 * model(part).logits.sum()).backward()
    source, target = tie.path_gradients()
    assert not source.any() and torch.equal(target, torch.full((V, D), 2 * 18.0, dtype=torch.float64))


@pytest.mark.parametrize("first", [0, 1, 2], ids=["at first", "in between", "at last"])
def test_a_pass_from_given_embeddings_reaches_the_output_path_alone_and_counts(first):
    model, reference = build(), build()
    tie, gradients = SplitTie(model), []
    for own in (model, reference):
        for number, part in enumerate(PARTS[:3]):
            given = own.get_input_embeddings()(part).detach()
            own(**({"inputs_embeds": given} if number == first else {"input_ids": part}), labels=part).loss.backward()
        gradients.append(own.get_input_embeddings().weight.grad)
    source, target = tie.path_gradients()
    torch.testing.assert_close(source + target, gradients[1], rtol=1e-6, atol=1e-9)


# Leftovers of an earlier run


@pytest.mark.parametrize("moment", ["at once", "after backward", "after combine", "in the next step"])
@pytest.mark.parametrize("rule", [None, GATE], ids=["summed", "gated"])
def test_a_second_split_ends_the_first_with_its_rule(moment, rule):
    model, reference = build(), build()
    old = SplitTie(model, GATE)
    if moment != "at once":
        backward(model, BAD)
    if moment in ("after combine", "in the next step"):
        old.combine(step=1, steps=STEPS)
    if moment == "in the next step":
        backward(model, BAD)
    tie, other = SplitTie(model, rule), SplitTie(reference, rule)
    model.zero_grad()
    with pytest.raises(ValueError, match="split anew"):
        old.combine(step=2, steps=STEPS)
    train(model, tie, RESETS["model"], set())
    train(reference, other, RESETS["model"], set())
    torch.testing.assert_close(models.tables(model).table, models.tables(reference).table, rtol=1e-12, atol=1e-15)
    old.release()  # it is over: the second split stands
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert not old.state["present"].any() or moment in ("after backward", "in the next step")
    tie.release()
    tie.release()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_release_in_the_middle_of_a_step_leaves_the_ordinary_gradient():
    model, reference = build(), build()
    tie = SplitTie(model)
    for step, part in enumerate(PARTS):
        if step == 2:
            tie.release()
        backward(model, part)
        backward(reference, part)
    torch.testing.assert_close(tie.weight.grad, reference.get_input_embeddings().weight.grad, rtol=1e-12, atol=1e-15)


def test_a_model_that_was_tied_again_is_released_as_it_is():
    model = build()
    tie = SplitTie(model, GATE)
    backward(model, PARTS[0])
    tie.combine(step=1, steps=STEPS)
    model.tie_weights()
    tie.release()
    model.zero_grad()
    reference = build()
    for part in PARTS:
        backward(model, part)
        backward(reference, part)
    torch.testing.assert_close(tie.weight.grad, reference.get_input_embeddings().weight.grad, rtol=1e-12, atol=1e-15)


def test_a_copy_of_the_model_tells_the_rule_nothing():
    model = build()
    tie = SplitTie(model, GATE)
    other = copy.deepcopy(model)
    other.tie_weights()
    backward(other, PARTS[0])
    assert not tie.state["present"].any()
    backward(model, PARTS[0])
    assert tie.state["present"].sum() == PARTS[0][:, 1:].numel()


def trunk_alone(model: Any, tie: SplitTie) -> None:
    (norm,) = (p for name, p in model.named_parameters() if name.endswith("0.mlp.up_proj.weight"))
    torch.autograd.grad(model(BAD, labels=BAD).loss, [norm])


def table_alone(model: Any, tie: SplitTie) -> None:
    torch.autograd.grad(model(BAD, labels=BAD).loss, [tie.weight])


def saliency(model: Any, tie: SplitTie) -> None:
    rows = model.get_input_embeddings()(BAD).detach().requires_grad_()
    torch.autograd.grad(model(inputs_embeds=rows, labels=BAD).loss, [rows])


def logits_alone(model: Any, tie: SplitTie) -> None:
    logits = model(BAD).logits
    torch.autograd.grad(logits.square().sum(), [logits])


def measured(model: Any, tie: SplitTie) -> None:
    share_of(model, [BAD], progress=False)


LOOKS = {one.__name__: one for one in (trunk_alone, table_alone, saliency, logits_alone, measured)}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("moment", ["before the backward pass", "after it", "after combine"])
@pytest.mark.parametrize("rule", [None, GATE], ids=["by hand", "rare-gate"])
def test_a_gradient_that_is_only_looked_at_changes_nothing(look, moment, rule):
    found = []
    for looks in (False, True):
        model = build()
        tie = SplitTie(model, rule)
        optimizer = torch.optim.SGD(tie.parameters(), lr=0.1)
        for step, part in enumerate(PARTS, 1):
            for now in ("before the backward pass", "after it", "after combine"):
                if now == "after it":
                    backward(model, part)
                elif now == "after combine":
                    tie.combine(step=step, steps=STEPS)
                if looks and now == moment:
                    look(model, tie)
            optimizer.step()
            optimizer.zero_grad()
        found.append([tie.weight.detach(), *tie.state.values()])
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-15)


def test_a_pass_without_the_head_starts_the_next_step_without_zero_grad():
    model = build()
    tie, first = SplitTie(model), torch.zeros(V, D, dtype=torch.float64)
    backward(model, PARTS[0])
    tie.combine()
    model.get_input_embeddings()(BAD).sum().backward()  # reaches the input path alone
    first[3] = BAD.numel()
    assert torch.equal(tie.path_gradients()[0], first) and not tie.path_gradients()[1].any()


def test_a_rule_that_counts_says_that_it_saw_no_target():
    model = build()
    tie = SplitTie(model, GATE)
    hidden = model.model(PARTS[0]).last_hidden_state
    torch.nn.functional.linear(hidden, model.get_output_embeddings().weight).square().mean().backward()
    with pytest.raises(ValueError, match=r"^model: 'rare-gate' counts targets where the output layer is called"):
        tie.combine(step=1, steps=STEPS)


def test_a_model_of_a_new_vocabulary_is_split_again():
    model = models.build("llama", tied=True, vocab_size=V, d_model=D, n_layers=1, n_heads=2, context=16)
    SplitTie(model)
    model.resize_token_embeddings(V + 5)
    model.tie_weights()
    tie = SplitTie(model)
    backward(model, PARTS[0])
    assert tie.path_gradients()[0].shape == (V + 5, D) and tie.path_gradients()[1].any()


@ways
def test_counts_after_a_skipped_step_are_whole_where_the_weight_has_another_use(reset):
    model = build()
    tie = SplitTie(model, GATE)

    def penalised(part: Tensor) -> None:
        penalty = model.lm_head.weight.square().sum()  # made first, so that its part of the gradient comes last
        (model(part, labels=part).loss + 1e-3 * penalty).backward()

    penalised(BAD)
    reset(model, tie, torch.optim.SGD(tie.parameters()))
    penalised(PARTS[0])
    assert torch.equal(tie.state["present"], torch.bincount(PARTS[0][:, 1:].flatten(), minlength=V).float())


def test_what_a_rule_remembers_can_be_put_back_at_any_time():
    model = build()
    tie = SplitTie(model, GATE)
    saved = {name: value.clone() for name, value in tie.state.items()}
    for _ in range(2):
        backward(model, PARTS[0])
        backward(model, PARTS[1])
        tie.combine(step=1, steps=STEPS)
        tie.state.update({name: value.clone() for name, value in saved.items()})


def test_a_fused_loss_after_a_skipped_step_is_noticed():
    model = build()
    tie = SplitTie(model, GATE)
    for _ in range(2):
        tie.weight.grad = None
        hidden = model.model(PARTS[0]).last_hidden_state
        torch.nn.functional.linear(hidden, model.lm_head.weight).square().mean().backward()
    with pytest.raises(ValueError, match="^model: 'rare-gate' counts targets"):
        tie.combine(step=1, steps=STEPS)


@pytest.mark.parametrize("rule", [None, GATE, NormMatch()])
def test_a_split_in_inference_mode_trains_as_any_other(rule):
    found = []
    for mode in (torch.inference_mode, torch.no_grad):
        model = build()
        with mode():
            tie = SplitTie(model, rule)
        backward(model, PARTS[0])
        tie.combine(step=1, steps=STEPS)
        found.append(tie.weight.grad)
    assert torch.equal(*found)
    with torch.inference_mode():
        inferred = build()
    with pytest.raises(ValueError, match="^model: it was built in inference mode"):
        SplitTie(inferred, rule)
