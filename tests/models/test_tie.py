import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tying_utils import models
from tying_utils.models import balance
from tying_utils.models.tie import SplitTie, weigh

V, D = 300, 16
draw = torch.Generator().manual_seed(0)
# Two micro-batches with a token in both and most tokens in neither.
PARTS = [torch.randint(low, low + 60, (2, 13), generator=draw) for low in (0, 40)]
ABSENT = sorted(set(range(V)) - set(torch.cat(PARTS)[:, :-1].flatten().tolist()))

architectures = pytest.mark.parametrize("arch", models.ARCHITECTURES)


def build(arch: str = "olmo", dtype: torch.dtype = torch.float64, tied: bool = True) -> Any:
    model: Any = models.build(arch, tied=tied, vocab_size=V, d_model=D, n_layers=2, n_heads=2, context=16, seed=3)
    return model.double() if dtype == torch.float64 else model


def backward(model: Any, parts: Sequence[Tensor] = PARTS) -> None:
    for part in parts:
        logits = model(part[:, :-1]).logits
        (F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten()) / len(parts)).backward()


def paths(model: Any, parts: Sequence[Tensor] = PARTS) -> tuple[Tensor, Tensor]:
    """Both path gradients from the chain rule, on activations alone: rows added up by token, and dlogits^T hidden."""
    held: dict[str, Tensor] = {}

    def keep_embedded(module: Any, args: Any, output: Tensor) -> None:
        output.retain_grad()
        held["embedded"] = output

    def keep_logits(module: Any, args: Any, output: Tensor) -> None:
        output.retain_grad()
        held["hidden"], held["logits"] = args[0].detach(), output

    hooks = [
        model.get_input_embeddings().register_forward_hook(keep_embedded),
        model.get_output_embeddings().register_forward_hook(keep_logits),
    ]
    weight = model.get_input_embeddings().weight
    source, target = torch.zeros_like(weight), torch.zeros_like(weight)
    for part in parts:
        (F.cross_entropy(model(part[:, :-1]).logits.flatten(0, 1), part[:, 1:].flatten()) / len(parts)).backward()
        embedded, logits = held["embedded"].grad, held["logits"].grad
        assert embedded is not None and logits is not None
        source.index_add_(0, part[:, :-1].flatten(), embedded.flatten(0, 1))
        target += logits.flatten(0, 1).T @ held["hidden"].flatten(0, 1)
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    return source.detach(), target.detach()


def trunk(model: Any) -> dict[str, Tensor]:
    tables = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    return {name: p.grad for name, p in model.named_parameters() if id(p) not in tables}


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)


def split_model(arch: str = "olmo", dtype: torch.dtype = torch.float64, rule: Any = None) -> tuple[Any, SplitTie]:
    """A split model after a backward pass."""
    model = build(arch, dtype)
    tie = SplitTie(model, rule)
    backward(model)
    return model, tie


@architectures
@pytest.mark.parametrize("parts", [PARTS[:1], PARTS], ids=["one micro-batch", "two micro-batches"])
def test_paths_add_up_to_the_ordinary_gradient(arch, parts):
    ordinary, model = build(arch), build(arch)
    tie = SplitTie(model)
    backward(ordinary, parts)
    backward(model, parts)
    expected = ordinary.get_input_embeddings().weight.grad
    assert expected.abs().max() > 1e-3
    close(sum(tie.path_gradients()), expected)
    close(tie.path_gradients(), paths(build(arch), parts))
    for name, gradient in trunk(ordinary).items():
        close(trunk(model)[name], gradient)
    tie.combine()
    close(tie.weight.grad, expected)


def test_forward_is_the_tied_models():
    ordinary, model = build(), build()
    SplitTie(model)
    assert torch.equal(model(PARTS[0]).logits, ordinary(PARTS[0]).logits)


@architectures
def test_input_path_is_that_of_a_detached_output_use_and_the_output_path_reaches_every_row(arch):
    (_, tie), single = split_model(arch), build(arch)
    weight = single.get_input_embeddings().weight
    single.get_output_embeddings().weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
    backward(single)
    source, target = tie.path_gradients()
    close(source, weight.grad)
    assert source[ABSENT].eq(0).all()
    assert source.abs().sum(1).gt(0).sum() == V - len(ABSENT)
    assert target.abs().sum(1).gt(0).all()


scales = st.floats(0, 1e4) | st.integers(0, 100)


@pytest.fixture(scope="module")
def split() -> tuple[Any, SplitTie, Tensor, Tensor]:
    model = build()
    source, target = paths(build())
    return model, SplitTie(model), source, target


@settings(max_examples=25)
@given(input_scale=scales, output_scale=scales)
def test_combined_is_the_weighted_sum(split, input_scale, output_scale):
    model, tie, source, target = split
    model.zero_grad()
    backward(model)
    before = {name: gradient.clone() for name, gradient in trunk(model).items()}
    tie.combine(input_scale, output_scale)
    expected = input_scale * source + output_scale * target
    torch.testing.assert_close(tie.weight.grad, expected, rtol=1e-5, atol=1e-9 * (1 + input_scale + output_scale))
    assert all(torch.equal(trunk(model)[name], before[name]) for name in before)
    assert model.get_output_embeddings().weight.grad is None


