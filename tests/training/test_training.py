import functools
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from tying_utils import corpora, models
from tying_utils.base import files
from tying_utils.training import METRICS, choose_hardware, gpu, run_store, train, train_all
from tying_utils.training import trainer as training
from tying_utils.training.config import TrainConfig
from tying_utils.training.run_store import Run

ROOT = Path(__file__).resolve().parents[2]
# One of each kind: both paths scaled, the batch in parts, no tie.
ARMS: dict[str, dict[str, Any]] = {
    "tied": {},
    "input x5": {"input_scale": 5},
    "both scaled, in parts": {"input_scale": 2, "output_scale": 0.5, "micro_batches": 2},
    "untied": {"tied": False},
}
arms = pytest.mark.parametrize("arm", ARMS)


def contents(run: Run) -> dict[str, bytes]:
    """Every file of the run but run.json, which holds the time it took."""
    return {
        path.relative_to(run.folder).as_posix(): path.read_bytes()
        for path in run.folder.rglob("*")
        if path.is_file() and path != run.folder / "run.json"
    }


def identical(run: Run, other: Run) -> bool:
    assert run.folder != other.folder
    assert run.key == other.key
    assert run.record["files"] == other.record["files"]
    return contents(run) == contents(other)


@pytest.fixture(scope="module")
def uninterrupted(tiny, trained_once) -> Callable[..., Run]:
    return lambda **changes: trained_once(tiny(**changes))


def batches(config: TrainConfig) -> Iterator[torch.Tensor]:
    """Each window of the training text once an epoch, (batch_size, context + 1), in the data seed's order."""
    tokens = np.asarray(corpora.load(config.corpus, vocab_size=config.vocab_size, path=config.path).train, np.int64)
    count = (len(tokens) - 1) // config.context
    order = itertools.chain.from_iterable(
        np.random.default_rng([config.data_seed, epoch]).permutation(count) for epoch in itertools.count()
    )
    while True:
        starts = [int(window) * config.context for window in itertools.islice(order, config.batch_size)]
        yield torch.stack([torch.from_numpy(tokens[start : start + config.context + 1]) for start in starts])


