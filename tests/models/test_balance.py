import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tying_utils import models
from tying_utils.models import balance
from tying_utils.models.balance import REMEDIES, NormMatch, PathRule, PCGrad, RareGate, Remedy, Scale, Schedule, check, get
from tying_utils.models.tie import SplitTie, weigh
from tying_utils.training.next_token import NextTokenLoss

V, D, N = 60, 8, 6
draw = torch.Generator().manual_seed(0)
RULES = [name for name, kind in REMEDIES.items() if issubclass(kind, PathRule)]


def build(tied: bool = True) -> Any:
    return models.build(tied=tied, vocab_size=V, d_model=D, n_layers=2, n_heads=2, context=16, seed=3).double()


def windows(count: int = 4, low: int = 0, high: int = V) -> Tensor:
    return torch.randint(low, high, (count, 17), generator=draw)


def loss(model: Any, part: Tensor) -> Tensor:
    return F.cross_entropy(model(part[:, :-1]).logits.flatten(0, 1), part[:, 1:].flatten())


def gradients(seed: int, rows: int, width: int, source: float = 1.0, target: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, rows, width, generator=generator, dtype=torch.float64)
    return source * a, target * b


def weighed(rule: PathRule, source: Tensor, target: Tensor, step: int = 1, steps: int = 10, state: Any = None) -> Tensor:
    state = rule.state(source) if state is None else state
    return weigh(source, target, *rule.scales(source, target, step, steps, state), out=torch.empty_like(source))


shapes: dict[str, Any] = {"seed": st.integers(0, 2**20), "rows": st.integers(1, 40), "width": st.integers(1, 20)}


@pytest.mark.parametrize("name", REMEDIES)
def test_a_remedy_is_a_value(name):
    remedy = get(name)
    assert remedy == get(name) and hash(remedy) == hash(get(name)) and remedy.name == name
    assert remedy.line and remedy.__doc__ and set(remedy.fits) <= {True, False}
    plain = json.loads(json.dumps(remedy.as_dict()))
    assert plain["name"] == name and get(plain) == remedy == get(remedy)


def test_five_and_five_point_zero_are_one_remedy():
    assert get("scale", input=5) == get("scale", input=5.0) != get("scale", input=4)
    assert get("scale", input=5).as_dict() == {"name": "scale", "input": 5.0, "output": 1.0}


@pytest.mark.parametrize("name", ["", "normmatch", {"name": 3}, {"name": None}, {"name": ["scale"]}])
def test_an_unknown_name_is_named_with_a_line_for_each_known_one(name):
    with pytest.raises(ValueError, match=r"^remedy: .* is unknown; choose one of\n") as refused:
        get(name)
    lines = str(refused.value).splitlines()[1:]
    assert lines == [f"  {known}: {kind.line}" for known, kind in REMEDIES.items()]


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("scale", {"inputs": 3, "gain": 1}, "^remedy: gain, inputs: no parameter of 'scale'; it has input, output"),
        ("coupled-adam", {"rate": 3}, "^remedy: rate: no parameter of 'coupled-adam'; it has none"),
        *(
            ("scale", {name: value}, f"^{name}: ")
            for name in ("input", "output")
            for value in (-1, math.inf, math.nan, True, "1")
        ),
        *(("table-rates", {name: value}, f"^{name}: ") for name in ("input", "output") for value in (-1, math.nan, None)),
        *(("schedule", {name: value}, f"^{name}: ") for name in ("start", "stop") for value in (-0.1, 1.1, "0")),
        ("schedule", {"start": 0.5, "stop": 0.5}, r"^start and stop: start < stop is needed, got 0\.5 and 0\.5"),
        *(("norm-match", {"target": value}, "^target: ") for value in (-0.1, 1.1, None)),
        *(("norm-match", {"smoothing": value}, "^smoothing: .* up to but not 1") for value in (1, 1.5)),
        ("scale", {"name": "shrink"}, "^remedy: name: no parameter of 'scale'"),
        ("pcgrad", {"by": "column"}, "^by: 'table' or 'row'"),
        *(("shrink", {"alpha": value}, "^alpha: ") for value in (-0.1, 1.1)),
        *(("rare-gate", {"alpha": value}, "^alpha: ") for value in (-0.1, 1.1)),
        *(("rare-gate", {"memory": value}, "^memory: ") for value in (0, 1.5, True)),
        *(("factorised", {"width": value}, "^width: ") for value in (0, 2.0, None)),
        *(("untie", {"at": value}, "^at: .* up to but not 1") for value in (1, 1.5)),
    ],
)
def test_bad_parameters_are_named(name, parameters, said):
    with pytest.raises(ValueError, match=said):
        get(name, **parameters)