def test_path_gradients_stand_whole_after_combine():
    _, tie = split_model()
    source, target = tie.path_gradients()
    copies = source.clone(), target.clone()
    for use in (lambda: tie.combine(5, 0.5), torch.optim.AdamW(tie.parameters(), lr=0.1).step):
        use()
        assert torch.equal(source, copies[0]) and torch.equal(target, copies[1])


@pytest.mark.parametrize("clearing", ["nothing", "to none", "to zero"])
def test_next_step_starts_afresh(clearing):
    model, tie = split_model()
    tie.combine(5, 1)
    if clearing != "nothing":
        torch.optim.SGD(tie.parameters()).zero_grad(set_to_none=clearing == "to none")
    assert not any(gradient.any() for gradient in tie.path_gradients())
    backward(model, PARTS[:1])
    expected = paths(build(), PARTS[:1])
    close(tie.path_gradients(), expected)
    tie.combine(2, 3)
    close(tie.weight.grad, 2 * expected[0] + 3 * expected[1])


def test_a_discarded_backward_pass_counts_on_neither_path():
    model, tie = split_model()
    torch.optim.AdamW(tie.parameters()).zero_grad()  # this step is skipped
    backward(model, PARTS[:1])
    close(tie.path_gradients(), paths(build(), PARTS[:1]))


def test_a_path_without_backward_is_zero():
    tie = SplitTie(build())
    assert all(gradient.shape == (V, D) and not gradient.any() for gradient in tie.path_gradients())
    with pytest.raises(ValueError, match=r"combine.*loss\.backward"):
        tie.combine()


def test_combining_twice_is_an_error():
    _, tie = split_model()
    tie.combine()
    with pytest.raises(ValueError, match="since the last combine"):
        tie.combine()