def rate(config: TrainConfig, step: int) -> float:
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    angle = math.pi * (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    low = config.learning_rate * config.final_learning_rate
    return low + (config.learning_rate - low) * (1 + math.cos(angle)) / 2


def simulate(config: TrainConfig) -> tuple[pd.DataFrame, Any]:
    """The run written plainly: path gradients by the chain rule on activations, torch's AdamW, Adam's moments by hand."""
    model: Any = models.build(
        config.arch,
        tied=config.tied,
        seed=config.init_seed,
        **config.sizes,
    )
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    held: dict[str, torch.Tensor] = {}

    def keep_embedded(module: Any, args: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        held["embedded"] = output

    def keep_logits(module: Any, args: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        held["hidden"], held["logits"] = args[0].detach(), output

    embedding.register_forward_hook(keep_embedded)
    head.register_forward_hook(keep_logits)
    betas = config.beta1, config.beta2
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=betas, eps=config.adam_eps, weight_decay=config.weight_decay, foreach=False
    )
    source_moment, target_moment, source_square, target_square = (torch.zeros_like(embedding.weight) for _ in range(4))
    rows = []
    for step, batch in zip(range(1, config.steps + 1), batches(config), strict=False):
        optimizer.zero_grad()
        total = 0.0
        source, target = torch.zeros_like(embedding.weight), torch.zeros_like(embedding.weight)
        activation_norm = math.nan
        for part in batch.chunk(config.micro_batches):
            loss = F.cross_entropy(model(part[:, :-1]).logits.flatten(0, 1), part[:, 1:].flatten()) / config.micro_batches
            loss.backward()
            total += float(loss.detach())
            embedded, logits = held["embedded"].grad, held["logits"].grad
            assert embedded is not None and logits is not None
            activation_norm = float(embedded.norm())
            source.index_add_(0, part[:, :-1].flatten(), embedded.flatten(0, 1))
            target += logits.flatten(0, 1).T @ held["hidden"].flatten(0, 1)
        with torch.no_grad():
            if config.tied:
                embedding.weight.grad.copy_(config.input_scale * source + config.output_scale * target)
            norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters()))
            clip = min(1.0, config.clip / norm)
            for p in model.parameters():
                p.grad.mul_(clip)
            scaled_source, scaled_target = clip * config.input_scale * source, clip * config.output_scale * target
            source_moment.lerp_(scaled_source, 1 - config.beta1)
            target_moment.lerp_(scaled_target, 1 - config.beta1)
            squares = [(scaled_source + scaled_target).square()] * 2 if config.tied else [source.mul(clip).square()]
            squares = squares if config.tied else [*squares, target.mul(clip).square()]
            source_square.lerp_(squares[0], 1 - config.beta2)
            target_square.lerp_(squares[1], 1 - config.beta2)
        for group in optimizer.param_groups:
            group["lr"] = rate(config, step)
        optimizer.step()
        whole = 1 - config.beta2**step
        source_update = float((source_moment / ((source_square / whole).sqrt() + config.adam_eps)).norm())
        target_update = float((target_moment / ((target_square / whole).sqrt() + config.adam_eps)).norm())
        source_norm, target_norm = float(source.norm()), float(target.norm())
        rows.append(
            {
                "step": step,
                "loss": total,
                "learning_rate": rate(config, step),
                "input_norm": source_norm,
                "output_norm": target_norm,
                "cosine": float((source * target).sum()) / (source_norm * target_norm),
                "output_share": target_norm / (source_norm + target_norm),
                "gradient_norm": norm,
                "clip": clip,
                "output_update_share": target_update / (source_update + target_update),
                "published_input_norm": activation_norm,
                "published_output_share": target_norm / (activation_norm + target_norm),
            }
        )
    return pd.DataFrame(rows), model


# Metrics


@arms
def test_a_row_a_step_and_the_columns_of_metrics(uninterrupted, arm):
    metrics = uninterrupted(**ARMS[arm]).metrics
    assert list(metrics) == list(METRICS)
    assert metrics["step"].tolist() == list(range(1, 13))
    evaluated = metrics["step"].isin([5, 10, 12])
    assert metrics["validation_loss"].notna().tolist() == evaluated.tolist()
    assert metrics.drop(columns="validation_loss").notna().all(axis=None)


@pytest.mark.parametrize("tied", [True, False])
def test_loss_starts_at_chance_and_falls(uninterrupted, tied):
    metrics = uninterrupted(tied=tied, steps=40, checkpoint_every=40).metrics
    assert metrics["loss"][0] == pytest.approx(math.log(300), abs=0.15)
    assert metrics["loss"][35:].mean() < metrics["loss"][0] - 0.5
    held_out = metrics["validation_loss"].dropna()
    assert held_out.iloc[-1] < held_out.iloc[0] - 0.3