@pytest.mark.parametrize(
    ("remedy", "said"),
    [
        *((value, "a mapping .* a name or None is needed") for value in (3, 1.5, None, ["scale"], Scale, Remedy(), PathRule())),
        ({"target": 0.5}, 'a mapping needs a "name", got .*norm-match'),
    ],
)
def test_what_is_no_remedy_is_named(remedy, said):
    with pytest.raises(ValueError, match=f"^remedy: {said}"):
        get(remedy)


@pytest.mark.parametrize("name", REMEDIES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_remedy_for_the_other_kind_of_model_is_refused_with_those_that_fit(name, tied):
    remedy = get(name)
    if tied in remedy.fits:
        check(remedy, tied=tied, d_model=64)
        return
    with pytest.raises(ValueError, match=rf"^remedy: '{name}' needs tied={not tied}, got tied={tied}") as refused:
        check(remedy, tied=tied, d_model=64)
    others = str(refused.value).partition("choose one of ")[2].split(", ")
    assert others == [other for other, kind in REMEDIES.items() if tied in kind.fits]


def test_factors_no_smaller_than_the_table_are_refused():
    with pytest.raises(ValueError, match=r"^width: below d_model = 16 is needed, got 16; try 4"):
        check(get("factorised"), tied=False, d_model=16)


@pytest.mark.parametrize("name", sorted(set(REMEDIES) - set(RULES)))
def test_a_remedy_that_weighs_nothing_is_no_rule_for_a_split_tie(name):
    with pytest.raises(ValueError, match=f"^remedy: '{name}' does not weigh .* {', '.join(RULES)}$"):
        balance.path_rule(name)
    with pytest.raises(ValueError, match=r"^rule: one that weighs the two paths is needed"):
        SplitTie(build(), get(name))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RULES)
def test_a_rule_needs_two_paths(name):
    with pytest.raises(ValueError, match=r"^model: a tied model is needed"):
        SplitTie(build(tied=False), balance.path_rule(name))
    assert balance.path_rule(None) == Scale()


@settings(max_examples=30)
@given(**shapes, input=st.floats(0, 100), output=st.floats(0, 100))
def test_constant_scales_are_those_given_by_hand(seed, rows, width, input, output):
    source, target = gradients(seed, rows, width)
    by_hand = weigh(source, target, input, output, out=torch.empty_like(source))
    assert torch.equal(weighed(Scale(input=input, output=output), source, target), by_hand)
    assert torch.equal(weighed(Scale(), source, target), source + target)


@settings(max_examples=60)
@given(steps=st.integers(1, 200), at=st.floats(0, 1))
def test_an_early_and_a_late_schedule_share_out_the_steps(steps, at):
    parts = []
    if at > 0:
        parts.append(Schedule(input=5, output=2, start=0, stop=at))
    if at < 1:
        parts.append(Schedule(input=5, output=2, start=at, stop=1))
    source = torch.ones(1, 1)
    scales = [[part.scales(source, source, step, steps, {}) for part in parts] for step in range(1, steps + 1)]
    assert all(sorted(at_step, reverse=True)[0] == (5, 2) for at_step in scales)
    assert all(at_step.count((5, 2)) == 1 and at_step.count((1, 1)) == len(parts) - 1 for at_step in scales)
    early = [at_step[0] == (5, 2) for at_step in scales]
    assert early == sorted(early, reverse=True) or len(parts) == 1
    assert at in (0, 1) or sum(early) == math.floor(at * steps)


