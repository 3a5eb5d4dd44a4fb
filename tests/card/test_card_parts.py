"""The parts of a check, each on its own: a wrong device is found out, sizes fit the card, the time and the text."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import training as steps
from tying_utils.base import processes
from tying_utils.card import claims, correct, facts, fast
from tying_utils.card.plan import LeftOut
from tying_utils.card.setting import Setting
from tying_utils.training import budget, hardware, trainer

small = correct.small_run


@pytest.fixture
def here(tmp_path: Path) -> Setting:
    return Setting(torch.device("cpu"), tmp_path, smoke=True)


@pytest.fixture
def small_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """A card with 2 GB free."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * 10**9, 16 * 10**9))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 10**9)
    monkeypatch.setattr(steps, "choose_hardware", lambda *_: SimpleNamespace(dtype=torch.bfloat16))
    return Setting(torch.device("cuda"), tmp_path, smoke=False)


class Louder(correct.NextTokenLoss):
    """A device whose losses are a hundredth too large."""

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return 1.01 * super().forward(windows)


def test_a_device_that_computes_something_else_is_found_out(here, monkeypatch):
    right = correct.paths(here, "olmo", "float32")
    assert right["difference"] < 1e-5 < right["tolerance"]
    monkeypatch.setattr(correct, "NextTokenLoss", Louder)
    wrong = correct.paths(here, "olmo", "float32", micro_batches=2)
    assert wrong["difference"] == pytest.approx(0.01, rel=0.01) and wrong["difference"] > wrong["tolerance"]