@arms
def test_run_equals_one_written_plainly(uninterrupted, home, text, grammar, tmp_path, arm):
    short = tmp_path / "short.txt"
    short.write_text(grammar(38), encoding="utf-8")  # 12 steps of 8 windows go past its first epoch
    run = uninterrupted(path=str(short), batch_size=8, **ARMS[arm])
    config = run.config
    tokens = corpora.load("text", vocab_size=300, path=short).train
    assert (len(tokens) - 1) // config.context < config.steps * config.batch_size, "the text is longer than an epoch"

    expected, model = simulate(config)
    measured = run.metrics.drop(columns="validation_loss")
    pd.testing.assert_frame_equal(measured, expected[list(measured)], rtol=2e-3, atol=1e-5, check_dtype=False)
    early = slice(0, 1)
    pd.testing.assert_frame_equal(measured[early], expected[list(measured)][early], rtol=1e-4, atol=1e-6, check_dtype=False)
    for name, table in vars(models.tables(model)).items():
        if name != "tied":
            assert (getattr(run.tables(), name) - getattr(run.tables(0), name)).abs().max() > 5e-3
            torch.testing.assert_close(getattr(run.tables(), name), table, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_scale_one_is_the_ordinary_tied_run(home, tiny, arch):
    """No path gradients, no split: the loss of a tied model, clipped, through AdamW."""
    config = tiny(arch=arch, steps=6, checkpoint_every=6)
    model: Any = run_store.build_model(config)
    options: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    for step, batch in zip(range(1, 7), batches(config), strict=False):
        optimizer.param_groups[0]["lr"] = rate(config, step)
        optimizer.zero_grad()
        F.cross_entropy(model(batch[:, :-1]).logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    own = run_store.weight_names(train(config, progress=False).model())
    for name, parameter in run_store.weight_names(model).items():
        torch.testing.assert_close(own[name], parameter, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("clip", [0.05, 1e3])
def test_clip_is_what_clipping_does(uninterrupted, clip):
    metrics = uninterrupted(clip=clip).metrics
    norm = metrics["gradient_norm"]
    assert (norm > 0.05).all() and (norm < 1e3).all()
    assert (metrics["clip"] <= 1).all()
    expected = clip / norm if clip < 1 else norm / norm
    pd.testing.assert_series_equal(metrics["clip"], expected, rtol=1e-4, check_names=False)


def test_first_update_share_is_of_the_gradient_over_its_own_size(uninterrupted, home):
    """After one step v_hat is the squared gradient: each path's part is its gradient over the combined one's size."""
    run = uninterrupted(input_scale=5)
    config, model = run.config, run_store.build_model(run.config)
    batch = next(batches(config))
    weight: Any = model.get_input_embeddings().weight
    untied = models.build(tied=False, vocab_size=300, d_model=16, n_layers=1, n_heads=2, context=16, seed=config.init_seed)
    run_store.load_weights(untied, {**run_store.weight_names(model), "lm_head.weight": weight})
    F.cross_entropy(untied(batch[:, :-1]).logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
    ends: Any = untied.get_input_embeddings(), untied.get_output_embeddings()
    source, target = 5 * ends[0].weight.grad, ends[1].weight.grad
    first = run.metrics.iloc[0]
    assert first["clip"] < 1
    size = first["clip"] * (source + target).abs() + config.adam_eps
    shares = float((target / size).norm()), float((source / size).norm())
    assert first["output_update_share"] == pytest.approx(shares[0] / sum(shares), rel=1e-4)
    assert first["output_norm"] == pytest.approx(float(target.norm()), rel=1e-5)
    assert first["input_norm"] == pytest.approx(float(source.norm()) / 5, rel=1e-5)


def test_published_norm_is_of_the_last_part_alone(uninterrupted):
    whole, parts = uninterrupted().metrics, uninterrupted(micro_batches=2).metrics
    halved = parts["published_input_norm"] / whole["published_input_norm"]
    # Half the sequences, each with the same gradient: the norm falls by about the root of two.
    assert halved.mean() == pytest.approx(math.sqrt(0.5), abs=0.05)


def test_parts_of_a_batch_add_up(uninterrupted):
    names = ["loss", "input_norm", "output_norm", "cosine", "output_share", "gradient_norm", "clip"]
    whole, parts = (uninterrupted(micro_batches=count).metrics[names] for count in (1, 2))
    pd.testing.assert_frame_equal(whole, parts, rtol=2e-3, atol=1e-5)
    pd.testing.assert_frame_equal(whole[:1], parts[:1], rtol=1e-5, atol=1e-7)


def test_scales_leave_the_trunk_and_the_paths_alone(uninterrupted):
    """At step 1 the arms differ in the weighted sum alone, so what is left of the whole norm is equal."""

    def rest(run: Run) -> float:
        first, scale, out = run.metrics.iloc[0], run.config.input_scale, run.config.output_scale
        a, b = scale * first["input_norm"], out * first["output_norm"]
        return first["gradient_norm"] ** 2 - (a**2 + b**2 + 2 * a * b * first["cosine"])

    plain, scaled = uninterrupted(), uninterrupted(input_scale=5, output_scale=0.5)
    assert rest(plain) > 0.01 * plain.metrics["gradient_norm"][0] ** 2
    assert rest(scaled) == pytest.approx(rest(plain), rel=2e-3)
    same = ["loss", "input_norm", "output_norm", "cosine", "output_share", "published_input_norm"]
    assert scaled.metrics.loc[0, same].tolist() == plain.metrics.loc[0, same].tolist()
    assert not torch.equal(scaled.tables(1).table, plain.tables(1).table)


def test_validation_loss_is_of_held_out_text(uninterrupted, home, text):
    run = uninterrupted()
    corpus = corpora.load("text", vocab_size=300, path=text)
    windows = torch.from_numpy(corpus.windows("validation", 8, 17))
    for step in run.model_steps:
        model: Any = run.model(step)
        with torch.no_grad():
            loss = F.cross_entropy(model(windows[:, :-1]).logits.flatten(0, 1), windows[:, 1:].flatten())
        assert run.metrics.set_index("step")["validation_loss"][step] == pytest.approx(float(loss), rel=1e-5)


# Again, and after an interruption


@pytest.mark.parametrize("arm", ["input x5", "untied"])
def test_equal_configurations_give_equal_bytes(home, tiny, uninterrupted, arm):
    torch.manual_seed(int(time.time()))
    run = train(tiny(**ARMS[arm]), progress=False)
    assert run.folder.is_relative_to(home)
    assert identical(run, uninterrupted(**ARMS[arm]))


def test_seeds_decide_start_and_order_apart(uninterrupted):
    plain, start, order = uninterrupted(), uninterrupted(init_seed=1), uninterrupted(data_seed=1)
    assert not torch.equal(start.tables(0).table, plain.tables(0).table)
    assert torch.equal(order.tables(0).table, plain.tables(0).table)
    assert not torch.equal(order.tables(1).table, plain.tables(1).table)


def test_a_finished_run_is_loaded(home, tiny, monkeypatch):
    first = train(tiny(), progress=False)
    monkeypatch.setattr(training, "_Trainer", lambda *_: pytest.fail("it trained again"))
    again = train(tiny(), progress=False)
    assert again.record == first.record
    pd.testing.assert_frame_equal(again.metrics, first.metrics)
    assert [run.folder for run in train_all([tiny(), tiny()], progress=False)] == [first.folder] * 2


@pytest.mark.parametrize("arm", ["input x5", "untied"])
@pytest.mark.parametrize("stops", [[0], [1], [4], [5], [6], [10], [11], [3, 7, 10, 11]], ids=str)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(home, tiny, uninterrupted, monkeypatch, arm, stops):
    config, step = tiny(**ARMS[arm]), training._Trainer._step
    stepped = []
    for last in stops:

        def stopping(trainer: Any, number: int, last: int = last) -> torch.Tensor:
            if number > last:
                raise KeyboardInterrupt
            stepped.append(number)
            return step(trainer, number)

        monkeypatch.setattr(training._Trainer, "_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(config, progress=False)

    def counting(trainer: Any, number: int) -> torch.Tensor:
        stepped.append(number)
        return step(trainer, number)

    monkeypatch.setattr(training._Trainer, "_step", counting)
    run = train(config, progress=False)
    assert identical(run, uninterrupted(**ARMS[arm]))
    pd.testing.assert_frame_equal(run.metrics, uninterrupted(**ARMS[arm]).metrics, check_exact=True)
    resumed_from = max(kept for kept in (0, 5, 10) if kept <= stops[-1])
    assert stepped[-(12 - resumed_from) :] == list(range(resumed_from + 1, 13))
    repeated = sum(last - max(kept for kept in (0, 5, 10) if kept <= last) for last in stops)
    assert len(stepped) == 12 + repeated


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_run_ends_as_an_uninterrupted_one(home, tiny, text, uninterrupted):
    changes: dict[str, Any] = {"steps": 300, "checkpoint_every": 20, "input_scale": 5}
    config = tiny(**changes)
    fingerprint = corpora.load("text", vocab_size=300, path=text).fingerprint
    record = run_store.run_folder(config, fingerprint) / "run.json"
    command = [sys.executable, "-m", "tying_utils", "train", "--config", json.dumps(config.as_dict()), "--lines"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        while not record.exists():
            assert child.poll() is None and child.stderr is not None, "it ended before its first checkpoint"
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    committed = files.read_json(record)
    assert committed is not None and committed["finished"] is False and 0 < committed["step"] < 300
    run = train(config, progress=False)
    reference = uninterrupted(**changes)
    assert run.record["files"] == reference.record["files"]
    own = contents(run)
    assert {name: own[name] for name in reference.record["files"]} == contents(reference)
    pd.testing.assert_frame_equal(run.metrics, reference.metrics, check_exact=True)


def test_time_of_all_sittings_is_counted(home, tiny, monkeypatch):
    step = training._Trainer._step

    def slow(trainer: Any, number: int) -> torch.Tensor:
        if number == 6:
            raise KeyboardInterrupt
        time.sleep(0.06)
        return step(trainer, number)

    monkeypatch.setattr(training._Trainer, "_step", slow)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), progress=False)
    monkeypatch.setattr(training._Trainer, "_step", step)
    assert train(tiny(), progress=False).record["made"]["seconds"] >= 0.3


# Side by side


def test_side_by_side_equals_one_by_one(home, tiny, uninterrupted):
    changes: list[dict[str, Any]] = [{}, {"tied": False}, {"data_seed": 1}]
    done = train(tiny(**changes[2]), progress=False)
    runs = train_all([tiny(**change) for change in (*changes, changes[0])], progress=False, workers=2)
    assert [run.config for run in runs] == [tiny(**change) for change in (*changes, changes[0])]
    assert runs[2].record == done.record
    assert runs[0].folder == runs[3].folder
    for run, change in zip(runs, changes, strict=False):
        assert run.folder.is_relative_to(home)
        assert identical(run, uninterrupted(**change))


def test_one_worker_trains_here(home, tiny, uninterrupted, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    runs = train_all([tiny(tied=False), tiny()], progress=False, workers=1)
    assert [run.config.tied for run in runs] == [False, True]
    assert identical(runs[0], uninterrupted(tied=False)) and identical(runs[1], uninterrupted())


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, body: str) -> None:
    """Have workers run `body` (Python) in place of training."""
    script = folder / "worker"
    script.write_text(f"#!{sys.executable} -S\n{body}\n", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


@pytest.mark.skipif(sys.platform == "win32", reason="a script in the interpreter's place")
@pytest.mark.parametrize("before", [0, 1_000_000], ids=["few words", "many words"])
def test_a_failing_worker_is_an_error_with_its_last_words(home, tiny, tmp_path, monkeypatch, before):
    # A worker that cannot say all it has to say would wait for ever: the alarm ends it without its last words.
    body = (
        f"import signal, sys\nsignal.alarm(5)\nsys.stderr.write('.' * {before})\nsys.stderr.write('out of luck')\nsys.exit(3)"
    )
    stand_in(monkeypatch, tmp_path, body)
    with pytest.raises(RuntimeError, match=r"(?s)failed.*:\n.*out of luck"):
        train_all([tiny(), tiny(tied=False)], progress=False, workers=2)


@pytest.mark.skipif(sys.platform == "win32", reason="a script in the interpreter's place")
def test_no_worker_outlives_a_failure(home, tiny, tmp_path, monkeypatch):
    body = (
        "import json, sys, time, pathlib\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "tied = json.loads(sys.argv[sys.argv.index('--config') + 1])['tied']\n"
        "(folder / f'began-{tied}').touch()\n"
        "while not tied and not (folder / 'began-True').exists(): time.sleep(0.01)\n"
        "if not tied: sys.exit(1)\n"
        "time.sleep(8)\n(folder / 'outlived').touch()"
    )
    stand_in(monkeypatch, tmp_path, body)
    began = time.monotonic()
    with pytest.raises(RuntimeError):
        train_all([tiny(tied=False), tiny()], progress=False, workers=2)
    assert time.monotonic() - began < 7
    assert not (tmp_path / "outlived").exists()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are not granted one by one here")
def test_no_more_workers_than_granted_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7})
    assert training._cores() == 3


# What cannot be trained


@pytest.mark.parametrize(("count", "part"), [(30, "validation"), (600, "training")])
def test_a_text_shorter_than_a_context_is_named(home, tiny, tmp_path, grammar, count, part):
    folder = tmp_path / "folder"
    folder.mkdir()
    lines = {"training": ("train.txt", "valid.txt"), "validation": ("valid.txt", "train.txt")}[part]
    for name, size in zip(lines, (count if part == "training" else 1, 400), strict=True):
        (folder / name).write_text(grammar(size), encoding="utf-8")
    context = 40_000 if part == "training" else 400
    with pytest.raises(ValueError, match=rf"^corpus: the {part} part .* shorter than one context of {context}"):
        train(tiny(path=str(folder), context=context), progress=False)
    with pytest.raises(ValueError, match=rf"^corpus: the {part} part"):
        train_all([tiny(path=str(folder), context=context)], progress=False)


def test_a_text_too_small_for_the_vocabulary_is_named(home, tiny):
    with pytest.raises(ValueError, match=r"^vocab_size:"):
        train(tiny(vocab_size=20_000), progress=False)


def test_threads_are_set_for_the_run_and_put_back(home, tiny, monkeypatch):
    seen = []
    validate = training._Trainer._validation_loss

    def watch(trainer: Any) -> float:
        seen.append(torch.get_num_threads())
        return validate(trainer)

    monkeypatch.setattr(training._Trainer, "_validation_loss", watch)
    before = torch.get_num_threads()
    train(tiny(threads=before + 1, steps=1), progress=False)
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_steps_are_told(home, tiny):
    told: list[tuple[int, float]] = []
    run = train(tiny(), progress=False, on_step=lambda step, loss: told.append((step, loss)))
    assert told[-1] == (12, pytest.approx(run.metrics["loss"].iloc[-1]))
    assert [step for step, _ in told] == sorted({step for step, _ in told})


def test_a_context_fit_exactly_trains(home, tiny, tmp_path, grammar):
    """One window and its next token are enough, on either side."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "valid.txt").write_text(grammar(1), encoding="utf-8")
    (folder / "train.txt").write_text(grammar(60), encoding="utf-8")
    length = len(corpora.load("text", vocab_size=300, path=folder).validation)
    run = train(tiny(path=str(folder), context=length - 1, steps=1, warmup_steps=0), progress=False)
    assert run.metrics["validation_loss"].notna().all()
    assert run.metrics["learning_rate"][0] == pytest.approx(3e-4)


# Hardware


def test_the_cpu_trains_in_float32_unless_asked():
    chosen = choose_hardware("cpu")
    assert (chosen.device.type, chosen.dtype) == ("cpu", torch.float32)
    assert chosen.reason == "float32: on cpu it is the reference"
    asked = choose_hardware("cpu", "bfloat16")
    assert asked.dtype == torch.bfloat16
    assert asked.reason == "bfloat16 on cpu, as asked for"
    for hardware, dtype in ((chosen, torch.float32), (asked, torch.bfloat16)):
        with hardware.autocast():
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


def test_bfloat16_keeps_float32_weights_and_nearly_the_loss(uninterrupted):
    reference, run = uninterrupted(), uninterrupted(dtype="bfloat16")
    assert run.record["made"]["dtype"] == "bfloat16"
    assert run.tables().table.dtype == torch.float32
    assert not torch.equal(run.tables().table, reference.tables().table)
    pd.testing.assert_series_equal(run.metrics["loss"], reference.metrics["loss"], rtol=0.02)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have the CPU train as a card of that compute capability does: in chunks, with batches ahead, compiled where it pays."""

    def arrange(capability: tuple[int, int], seconds: tuple[float, float] = (1.0, 0.5)) -> None:
        times, compile_where_it_pays = iter(seconds), gpu.compile_where_it_pays
        monkeypatch.setattr(training.Hardware, "on_gpu", True)
        monkeypatch.setattr(training, "LOGITS_AT_ONCE", 10 * 300)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: capability)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda place: None)
        monkeypatch.setattr(gpu, "_seconds", lambda once: (once(), next(times))[1])
        monkeypatch.setattr(gpu, "compile_where_it_pays", functools.partial(compile_where_it_pays, backend="aot_eager"))

    return arrange


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
def test_what_a_gpu_does_otherwise_is_rounding_alone(home, tiny, uninterrupted, as_on_a_gpu, capability, seconds, said, arm):
    reference = uninterrupted(**ARMS[arm])
    as_on_a_gpu(capability, seconds)
    run = train(tiny(**ARMS[arm]), progress=False)
    assert run.record["made"]["reason"].startswith("float32: on cpu it is the reference; ")
    passes = 12 * run.config.micro_batches
    assert run.record["made"]["reason"].endswith(f"; {said.format(whole=round(seconds[0] * passes))}")
    pd.testing.assert_frame_equal(run.metrics, reference.metrics, rtol=2e-3, atol=1e-5)
    pd.testing.assert_frame_equal(run.metrics[:1], reference.metrics[:1], rtol=1e-4, atol=1e-6)


def test_batches_ahead_are_the_same_batches(home, tiny, uninterrupted, monkeypatch):
    """To the bit, from any step on, past the end of an epoch."""
    monkeypatch.setattr(training._Trainer, "_compile", lambda _: "eager")
    config = tiny(steps=60)
    plain = training._Trainer(config, config.load_corpus(), choose_hardware("cpu"), run_store.Onlooker())
    monkeypatch.setattr(training.Hardware, "on_gpu", True)
    ahead = training._Trainer(config, config.load_corpus(), choose_hardware("cpu"), run_store.Onlooker())
    assert plain.ahead is None and ahead.ahead is not None
    for index in (0, 1, 2, 7, 8, 3, *range(900, 905)):
        assert torch.equal(ahead._batch(index), plain._batch(index))


@pytest.mark.parametrize("arm", ARMS)
def test_no_step_on_a_gpu_makes_the_host_wait(home, tiny, monkeypatch, watching, arm):
    monkeypatch.setattr(training._Trainer, "_compile", lambda _: "eager")
    monkeypatch.setattr(training, "LOGITS_AT_ONCE", 10 * 300)
    config = tiny(**ARMS[arm])
    waits = []
    for on_gpu in (False, True):
        monkeypatch.setattr(training.Hardware, "on_gpu", on_gpu)
        trainer = training._Trainer(config, config.load_corpus(), choose_hardware("cpu"), run_store.Onlooker())
        trainer._step(1)
        with watching() as watch:
            trainer._step(2)
        waits.append(watch.waits)
    assert waits[0], "transformers no longer looks at the positions: gpu.without_mask may go"
    assert waits[1] == []


def test_a_run_frees_the_models_of_those_before_it(tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TYING_HOME", str(tmp_path))
    built: list[weakref.ref] = []

    def build(*given: Any) -> Any:
        model = made(*given)
        built.append(weakref.ref(model))
        return model

    made = run_store.build_model
    monkeypatch.setattr(run_store, "build_model", build)
    for seed in range(3):
        train(tiny(init_seed=seed), progress=False)
        assert sum(model() is not None for model in built) <= 1