@settings(max_examples=60)
@given(**shapes, target=st.floats(0, 1), ratio=st.floats(1e-3, 1e3))
def test_the_share_is_held_at_the_target_and_the_norms_add_up_as_before(seed, rows, width, target, ratio):
    rule = NormMatch(target=target)
    for step in range(1, 4):
        source, output = gradients(seed + step, rows, width, target=ratio)
        scales = [float(scale) for scale in rule.scales(source, output, step, 3, rule.state(source))]
        norms = scales[0] * source.norm(), scales[1] * output.norm()
        assert float(norms[1] / sum(norms)) == pytest.approx(target, abs=1e-5)
        assert float(sum(norms)) == pytest.approx(float(source.norm() + output.norm()), rel=1e-6)


@settings(max_examples=30)
@given(target=st.floats(0, 1), smoothing=st.floats(0.01, 0.99), steps=st.integers(1, 12))
def test_with_smoothing_the_share_holds_for_the_moving_averages(target, smoothing, steps):
    rule, state = NormMatch(target=target, smoothing=smoothing), NormMatch().state(torch.zeros(1, dtype=torch.float64))
    seen, scales = [], (torch.ones(()), torch.ones(()))
    for step in range(1, steps + 1):
        source, output = gradients(step, 9, 4, target=step)
        seen.append((float(source.norm()), float(output.norm())))
        scales = rule.scales(source, output, step, steps, state)
    weights = [smoothing ** (steps - 1 - i) for i in range(steps)]
    first, second = (sum(w * norms[k] for w, norms in zip(weights, seen, strict=True)) / sum(weights) for k in (0, 1))
    assert float(scales[0]) * first == pytest.approx((1 - target) * (first + second), rel=1e-5)
    assert float(scales[1]) * second == pytest.approx(target * (first + second), rel=1e-5, abs=1e-9)


def test_a_path_without_a_gradient_keeps_its_scale():
    source, target = torch.zeros(3, 2), torch.ones(3, 2)
    scales = NormMatch(target=0.3).scales(source, target, 1, 2, NormMatch().state(source))
    assert float(scales[0]) == 1 and math.isfinite(float(scales[1]))
    assert weighed(NormMatch(), torch.zeros(3, 2), torch.zeros(3, 2)).eq(0).all()


def projected(source: Tensor, target: Tensor) -> Tensor:
    """PCGrad for two tasks as its paper writes it, on vectors."""
    first, second = source.clone(), target.clone()
    if float(source @ target) < 0:
        first -= (source @ target) / (target @ target) * target
        second -= (source @ target) / (source @ source) * source
    return first + second


@settings(max_examples=60)
@given(**shapes, lean=st.floats(-2, 2))
def test_projection_is_the_papers_and_leaves_no_conflict(seed, rows, width, lean):
    source, noise = gradients(seed, rows, width)
    target = lean * source + noise
    whole = weighed(PCGrad(), source, target)
    torch.testing.assert_close(whole.flatten(), projected(source.flatten(), target.flatten()), rtol=1e-9, atol=1e-9)
    by_row = weighed(PCGrad(by="row"), source, target)
    expected = torch.stack([projected(a, b) for a, b in zip(source, target, strict=True)])
    torch.testing.assert_close(by_row, expected, rtol=1e-9, atol=1e-9)
    for path in (source, target):
        size = float(whole.norm() * path.norm())
        assert float((whole * path).sum()) >= -1e-9 * (1 + size)
        assert ((by_row * path).sum(1) >= -1e-9 * (1 + by_row.norm(dim=1) * path.norm(dim=1))).all()


