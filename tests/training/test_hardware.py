"""Where a run trains and in what, and what a GPU step does otherwise, as far as a CPU can tell: the same numbers."""

import functools
import json
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from tying_utils import models
from tying_utils.models.tie import SplitTie
from tying_utils.training import Trainer, choose_hardware, hardware, train
from tying_utils.training import trainer as training
from tying_utils.training.next_token import NextTokenLoss

V, CONTEXT, CPU = 300, 12, torch.device("cpu")
ARMS: dict[str, dict[str, Any]] = {
    "tied": {},
    "input x5": {"input_scale": 5},
    "both scaled, in parts": {"input_scale": 2, "output_scale": 0.5, "micro_batches": 2},
    "untied": {"tied": False},
}
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
    if not hardware.without_mask(model):
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
    found = hardware.blocks(build(arch))
    assert len(found) == 2 and sum(p.numel() for p in found.parameters()) > 2 * 16 * 16
    with pytest.raises(ValueError, match=r"^model: Linear has no list of blocks"):
        hardware.blocks(torch.nn.Linear(2, 2))


def clock(monkeypatch: pytest.MonkeyPatch, *seconds: float, capability: tuple[int, int] = (9, 0)) -> None:
    """Have the probes take so many seconds a pass, one after another, on a card of that compute capability."""
    given = [*seconds]

    def timed(once: Any, probes: int = hardware.PROBE) -> float:
        once()
        return given[0] if probes == 1 else given.pop(0)

    monkeypatch.setattr(hardware, "_seconds", timed)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: capability)


def compiled(model: Any, backend: str = "aot_eager", **options: Any) -> tuple[bool, str]:
    """Compile `model` where it pays for 100 passes."""

    def once() -> None:
        NextTokenLoss(model)(WINDOWS).backward()

    return hardware.compile_where_it_pays(model, once, device=CPU, passes=100, backend=backend, **options)


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
    done, reason = compiled(model)
    assert done is kept and reason.startswith("compiled: " if kept else "eager: ")
    assert f"{1e3 * times[1]:.1f} ms a pass compiled, 1000.0 ms eager" in reason
    assert all(("forward" in vars(block)) is kept for block in hardware.blocks(model))
    assert list(model.state_dict()) == names
    seen.clear()
    for own, other in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)
    assert len(seen) == 1, "the activation's gradient is watched as before"
    assert all(gradient.any() for gradient in tie.path_gradients())


def test_a_compiler_that_fails_is_named_and_done_without(monkeypatch):
    clock(monkeypatch, 1.0)
    model = build()
    done, reason = compiled(model, "no such compiler")
    assert not done and reason.startswith("eager: the compiler failed with ") and "no such compiler" in reason
    gradients(model)


def test_all_that_train_along_decide_alike(monkeypatch):
    clock(monkeypatch, 1.0, 0.5)
    model, answers = build(), iter([True, True, False])
    done, _ = compiled(model, agreed=lambda own: own and next(answers))
    assert not done and all("forward" not in vars(block) for block in hardware.blocks(model))


@pytest.mark.parametrize(("seconds", "probed"), [(0.1, [1]), (0.7, [1, hardware.PROBE])])
def test_a_short_training_is_probed_with_one_pass(monkeypatch, seconds, probed):
    clock(monkeypatch)
    tried: list[int] = []
    monkeypatch.setattr(
        hardware, "_seconds", lambda once, probes=hardware.PROBE: (tried.append(probes), seconds / len(tried))[1]
    )
    done, reason = compiled(build())
    assert not done and tried == probed and "s of training are over before a compiler is" in reason


