import itertools
import math
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
from tying_utils.training import METRICS, run_store, train, train_all
from tying_utils.training import trainer as training
from tying_utils.training.config import TrainConfig
from tying_utils.training.run_store import Run

# One of each kind: both paths scaled, the batch in parts, no tie.
ARMS: dict[str, dict[str, Any]] = {
    "tied": {},
    "input x5": {"input_scale": 5},
    "both scaled, in parts": {"input_scale": 2, "output_scale": 0.5, "micro_batches": 2},
    "untied": {"tied": False},
}
arms = pytest.mark.parametrize("arm", ARMS)


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
    model: Any = models.build(config.arch, tied=config.tied, seed=config.init_seed, **config.sizes)
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
    options: dict[str, Any] = {"betas": (config.beta1, config.beta2), "eps": config.adam_eps, "foreach": False}
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay, **options)
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
            both = scaled_source + scaled_target
            source_square.lerp_((both if config.tied else clip * source).square(), 1 - config.beta2)
            target_square.lerp_((both if config.tied else clip * target).square(), 1 - config.beta2)
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


@arms
def test_a_row_a_step_and_the_columns_of_metrics(uninterrupted, arm):
    metrics = uninterrupted(**ARMS[arm]).metrics
    assert list(metrics) == list(METRICS)
    assert metrics["step"].tolist() == list(range(1, 13))
    assert metrics["validation_loss"].notna().tolist() == metrics["step"].isin([5, 10, 12]).tolist()
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
    pd.testing.assert_frame_equal(measured[:1], expected[list(measured)][:1], rtol=1e-5, atol=1e-6, check_dtype=False)
    for name in ("input", "output"):
        own, start, other = (getattr(tables, name) for tables in (run.tables(), run.tables(0), models.tables(model)))
        assert (own - start).abs().max() > 5e-3
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)


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
    np.testing.assert_allclose(metrics["clip"], clip / norm if clip < 1 else 1.0, rtol=1e-4)


def test_parts_of_a_batch_add_up(uninterrupted):
    names = ["loss", "input_norm", "output_norm", "cosine", "output_share", "gradient_norm", "clip"]
    whole, parts = (uninterrupted(micro_batches=count).metrics[names] for count in (1, 2))
    pd.testing.assert_frame_equal(whole, parts, rtol=2e-3, atol=1e-5)
    pd.testing.assert_frame_equal(whole[:1], parts[:1], rtol=1e-5, atol=1e-7)


def test_scales_leave_the_paths_of_the_first_step_alone(uninterrupted):
    plain, scaled = uninterrupted(), uninterrupted(input_scale=5, output_scale=0.5)
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


def test_seeds_decide_start_and_order_apart(uninterrupted):
    plain, start, order = uninterrupted(), uninterrupted(init_seed=1), uninterrupted(data_seed=1)
    assert not torch.equal(start.tables(0).table, plain.tables(0).table)
    assert torch.equal(order.tables(0).table, plain.tables(0).table)
    assert not torch.equal(order.tables(1).table, plain.tables(1).table)


def test_a_finished_run_is_loaded(home, tiny, monkeypatch):
    first = train(tiny(), progress=False)
    monkeypatch.setattr(training, "Trainer", lambda *_: pytest.fail("it trained again"))
    again = train(tiny(), progress=False)
    assert again.record == first.record
    pd.testing.assert_frame_equal(again.metrics, first.metrics)
    assert [run.folder for run in train_all([tiny(), tiny()], progress=False)] == [first.folder] * 2


def test_time_of_all_sittings_is_counted(home, tiny, monkeypatch):
    step = training.Trainer.step

    def slow(trainer: Any, number: int) -> torch.Tensor:
        if number == 6:
            raise KeyboardInterrupt
        time.sleep(0.06)
        return step(trainer, number)

    monkeypatch.setattr(training.Trainer, "step", slow)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), progress=False)
    monkeypatch.setattr(training.Trainer, "step", step)
    assert train(tiny(), progress=False).record["made"]["seconds"] >= 0.3


@pytest.mark.parametrize(
    ("part", "train_lines", "valid_lines", "context"), [("validation", 400, 1, 400), ("training", 600, 400, 40_000)]
)
def test_a_text_shorter_than_a_context_is_named(home, tiny, tmp_path, grammar, part, train_lines, valid_lines, context):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.txt").write_text(grammar(train_lines), encoding="utf-8")
    (folder / "valid.txt").write_text(grammar(valid_lines), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^corpus: the {part} part .* shorter than one context of {context}"):
        train(tiny(path=str(folder), context=context), progress=False)
    with pytest.raises(ValueError, match=rf"^corpus: the {part} part"):
        train_all([tiny(path=str(folder), context=context)], progress=False)


def test_a_text_too_small_for_the_vocabulary_is_named(home, tiny):
    with pytest.raises(ValueError, match=r"^vocab_size:"):
        train(tiny(vocab_size=20_000), progress=False)


def test_threads_are_set_for_the_run_and_put_back(home, tiny, monkeypatch):
    seen = []
    validate = training.Trainer.validate

    def watch(trainer: Any) -> float:
        seen.append(torch.get_num_threads())
        return validate(trainer)

    monkeypatch.setattr(training.Trainer, "validate", watch)
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


def test_bfloat16_keeps_float32_weights_and_nearly_the_loss(uninterrupted):
    reference, run = uninterrupted(), uninterrupted(dtype="bfloat16")
    assert run.record["made"]["dtype"] == "bfloat16"
    assert run.tables().table.dtype == torch.float32
    assert not torch.equal(run.tables().table, reference.tables().table)
    pd.testing.assert_series_equal(run.metrics["loss"], reference.metrics["loss"], rtol=0.02)


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


@pytest.mark.parametrize("config", [None, {}, "quick", TrainConfig])
def test_what_is_no_configuration_is_named(config):
    with pytest.raises(ValueError, match="^config: a TrainConfig is needed, got"):
        training.train(config, progress=False)