@pytest.mark.parametrize("by", ["table", "row"])
def test_projection_does_nothing_where_the_gradients_agree(by):
    source, noise = gradients(1, 9, 5)
    target = torch.where(source * noise < 0, -noise, noise)  # every entry agrees
    assert torch.equal(weighed(PCGrad(by=by), source, target), source + target)
    conflict = torch.cat([target[:-1], -source[-1:]])  # one row does not, and its two gradients cancel
    by_row = weighed(PCGrad(by="row"), source, conflict)
    assert torch.equal(by_row[:-1], (source + conflict)[:-1]) and by_row[-1].abs().max() < 1e-12


@pytest.mark.parametrize("by", ["table", "row"])
def test_a_row_without_a_gradient_is_no_conflict(by):
    source, target = gradients(2, 4, 3)
    source[1] = 0
    assert torch.isfinite(weighed(PCGrad(by=by), source, target)).all()
    assert torch.equal(weighed(PCGrad(by="row"), source, target)[1], target[1])


@pytest.mark.parametrize("alpha", [0.1, 1.0, 0.0])
def test_shrink_is_the_published_line_and_a_constant_scale(alpha):
    model, published, part = build(), build(), windows()
    tie = SplitTie(model, balance.Shrink(alpha=alpha))
    loss(model, part).backward()
    source, target = (gradient.clone() for gradient in tie.path_gradients())
    tie.combine(step=1, steps=1)

    def shrink(module: nn.Module, args: Any, embedded: Tensor) -> Tensor:
        return embedded * alpha + embedded.detach() * (1 - alpha)

    published.get_input_embeddings().register_forward_hook(shrink)
    torch.testing.assert_close(published(part[:, :-1]).logits, model(part[:, :-1]).logits, rtol=1e-12, atol=1e-12)
    loss(published, part).backward()
    torch.testing.assert_close(tie.weight.grad, published.get_input_embeddings().weight.grad, rtol=1e-9, atol=1e-12)
    assert torch.equal(weighed(balance.Shrink(alpha=alpha), source, target), weighed(Scale(input=alpha), source, target))


def published_gate(hidden: Tensor, weight: Tensor, targets: Tensor, counts: Tensor, seen: int, alpha: float) -> Tensor:
    """The output table's gradient by the loss of AGG: gated logits, features detached, one part for each kind of target."""
    frequency = counts / seen
    rare = frequency < alpha
    gates = {
        False: torch.where(rare, frequency, 1.0),
        True: torch.where(rare, (counts / counts[rare].mean().clamp(min=1e-7)).clamp(max=1.0), 1.0),
    }
    table, total = weight.detach().clone().requires_grad_(), torch.zeros((), dtype=weight.dtype)
    for position, target in zip(hidden.detach(), targets, strict=True):
        gate = gates[bool(rare[target])].clone()
        gate[target] = 1.0
        logits = table @ position
        gated = gate * logits + (1 - gate) * logits.detach()
        total = total + F.cross_entropy(gated[None], target[None], reduction="sum") / len(targets)
    total.backward()
    assert table.grad is not None
    return table.grad


class Watched:
    """A split tie with a gate, and beside it what it should have done."""

    def __init__(self, alpha: float = 0.9, memory: int = 3) -> None:
        self.model, self.alpha, self.memory = build(), alpha, memory
        self.tie = SplitTie(self.model, RareGate(alpha=alpha, memory=memory))
        self.history: list[Tensor] = []
        self.hidden: list[Tensor] = []
        self.model.get_output_embeddings().register_forward_hook(lambda m, args, out: self.hidden.append(args[0]))

    def expected(self, part: Tensor) -> Tensor:
        counts, seen = torch.stack(self.history[-self.memory :]).sum(0), min(len(self.history), self.memory)
        hidden = torch.cat([h.flatten(0, 1) for h in self.hidden])
        return published_gate(hidden, self.tie.weight, part[:, 1:].flatten(), counts.double(), seen, self.alpha)

    def finish(self, part: Tensor) -> None:
        self.tie.combine(step=len(self.history) + 1, steps=10)
        self.history.append(torch.bincount(part[:, 1:].flatten(), minlength=V))
        self.hidden.clear()

    def steps(self, *parts: Tensor) -> None:
        for part in parts:
            loss(self.model, part).backward()
            self.finish(part)
            self.model.zero_grad()