def test_the_cpu_trains_in_float32_unless_asked():
    for given, dtype, reason in (
        ((), torch.float32, "float32: on cpu it is the reference"),
        (("bfloat16",), torch.bfloat16, "bfloat16 on cpu, as asked for"),
    ):
        found = choose_hardware("cpu", *given)
        assert (found.device.type, found.dtype, found.reason) == ("cpu", dtype, reason)
        with found.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize(
    ("capability", "dtype", "said"),
    [((9, 0), torch.bfloat16, "9.0 has it"), ((8, 0), torch.bfloat16, "8.0 has it"), ((7, 5), torch.float32, "7.5 has no")],
)
def test_a_card_trains_in_what_it_computes_in(monkeypatch, capability, dtype, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: capability)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    chosen = choose_hardware()
    assert (chosen.device.type, chosen.dtype) == ("cuda", dtype)
    assert said in chosen.reason
    assert choose_hardware("cuda", "float32").dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("abacus",), "device"), (("cuda:99",), "device"), (("cpu", "float16"), "dtype"), (("cpu", "half"), "dtype")],
)
def test_what_is_not_there_is_named(arguments, named):
    with pytest.raises(ValueError, match=rf"^{named}: '{arguments[-1]}'.*'auto'"):
        choose_hardware(*arguments)


@pytest.mark.parametrize(
    ("capability", "seconds", "said"),
    [
        ((8, 0), (100.0, 50.0), "compiled: 50000.0 ms a pass compiled, 100000.0 ms eager"),
        ((9, 0), (100.0, 99.0), "eager: 99000.0 ms a pass compiled, 100000.0 ms eager"),
        ((9, 0), (0.1, 0.05), "eager: {whole} s of training are over before a compiler is"),
        ((7, 5), (100.0, 50.0), "eager: compute capability 7.5 is below 8.0"),
    ],
)
@pytest.mark.parametrize("arm", ["both scaled, in parts", "untied"])
def test_what_a_gpu_does_otherwise_is_rounding_alone(home, tiny, trained_once, monkeypatch, capability, seconds, said, arm):
    """In chunks, with batches ahead, compiled where it pays."""
    reference = trained_once(tiny(**ARMS[arm]))
    clock(monkeypatch, *seconds, capability=capability)
    monkeypatch.setattr(hardware.Hardware, "on_gpu", True)
    monkeypatch.setattr(training, "LOGITS_AT_ONCE", 10 * 300)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda place: None)
    compiling = functools.partial(hardware.compile_where_it_pays, backend="aot_eager")
    monkeypatch.setattr(training, "compile_where_it_pays", compiling)
    run = train(tiny(**ARMS[arm]), progress=False)
    assert run.record["made"]["reason"].startswith("float32: on cpu it is the reference; ")
    passes = 12 * run.config.micro_batches
    assert run.record["made"]["reason"].endswith(f"; {said.format(whole=round(seconds[0] * passes))}")
    pd.testing.assert_frame_equal(run.metrics, reference.metrics, rtol=2e-3, atol=1e-5)
    pd.testing.assert_frame_equal(run.metrics[:1], reference.metrics[:1], rtol=1e-4, atol=1e-6)


def test_batches_ahead_are_the_same_batches(home, tiny, trained_once, monkeypatch):
    """To the bit, from any step on, past the end of an epoch."""
    monkeypatch.setattr(training, "compile_where_it_pays", lambda *_, **__: (False, "eager"))
    config = tiny(steps=60)
    plain = Trainer(config, config.load_corpus()).batches
    monkeypatch.setattr(hardware.Hardware, "on_gpu", True)
    ahead = Trainer(config, config.load_corpus()).batches
    for index in (0, 1, 2, 7, 8, 3, *range(900, 905)):
        assert torch.equal(ahead(index), plain(index))


@pytest.mark.parametrize("arm", ARMS)
def test_no_step_on_a_gpu_makes_the_host_wait(home, tiny, monkeypatch, watching, arm):
    monkeypatch.setattr(training, "compile_where_it_pays", lambda *_, **__: (False, "eager"))
    monkeypatch.setattr(training, "LOGITS_AT_ONCE", 10 * 300)
    config = tiny(**ARMS[arm])
    waits = []
    for on_gpu in (False, True):
        monkeypatch.setattr(hardware.Hardware, "on_gpu", on_gpu)
        trainer = Trainer(config, config.load_corpus())
        trainer.step(1)
        with watching() as watch:
            trainer.step(2)
        waits.append(watch.waits)
    assert waits[0], "transformers no longer looks at the positions: hardware.without_mask may go"
    assert waits[1] == []
