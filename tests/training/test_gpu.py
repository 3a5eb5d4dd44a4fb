"""What a GPU step does otherwise, as far as a CPU can tell: the same numbers, and decisions that follow the times."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from tying_utils import models
from tying_utils.models.tie import SplitTie
from tying_utils.training import gpu
from tying_utils.training.next_token import NextTokenLoss

V, CONTEXT = 300, 12
WINDOWS = torch.randint(V, (3, CONTEXT + 1), generator=torch.Generator().manual_seed(0))


def build(arch: str = "olmo", tied: bool = True) -> Any:
    return models.build(arch, tied=tied, vocab_size=V, d_model=16, n_layers=2, n_heads=2, context=CONTEXT, seed=1)


def gradients(model: Any) -> list[Tensor]:
    model.zero_grad()
    NextTokenLoss(model)(WINDOWS).backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_attention_without_a_mask_is_the_same_and_looks_at_nothing(arch, monkeypatch, tmp_path):
    from transformers import masking_utils

    plain, model = build(arch), build(arch)
    expected = gradients(plain)
    if not gpu.without_mask(model):
        assert arch == "gpt_neo", "its local attention has a mask of its own"
        return
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda *_: pytest.fail("it looked at the positions"))
    for own, other in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-7)
    # The tokens after a place do not reach it.
    tokens = WINDOWS[:, :-1]
    later = tokens.clone()
    later[:, 7:] = 0
    torch.testing.assert_close(model(later).logits[:, :7], model(tokens).logits[:, :7])
    assert not torch.allclose(model(later).logits[:, 7:], model(tokens).logits[:, 7:])
    for one, folder in ((plain, tmp_path / "plain"), (model, tmp_path / "model")):
        one.save_pretrained(folder)
    kept = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("plain", "model")]
    assert kept[0] == kept[1], "the finished model is an ordinary one"


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_the_blocks_are_those_of_the_model(arch):
    found = gpu.blocks(build(arch))
    assert len(found) == 2 and sum(p.numel() for p in found.parameters()) > 2 * 16 * 16
    with pytest.raises(ValueError, match=r"^model: Linear has no list of blocks"):
        gpu.blocks(torch.nn.Linear(2, 2))


def clock(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Have the probes take so many seconds a pass, one after another."""
    given = iter(seconds)

    def one(once: Any) -> float:
        once()
        return next(given)

    monkeypatch.setattr(gpu, "_seconds", one)


@pytest.mark.parametrize(("times", "kept"), [((1.0, 0.5), True), ((1.0, 0.97), False), ((1.0, 1.5), False)])
def test_what_is_compiled_stays_where_it_pays(monkeypatch, times, kept):
    clock(monkeypatch, *times)
    model = build()
    tie = SplitTie(model)
    seen: list[Tensor] = []

    def watch(module: Any, args: Any, output: Tensor) -> None:
        output.register_hook(seen.append)

    model.get_input_embeddings().register_forward_hook(watch)
    expected, names = gradients(model), list(model.state_dict())
    done, reason = gpu.compile_where_it_pays(
        model, lambda: NextTokenLoss(model)(WINDOWS).backward(), passes=100, backend="aot_eager"
    )
    assert done is kept and reason.startswith("compiled: " if kept else "eager: ")
    assert f"{1e3 * times[1]:.1f} ms a pass compiled, 1000.0 ms eager" in reason
    assert all((block._compiled_call_impl is not None) is kept for block in gpu.blocks(model))
    assert list(model.state_dict()) == names
    seen.clear()
    for own, other in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)
    assert len(seen) == 1, "the activation's gradient is watched as before"
    assert all(gradient.any() for gradient in tie.path_gradients())


def test_a_run_that_is_over_soon_is_not_compiled(monkeypatch):
    clock(monkeypatch, 0.1)
    done, reason = gpu.compile_where_it_pays(build(), lambda: None, passes=500)
    assert (done, reason) == (False, "eager: 50 s of training are over before a compiler is")


def test_a_compiler_that_fails_is_named_and_done_without(monkeypatch):
    clock(monkeypatch, 1.0)
    model = build()
    done, reason = gpu.compile_where_it_pays(
        model, lambda: NextTokenLoss(model)(WINDOWS).backward(), passes=100, backend="no such compiler"
    )
    assert not done and reason.startswith("eager: the compiler failed with ") and "no such compiler" in reason
    gradients(model)


def test_all_that_train_along_decide_alike(monkeypatch):
    clock(monkeypatch, 1.0, 0.5)
    model, answers = build(), iter([True, False])
    done, _ = gpu.compile_where_it_pays(
        model,
        lambda: NextTokenLoss(model)(WINDOWS).backward(),
        passes=100,
        agreed=lambda own: own and next(answers),
        backend="aot_eager",
    )
    assert not done and all(block._compiled_call_impl is None for block in gpu.blocks(model))