def test_rare_tokens_are_gated_as_published_and_the_others_left_alone():
    watched, plain = Watched(), build()
    split = SplitTie(plain)
    # Seldom tokens beside common ones; from step 5 on, what was counted at first is forgotten.
    steps = [torch.cat([windows(3, 0, 20), windows(1, 0, 50)]) for _ in range(6)]
    for step, part in enumerate(steps, 1):
        loss(watched.model, part).backward()
        loss(plain, part).backward()
        source, target = watched.tie.path_gradients()
        ordinary = split.path_gradients()
        torch.testing.assert_close(source, ordinary[0], rtol=1e-12, atol=1e-15)
        if step == 1:
            assert torch.equal(target, ordinary[1]), "nothing was counted yet"
        else:
            expected = watched.expected(part)
            torch.testing.assert_close(target, expected, rtol=1e-5, atol=1e-9)
            counts = torch.stack(watched.history[-3:]).sum(0)
            common = counts / min(step - 1, 3) >= 0.9
            assert common.any() and not common.all()
            assert torch.equal(target[common], ordinary[1][common])
            changed = (target - ordinary[1]).abs().sum(1) > 1e-6
            assert changed[~common].all()
            # A rare token that is no target is pushed by a small part of what it was.
            absent = (torch.bincount(part[:, 1:].flatten(), minlength=V) == 0) & (counts == 0)
            assert target[absent].abs().max() < 1e-12 < ordinary[1][absent].abs().max()
        for name, p in plain.named_parameters():
            if p.grad is not None and p.shape != (V, D):
                torch.testing.assert_close(dict(watched.model.named_parameters())[name].grad, p.grad, rtol=1e-12, atol=1e-15)
        watched.finish(part)
        split.combine()
        plain.zero_grad()
        watched.model.zero_grad()
    expected = torch.stack(watched.history[-3:]).float()
    assert torch.equal(watched.tie.state["counts"].sort(0).values, expected.sort(0).values)
    assert watched.tie.state["seen"].tolist() == [6]


def test_parts_of_a_batch_and_logits_in_chunks_are_gated_alike():
    whole, parts, chunks = Watched(), Watched(), Watched()
    chunked = NextTokenLoss(chunks.model, logits_at_once=7 * V)
    for step in range(1, 4):
        part = windows(4, 0, 40)
        loss(whole.model, part).backward()
        for half in part.chunk(2):
            (loss(parts.model, half) / 2).backward()
        chunked(part).backward()
        reference = whole.tie.path_gradients()[1]
        for other in (parts, chunks):
            torch.testing.assert_close(other.tie.path_gradients()[1], reference, rtol=1e-5, atol=1e-7)
        for one in (whole, parts, chunks):
            one.finish(part)
            assert torch.equal(one.tie.state["gates"], whole.tie.state["gates"])
            assert int(one.tie.state["counts"].sum()) == 64 * step


def test_positions_that_the_loss_ignores_have_no_target():
    watched, part = Watched(), windows()
    targets = part[:, 1:].clone()
    targets[:, ::2] = -100
    F.cross_entropy(watched.model(part[:, :-1]).logits.flatten(0, 1), targets.flatten()).backward()
    expected = torch.bincount(targets[targets >= 0], minlength=V).float()
    assert torch.equal(watched.tie.state["present"], expected)


def test_a_discarded_backward_pass_leaves_no_gate_behind():
    watched, part = Watched(), windows()
    watched.steps(part, part)
    loss(watched.model, windows()).backward()  # this step is skipped
    watched.model.zero_grad()
    watched.hidden.clear()
    loss(watched.model, part).backward()
    torch.testing.assert_close(watched.tie.path_gradients()[1], watched.expected(part), rtol=1e-5, atol=1e-9)