@pytest.mark.parametrize(("task", "broken"), [("orthogonal alignment", "align"), ("linear chance", "chance")])
def test_a_measure_that_differs_on_the_device_is_found_out(here, monkeypatch, task: str, broken: str):
    def check() -> Any:
        return next(each for each in correct.tasks(here) if each.name == task).run()

    right = check()
    assert right["difference"] <= right["tolerance"]
    exact = getattr(correct.alignment, broken)

    def shifted(source: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        found = exact(source, *arguments, **options)
        own = source.dtype == torch.float32
        return found + 0.01 * own if broken == "align" else SimpleNamespace(mean=found.mean + 0.01 * own)

    monkeypatch.setattr(correct.alignment, broken, shifted)
    wrong = check()
    assert wrong["difference"] == pytest.approx(0.01, rel=1e-3) and wrong["difference"] > wrong["tolerance"]


@pytest.mark.parametrize("rule", correct._RULES, ids=lambda rule: rule.name)
def test_every_rule_of_balance_is_checked(here, rule):
    found = correct.ruled(here, rule())
    assert found["difference"] <= found["tolerance"]


def test_a_run_that_is_killed_ends_with_the_weights_of_one_that_was_not(here, monkeypatch, home):
    found = correct.resumed(here)
    assert found["difference"] == found["tolerance"] == 0


def test_a_run_that_is_out_of_time_leaves_no_process_behind(here, monkeypatch, home):
    started, begin = [], processes.subprocess.Popen

    def child(*arguments: Any, **options: Any) -> Any:
        started.append(begin(*arguments, **options))
        return started[0]

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(processes.subprocess, "Popen", child)
    monkeypatch.setattr(correct, "small_run", lambda setting, **_: small(setting, steps=4, checkpoint_every=4))
    monkeypatch.setattr(correct.time, "sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        correct.resumed(here)
    assert [child.returncode for child in started] == [-9]


def test_one_process_is_joined_in_a_folder_of_any_name(tmp_path):
    place = tmp_path / "with a blank, ü"
    place.mkdir()
    found = correct.distributed(Setting(torch.device("cpu"), place, smoke=True))
    assert found["difference"] <= found["tolerance"]


def test_a_profiler_that_sees_no_call_to_the_card_counts_no_waits(here, monkeypatch):
    monkeypatch.setattr(correct.training, "Trainer", lambda *_: SimpleNamespace(step=lambda step: torch.ones(2).sum()))
    assert correct.waits(here)["difference"] == 0
    here = Setting(torch.device("cuda"), here.scratch, smoke=True)
    monkeypatch.setattr(correct, "small_run", lambda _: SimpleNamespace(load_corpus=lambda: None))
    with pytest.raises(LeftOut, match="sees no call to the card"):
        correct.waits(here)


def test_what_was_compiled_before_does_not_count_against_a_contest(here):
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    made: list[tuple[Any, ...]] = []

    def backend(graph: Any, inputs: Any) -> Any:
        made.append(tuple(inputs[0].shape))
        return graph

    for size in range(2, 14):
        here.fresh()
        torch.compile(doubled, backend=backend)(torch.ones(size))
    assert made == [(size,) for size in range(2, 14)]


def test_a_driver_that_does_not_answer_is_unknown(monkeypatch):
    def late(*_: Any, **options: Any) -> None:
        raise facts.subprocess.TimeoutExpired("nvidia-smi", options["timeout"])

    monkeypatch.setattr(facts.subprocess, "run", late)
    assert facts._driver() == "unknown"


def test_a_way_of_a_contest_is_compiled_where_its_name_says_so_alone(monkeypatch):
    def probed(*_: Any, **__: Any) -> None:
        raise AssertionError("a probe may compile what is called eager")

    monkeypatch.setattr(trainer, "compile_where_it_pays", probed)
    config, corpus, on_cpu = steps.setting(320, 16, 1, 64)
    monkeypatch.setattr(hardware.Hardware, "on_gpu", True)
    assert steps.trainer_of(config, corpus, on_cpu).reason.endswith("; not compiled")


def test_rates_are_of_finite_time(here):
    assert all(facts.matrix_rate(name, here) > 1e6 for name in ("bfloat16", "TF32", "float32"))
    assert facts.copy_rate(here) > 1e6 and facts.machine(here.device)["card"] == "cpu"


def test_what_a_card_has_no_room_for_is_left_out_with_what_would_fit(small_card):
    contest = next(each for each in fast.contests(small_card) if each.what == "tied training step")
    with pytest.raises(LeftOut, match=r"GB of the card's memory are needed, 2\.0 are free; a step of 4,096 tokens"):
        fast.held(small_card, contest)
    with pytest.raises(LeftOut, match=r"4\.1 GB .* V = 12,576 would"):
        fast.aligned(small_card)
    small_card.room(10**9, "no matter")
    assert small_card.peak() == {"peak_bytes": 10**9}


def test_the_contests_of_a_card_are_those_asked_for(small_card):
    contests = list(fast.contests(small_card))
    sizes = {(contest.what, contest.size["V"], contest.size["d"]) for contest in contests}
    assert {("tied training step", 50_304, 768), ("neighbour overlap", 50_304, 2048), ("run of 50 steps", 8192, 256)} <= sizes
    assert sum("compiled" in contest.ways[0] for contest in contests) == 2
    assert all(contest.size.get("context", 1024) == 1024 for contest in contests)


def test_products_alone_are_those_of_the_measure(here):
    found = fast.aligned(here)
    assert found["ratio"] > 1 and found["permutations"] == 10 and "peak_bytes" not in found, "there is no card"


def text(tokens: int) -> Any:
    return SimpleNamespace(name="packages", vocab_size=claims._VOCABULARY, train=np.zeros(tokens, np.uint16))


@pytest.fixture
def on_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setattr(Setting, "room", lambda *_: None)
    monkeypatch.setattr(claims, "seconds_per_step", lambda config, corpus: config.d_model / 12_800)
    return Setting(torch.device("cpu"), tmp_path, smoke=False)


def test_the_largest_shape_that_reaches_twenty_tokens_per_weight_is_taken(on_card):
    sizes = []
    for seconds in (20_000, 400, 100):
        config, found = claims.chosen(on_card, text(10**9), seconds)
        weights = budget.parameters(config.replace(tied=False))
        tokens = config.steps * config.batch_size * config.context
        assert found["weights"] == weights and found["tokens_per_weight"] == pytest.approx(tokens / weights)
        assert config.warmup_steps == config.steps // 4
        sizes.append((config.d_model, found["tokens_per_weight"]))
    assert sizes[0] == (512, pytest.approx(20, rel=0.01)) and sizes[1] == (192, pytest.approx(20, rel=0.01))
    assert sizes[2][0] == 128 and sizes[2][1] < 20, "where time is short, as many as fit"


def test_a_size_that_is_given_is_taken_where_text_and_card_have_room(on_card):
    size = {"d": 128, "layers": 4, "steps": 100}
    config, found = claims.given(on_card, text(2 * 10**6), size)
    assert (config.d_model, config.n_layers, config.steps, config.warmup_steps) == (128, 4, 100, 25)
    assert found == {**size, "weights": 2_097_152, "tokens_per_step": 16_384, "tokens_per_weight": 100 * 16_384 / 2_097_152}
    with pytest.raises(LeftOut, match="100 steps read more than the text has, 1,000,000 tokens"):
        claims.given(on_card, text(10**6), size)


def test_no_text_is_read_twice(on_card):
    config, found = claims.chosen(on_card, text(110 * 10**6), 20_000)
    assert config.d_model == 192 and found["tokens_per_weight"] == pytest.approx(20, rel=0.01)
    config, found = claims.chosen(on_card, text(10**6), 20_000)
    assert config.d_model == 128 and config.steps * config.batch_size * config.context < 10**6


def test_more_logits_at_a_time_on_a_larger_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 10**9))
    assert hardware.logits_at_once(torch.device("cuda"), 2**27) == 80 * 10**9 // 64 > 16_384 * 50_304
    assert hardware.logits_at_once(torch.device("cpu"), 2**27) == 2**27
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=10**9))
    assert hardware.logits_at_once(torch.device("cuda"), 2**27) == 2**27