@pytest.mark.parametrize("given_to", ["tie.parameters()", "model.parameters()"])
def test_steps_are_those_of_an_ordinary_tied_run(given_to):
    ordinary, model = build(), build()
    tie = SplitTie(model)
    assert sum(p.numel() for p in tie.parameters()) == sum(p.numel() for p in ordinary.parameters())
    held = tie.parameters() if given_to == "tie.parameters()" else model.parameters()
    options: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.3}
    reference, optimizer = torch.optim.AdamW(ordinary.parameters(), **options), torch.optim.AdamW(held, **options)
    start = tie.weight.detach().clone()
    for step in range(4):
        parts = PARTS[step % 2 :]
        reference.zero_grad()
        optimizer.zero_grad()
        backward(ordinary, parts)
        backward(model, parts)
        tie.combine()
        reference.step()
        optimizer.step()
    assert (tie.weight - start).abs().max() > 1e-2
    own = dict(ordinary.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter is not model.get_output_embeddings().weight:
            torch.testing.assert_close(parameter, own[name], rtol=1e-5, atol=1e-8)
    assert models.tables(model).tied


def test_clipping_sees_the_table_once():
    ordinary, (_, tie) = build(), split_model()
    backward(ordinary)
    tie.combine()
    expected = torch.nn.utils.clip_grad_norm_(ordinary.parameters(), 0.01)
    close(torch.nn.utils.clip_grad_norm_(tie.parameters(), 0.01), expected)
    close(tie.weight.grad, ordinary.get_input_embeddings().weight.grad)


@architectures
def test_saved_model_is_an_ordinary_tied_one(arch, tmp_path: Path):
    model, tie = split_model(arch, torch.float32)
    tie.combine(5, 1)
    torch.optim.AdamW(tie.parameters(), lr=0.1).step()
    model.save_pretrained(tmp_path)
    held = [name for file in tmp_path.glob("*.safetensors") for name, w in load_file(file).items() if w.shape == (V, D)]
    assert len(held) == 1
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert models.tables(loaded).tied
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert torch.equal(loaded(PARTS[0]).logits, model.eval()(PARTS[0]).logits)
    backward(model.train())
    tie.combine()  # saving leaves the split whole


def test_release_makes_the_model_ordinary():
    model, ordinary = build(), build()
    before = models.tables(model).input.clone()
    tie = SplitTie(model)
    tie.release()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(models.tables(model).table, before)
    for _ in range(2):  # gradients add up again
        backward(model)
        backward(ordinary)
    close(model.get_input_embeddings().weight.grad, ordinary.get_input_embeddings().weight.grad)


def test_release_after_combine_leaves_accumulation_alone():
    (model, tie), ordinary = split_model(), build()
    backward(ordinary)
    tie.combine()
    tie.release()
    backward(model)
    backward(ordinary)
    close(model.get_input_embeddings().weight.grad, ordinary.get_input_embeddings().weight.grad)


def test_split_again_after_release():
    model = build()
    SplitTie(model).release()
    tie = SplitTie(model)
    backward(model)
    close(tie.path_gradients(), paths(build()))


def test_a_released_tie_no_longer_combines():
    model = build()
    tie = SplitTie(model)
    tie.release()
    backward(model)
    with pytest.raises(ValueError):
        tie.combine()
    assert model.get_input_embeddings().weight.grad is not None


@pytest.mark.parametrize("how", ["copied", "cast", "data replaced", "parameter replaced", "tied again"])
def test_a_broken_split_is_noticed(how):
    model = build(dtype=torch.float32)
    tie = SplitTie(model)
    source, target = model.get_input_embeddings(), model.get_output_embeddings()
    match how:
        case "copied":
            model, tie = copy.deepcopy((model, tie))
        case "cast":
            model.double()
        case "data replaced":
            target.weight.data = target.weight.data.clone()
        case "parameter replaced":
            source.weight = torch.nn.Parameter(source.weight.detach().clone())
        case "tied again":  # one leaf in both places: its gradient is the sum, and the paths are gone
            model.tie_weights()
    backward(model)
    for use in (tie.combine, tie.path_gradients):
        with pytest.raises(ValueError, match=r"tie_weights\(\) and split again"):
            use()


def test_a_copy_leaves_the_original_split_whole():
    model = build()
    tie = SplitTie(model)
    with pytest.raises(ValueError, match="two storages"):
        SplitTie(copy.deepcopy(model))
    backward(model)
    tie.combine()
    close(tie.weight.grad, sum(paths(build())))


def test_an_untied_model_has_nothing_to_split():
    with pytest.raises(ValueError, match="untied"):
        SplitTie(build(tied=False))


@pytest.mark.parametrize("name", ["input_scale", "output_scale"])
@pytest.mark.parametrize("scale", [-0.5, float("nan"), float("inf"), -float("inf"), True, "5", None, 1j])
def test_bad_scale_is_named_and_changes_nothing(name, scale):
    _, tie = split_model()
    source = tie.path_gradients()[0].clone()
    with pytest.raises(ValueError, match=f"^{name}:"):
        tie.combine(**{name: scale})
    assert torch.equal(tie.path_gradients()[0], source)
    tie.combine()


# With a rule, and two tables


@pytest.mark.parametrize("given", [{}, {"step": 1}, {"steps": 4}, {"step": 0, "steps": 4}, {"step": 5, "steps": 4}])
def test_a_rule_has_to_be_told_its_step(given):
    _, tie = split_model(rule=balance.NormMatch())
    with pytest.raises(ValueError, match=r"^step(: an integer of at least 1| and steps: .* 1 <= step <= steps)"):
        tie.combine(**given)
    tie.combine(step=4, steps=4)


def test_a_rule_and_scales_by_hand_do_not_mix():
    _, tie = split_model(rule=balance.Scale(input=5))
    with pytest.raises(ValueError, match=r"^input_scale and output_scale: this tie's rule sets them"):
        tie.combine(2.0, step=1, steps=1)
    expected = paths(build())
    tie.combine(step=1, steps=1)
    close(tie.weight.grad, 5 * expected[0] + expected[1])
    assert tie.scales == (5.0, 1.0)


def test_without_a_rule_a_step_is_taken_and_not_used():
    (_, tie), (_, other) = split_model(), split_model()
    tie.combine(3, step=7, steps=2)
    other.combine(3)
    assert torch.equal(tie.weight.grad, other.weight.grad)  # type: ignore[arg-type]


@settings(max_examples=40)
@given(seed=st.integers(0, 2**20), input_scale=scales, output_scale=scales, kind=st.sampled_from(["number", "tensor", "rows"]))
def test_weights_of_any_kind_weigh_alike(seed, input_scale, output_scale, kind):
    generator = torch.Generator().manual_seed(seed)
    source, target = torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
    made = {
        "number": float,
        "tensor": lambda scale: torch.tensor(float(scale), dtype=torch.float64),
        "rows": lambda scale: torch.full((7, 1), float(scale), dtype=torch.float64),
    }[kind]
    expected = input_scale * source + output_scale * target
    for second in (made, float):
        found = weigh(source, target, made(input_scale), second(output_scale), out=torch.empty(7, 3, dtype=torch.float64))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@architectures
def test_parting_leaves_two_equal_tables_that_learn_apart(arch, tmp_path: Path):
    model, tie = split_model(arch, torch.float32)
    leaf = model.get_output_embeddings().weight
    tie.combine()
    tie.part()
    own = models.tables(model)
    assert not own.tied and torch.equal(own.input, own.output)
    assert model.get_output_embeddings().weight is leaf, "whatever holds the leaf goes on holding it"
    model.zero_grad()
    for _ in range(2):  # gradients add up again, each its own
        backward(model)
    expected = paths(build(arch, torch.float32))
    torch.testing.assert_close(model.get_input_embeddings().weight.grad, 2 * expected[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(leaf.grad, 2 * expected[1], rtol=1e-4, atol=1e-6)
    torch.optim.AdamW(model.parameters(), lr=0.1).step()
    model.tie_weights()
    assert not torch.equal(own.input, own.output)
    model.save_pretrained(tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not models.tables(loaded).tied
    assert torch.equal(loaded(PARTS[0]).logits, model.eval()(PARTS[0]).logits)
    with pytest.raises(ValueError):
        tie.combine()