def test_an_alpha_of_zero_gates_nothing():
    watched, ordinary, part = Watched(alpha=0), build(), windows()
    split = SplitTie(ordinary)
    for _ in range(3):
        loss(watched.model, part).backward()
        loss(ordinary, part).backward()
        assert torch.equal(watched.tie.path_gradients()[1], split.path_gradients()[1])
        watched.finish(part)
        split.combine()
        assert torch.equal(watched.tie.weight.grad, split.weight.grad)  # type: ignore[arg-type]
        ordinary.zero_grad()
        watched.model.zero_grad()


def test_release_ends_the_gate():
    watched, part = Watched(), windows()
    watched.steps(part, part)
    watched.tie.release()
    ordinary = build()
    for model in (watched.model, ordinary):
        loss(model, part).backward()
    assert torch.equal(watched.model.get_input_embeddings().weight.grad, ordinary.get_input_embeddings().weight.grad)


@given(steps=st.integers(1, 500), at=st.floats(0, 1, exclude_max=True))
def test_a_model_is_tied_up_to_its_fraction_and_never_again(steps, at):
    tied = [get("untie", at=at).tied_after(True, step, steps) for step in range(steps + 1)]
    assert tied[0] and tied == sorted(tied, reverse=True)
    assert sum(tied) - 1 == sum(step / steps <= at for step in range(1, steps + 1))
    assert not tied[-1]


@pytest.mark.parametrize("smoothing", [0.0, 0.9])
@pytest.mark.parametrize("bad", [(float("inf"), 1.0), (1.0, float("nan"))])
def test_norm_match_forgets_a_step_that_overflowed(smoothing, bad):
    rule, ones = balance.NormMatch(smoothing=smoothing), torch.ones(4, 2)
    state = rule.state(ones)
    rule.scales(ones, ones, 1, 9, state)
    held = state["norms"].clone()
    rule.scales(bad[0] * ones, bad[1] * ones, 2, 9, state)
    assert torch.equal(state["norms"], held)
    assert all(weight.isfinite() for weight in rule.scales(ones, 3 * ones, 3, 9, state))  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norm_match_follows_in_half_precision(dtype):
    rule, ones = balance.NormMatch(smoothing=0.99), torch.ones(4, 2, dtype=dtype)
    states = {kind: rule.state(ones.to(kind)) for kind in (dtype, torch.float32)}
    for step in range(1, 1001):
        found = {
            kind: rule.scales(ones.to(kind), (1 + step / 500) * ones.to(kind), step, 1000, states[kind]) for kind in states
        }
    for half, whole in zip(found[dtype], found[torch.float32], strict=True):
        assert torch.as_tensor(half).dtype == dtype and float(half) == pytest.approx(float(whole), rel=0.02)


def test_pcgrad_sees_small_conflicts_in_float16():
    source = torch.full((4, 2), 1e-5, dtype=torch.float16)
    weights = balance.PCGrad().scales(source, -source, 1, 9, {})
    assert all(float(weight) == pytest.approx(2, rel=0.01) for weight in weights)


@pytest.mark.parametrize("steps", [50, 100, 200, 400, 1000])
def test_a_part_of_training_ends_at_the_step_that_is_asked_for(steps):
    one = torch.ones(1, 1)
    for step in range(1, steps):
        part = step / steps
        early, late = balance.Schedule(stop=part), balance.Schedule(start=part)
        assert [early.scales(one, one, at, steps, {})[0] for at in (step, step + 1)] == [5, 1]
        assert [late.scales(one, one, at, steps, {})[0] for at in (step, step + 1)] == [1, 5]
        assert [balance.Untie(at=part).tied_after(True, at, steps) for at in (step, step + 1)] == [True, False]
