from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from tying_utils import models
from tying_utils.measures.gradients import path_statistics
from tying_utils.models.balance import REMEDIES, path_rule
from tying_utils.models.tie import SplitTie
from tying_utils.training.callback import FILE, BalanceCallback

V, STEPS, PARTS, BATCH = 80, 6, 2, 3
RULE: dict[str, Any] = {"name": "norm-match", "target": 0.3, "smoothing": 0.6}
tokens = torch.randint(0, V, (STEPS * PARTS * BATCH, 12), generator=torch.Generator().manual_seed(0))


class Rows(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return len(tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": tokens[index], "labels": tokens[index]}


def build(tied: bool = True) -> Any:
    return models.build("llama", tied=tied, vocab_size=V, d_model=16, n_layers=1, n_heads=2, context=16, seed=1)


def trainer(model: Any, folder: Path, *callbacks: BalanceCallback, **changes: Any) -> Trainer:
    values: dict[str, Any] = {
        **{"max_steps": STEPS, "per_device_train_batch_size": BATCH, "gradient_accumulation_steps": PARTS},
        **{"learning_rate": 1e-2, "lr_scheduler_type": "constant", "max_grad_norm": 0.2},
        **{"train_sampling_strategy": "sequential", "logging_steps": 1, "save_strategy": "no", "report_to": "none"},
        **{"disable_tqdm": True, "use_cpu": True, **changes},
    }
    arguments = TrainingArguments(str(folder), **values)
    return Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=list(callbacks))


def plain_loop(model: Any, remedy: Any) -> list[dict[str, float]]:
    """The same training without a Trainer."""
    tie = SplitTie(model, path_rule(remedy))
    optimizer = torch.optim.AdamW(tie.parameters(), lr=1e-2, weight_decay=0.0)
    rows = []
    for step, batch in enumerate(tokens.split(PARTS * BATCH), 1):
        optimizer.zero_grad()
        for part in batch.split(BATCH):
            (model(part, labels=part).loss / PARTS).backward()
        measured = path_statistics(*tie.path_gradients())
        tie.combine(step=step, steps=STEPS)
        measured["grad_norm"] = torch.nn.utils.clip_grad_norm_(tie.parameters(), 0.2)
        optimizer.step()
        rows.append({name: float(value) for name, value in measured.items()})
    tie.release()
    return rows


@pytest.mark.parametrize("remedy", [None, RULE, {"name": "rare-gate", "alpha": 0.5}], ids=["measured", "matched", "gated"])
def test_a_trainer_trains_as_a_plain_loop(tmp_path, remedy):
    model, reference = build(), build()
    rows = plain_loop(reference, remedy)
    own = trainer(model, tmp_path, BalanceCallback(remedy))
    own.train()
    for name, p in reference.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), p, rtol=1e-4, atol=1e-6)
    logged = [entry for entry in own.state.log_history if "loss" in entry]
    assert len(logged) == STEPS
    for entry, row in zip(logged, rows, strict=True):
        assert {name: entry[name] for name in row} == pytest.approx(row, rel=1e-4)
        assert {*BalanceCallback.METRICS, "grad_norm"} == set(row) and 0 < entry["output_share"] < 1
    # Clipping did something, and is the Trainer's own again.
    assert all(row["grad_norm"] > 0.2 for row in rows) and own.args.max_grad_norm == 0.2


def test_measuring_alone_leaves_training_as_it_was(tmp_path):
    """As a Trainer without the callback: the tied gradient, clipped once."""
    model, plain = build(), build()
    trainer(model, tmp_path, BalanceCallback()).train()
    trainer(plain, tmp_path).train()
    for name, p in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), p, rtol=1e-4, atol=1e-6)


def test_a_rule_is_followed(tmp_path):
    model, plain = build(), build()
    trainer(model, tmp_path, BalanceCallback("norm-match")).train()
    trainer(plain, tmp_path, BalanceCallback()).train()
    assert not torch.allclose(models.tables(model).table, models.tables(plain).table, atol=1e-3)


@pytest.mark.parametrize("rule", [RULE, {"name": "rare-gate", "alpha": 0.5, "memory": 4}], ids=["matched", "gated"])
def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path, rule):
    whole, first, second = build(), build(), build()
    saving = {"save_strategy": "steps", "save_steps": 2}
    trainer(whole, tmp_path / "whole", BalanceCallback(rule), **saving).train()

    class Stop(BalanceCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(first, tmp_path / "parts", Stop(rule), **saving).train()
    folder = tmp_path / "parts" / "checkpoint-4"
    assert (folder / FILE).exists()
    saved: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert models.tables(saved).tied
    trainer(second, tmp_path / "parts", BalanceCallback(rule), **saving).train(resume_from_checkpoint=True)
    for name, p in whole.named_parameters():
        torch.testing.assert_close(second.get_parameter(name), p, rtol=1e-5, atol=1e-7)
    (folder / FILE).unlink()
    with pytest.raises(ValueError, match=r"^resume_from_checkpoint: .*checkpoint-4.* is missing"):
        trainer(second, tmp_path / "parts", BalanceCallback(rule), **saving).train(resume_from_checkpoint=str(folder))


def test_the_model_and_the_arguments_are_ordinary_afterwards(tmp_path):
    model = build()
    own = trainer(model, tmp_path, BalanceCallback("pcgrad"))
    own.train()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    own.save_model(str(tmp_path / "saved"))
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert models.tables(loaded).tied and torch.equal(models.tables(loaded).table, models.tables(model).table)


def test_a_training_after_an_interrupted_one_begins_cleanly(tmp_path):
    model, callback = build(), BalanceCallback(RULE)
    own = trainer(model, tmp_path, callback)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    step, callback.on_pre_optimizer_step = callback.on_pre_optimizer_step, interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        own.train()
    callback.on_pre_optimizer_step = step  # type: ignore[method-assign]
    model.zero_grad()
    trainer(model, tmp_path, callback, max_grad_norm=0.7).train()
    assert own.args.max_grad_norm == 0.2
    reference = build()
    trainer(reference, tmp_path, BalanceCallback(RULE), max_grad_norm=0.7).train()
    torch.testing.assert_close(models.tables(model).table, models.tables(reference).table, rtol=1e-5, atol=1e-7)


def test_what_cannot_be_balanced_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"^model: a tied model is needed"):
        trainer(build(tied=False), tmp_path, BalanceCallback()).train()
    with pytest.raises(ValueError, match=r"^remedy: 'weigh' is unknown"):
        BalanceCallback("weigh")
    for name in set(REMEDIES) - {"scale", "schedule", "norm-match", "pcgrad", "shrink", "rare-gate"}:
        with pytest.raises(ValueError, match=f"^remedy: '{name}' does not weigh"):
            BalanceCallback(name)
    own = trainer(build(), tmp_path, BalanceCallback())
    own.args.fp16 = True
    with pytest.raises(ValueError, match=r"^args: fp16"):
        BalanceCallback().on_train_begin(own.args, own.state, own.control, model=own.model)
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with pytest.raises(ValueError, match=r"^args: one process and one device are needed, got 2"):
        BalanceCallback().on_train_begin(own.args, own.state, own.control, model=own.model)
