import copy
import functools
import pickletools
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments, default_data_collator

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


def trainer(model: Any, folder: Path, *callbacks: TrainerCallback, **changes: Any) -> Trainer:
    values: dict[str, Any] = {
        **{"max_steps": STEPS, "per_device_train_batch_size": BATCH, "gradient_accumulation_steps": PARTS},
        **{"learning_rate": 1e-2, "lr_scheduler_type": "constant", "max_grad_norm": 0.2},
        **{"train_sampling_strategy": "sequential", "logging_steps": 1, "save_strategy": "no", "report_to": "none"},
        **{"disable_tqdm": True, "use_cpu": True, **changes},
    }
    arguments = TrainingArguments(str(folder), **values)
    return Trainer(model=model, args=arguments, train_dataset=Rows(), eval_dataset=Rows(), callbacks=list(callbacks))


def plain_loop(model: Any, remedy: Any, clip: float = 0.2) -> list[dict[str, float]]:
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
        measured["grad_norm"] = torch.nn.utils.clip_grad_norm_(tie.parameters(), clip)
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
    assert all(row["grad_norm"] > 0.2 for row in rows), "clipping did something"


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
        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            super().on_step_begin(args, state, control, **given)
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
    elsewhere, third = shutil.copytree(folder, tmp_path / "kept"), build()  # by another name, on to another folder
    trainer(third, tmp_path / "others", BalanceCallback(rule), **saving).train(resume_from_checkpoint=str(elsewhere))
    for name, p in whole.named_parameters():
        torch.testing.assert_close(third.get_parameter(name), p, rtol=1e-5, atol=1e-7)
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


def spoil(own: Trainer, moment: str) -> None:
    """Have the training stop in its third step with a KeyboardInterrupt."""

    class Stopping(TrainerCallback):
        def __getattribute__(self, name: str) -> Any:
            if name == moment:
                return lambda args, state, control, **_: stop(state.global_step >= 2)
            return super().__getattribute__(name)

    def stop(now: bool) -> None:
        if now:
            raise KeyboardInterrupt

    model: Any = own.model
    match moment:
        case "forward":
            model.model.layers[0].register_forward_hook(lambda *_: stop(own.state.global_step >= 2))
        case "backward":
            model.model.layers[0].mlp.up_proj.weight.register_hook(lambda _: stop(own.state.global_step >= 2))
        case "data":
            own.data_collator = lambda rows: (stop(own.state.global_step >= 2), default_data_collator(rows))[1]
        case _:
            own.add_callback(Stopping())


@functools.cache
def untouched(rule: Any) -> dict[str, Tensor]:
    """Return what a Trainer makes of a new model: a plain one, or one with that rule."""
    model = build()
    with tempfile.TemporaryDirectory() as folder:
        trainer(model, Path(folder), *([BalanceCallback(rule)] if rule else [])).train()
    return dict(model.named_parameters())


MOMENTS = (
    "forward",
    "backward",
    "data",
    "on_step_begin",
    "on_substep_end",
    "on_optimizer_step",
    "on_log",
    "on_evaluate",
    "on_save",
)


@pytest.mark.parametrize("late", [False, True], ids=["given", "added"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupted_training_leaves_model_and_arguments_ordinary(tmp_path, moment, late):
    """A plain Trainer and one with another rule go on with them as with new ones."""
    model, every = build(), {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    start = copy.deepcopy(model.state_dict())
    callback = BalanceCallback({"name": "rare-gate", "alpha": 0.5})
    own = trainer(model, tmp_path, *(() if late else (callback,)), **every)
    if late:
        own.add_callback(callback)
    spoil(own, moment)
    with pytest.raises(KeyboardInterrupt):
        own.train()
    assert own.state.global_step >= 2
    head, weight = model.get_output_embeddings(), model.get_input_embeddings().weight
    assert own.args.max_grad_norm == 0.2 and head.weight is weight and callback.tie is None
    assert not head._forward_hooks and not weight._backward_hooks and not weight._post_accumulate_grad_hooks
    for layer in model.model.layers:
        layer._forward_hooks.clear()
        layer.mlp.up_proj.weight._backward_hooks = None
    own.args.eval_strategy = own.args.save_strategy = "no"  # type: ignore[assignment]
    for second in ((), (BalanceCallback(RULE),), (callback,)):
        model.load_state_dict(start)
        Trainer(model=model, args=own.args, train_dataset=Rows(), callbacks=list(second)).train()
        for name, p in untouched(second[0].rule if second else None).items():
            torch.testing.assert_close(model.get_parameter(name), p, rtol=1e-5, atol=1e-7)


def test_checkpoints_hold_the_users_own_arguments(tmp_path):
    own = trainer(build(), tmp_path, BalanceCallback(RULE), save_strategy="steps", save_steps=2)
    own.train()
    own.save_model(str(tmp_path / "end"))
    for folder in ("checkpoint-2", "checkpoint-6", "end"):
        with zipfile.ZipFile(tmp_path / folder / "training_args.bin") as file:
            (name,) = (name for name in file.namelist() if name.endswith("data.pkl"))
            held = [argument for _, argument, _ in pickletools.genops(file.read(name)) if isinstance(argument, str | float)]
        assert held[held.index("max_grad_norm") + 1] == 0.2


class Reporter(TrainerCallback):
    """As TensorBoard's and W&B's: it takes what it is handed when it is told."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.seen += [dict(logs)] if "loss" in logs else []


@pytest.mark.parametrize("order", ["before", "after", "added"])
@pytest.mark.parametrize("clip", [0.2, 0.0])
def test_reporters_see_what_the_log_holds(tmp_path, order, clip):
    """Wherever they stand among the callbacks; the norm of the gradient is one number everywhere, clipped or not."""
    model, reporter, callback = build(), Reporter(), BalanceCallback(RULE)
    given = {"before": [reporter, callback], "after": [callback, reporter], "added": [reporter]}[order]
    own = trainer(model, tmp_path, *given, max_grad_norm=clip)
    if order == "added":
        own.add_callback(callback)
    own.train()
    logged = [{key: entry[key] for key in entry if key != "step"} for entry in own.state.log_history if "loss" in entry]
    assert len(logged) == STEPS and reporter.seen == logged
    rows = plain_loop(build(), RULE, clip or float("inf"))
    for entry, row in zip(reporter.seen, rows, strict=True):
        assert {name: entry[name] for name in row} == pytest.approx(row, rel=1e-4)


def test_the_event_file_holds_the_output_share(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    own = trainer(build(), tmp_path, BalanceCallback(), report_to="tensorboard", logging_steps=2)
    own.train()
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    for name in (*BalanceCallback.METRICS, "grad_norm"):
        logged = {entry["step"]: entry[name] for entry in own.state.log_history if name in entry}
        assert {event.step: event.value for event in events.Scalars(f"train/{name}")} == pytest.approx(logged)
        assert len(logged) == STEPS / 2


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    every = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}  # the first, here
    own = trainer(build(), tmp_path, BalanceCallback(), **every, **best)
    own.train()
    loaded: Any = AutoModelForCausalLM.from_pretrained(str(own.state.best_model_checkpoint))
    model: Any = own.model
    assert torch.equal(models.tables(model).table, models.tables(loaded).table)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


class Twice(Trainer):
    """Two backward passes per micro-batch."""

    def training_step(self, *given: Any, **options: Any) -> Tensor:
        super().training_step(*given, **options)
        return super().training_step(*given, **options)


class OutputAlone(Trainer):
    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:  # type: ignore[override]
        return model(inputs_embeds=torch.ones(1, 12, 16), labels=inputs["labels"][:1]).loss


@pytest.mark.parametrize(("kind", "words"), [(Twice, "one backward pass per micro-batch"), (OutputAlone, "reached one use")])
def test_steps_that_cannot_be_combined_are_named(tmp_path, kind, words):
    model: Any = build()
    plain = trainer(model, tmp_path)
    own = kind(model=model, args=plain.args, train_dataset=Rows(), callbacks=[BalanceCallback()])
    with pytest.raises(ValueError, match=f"^training_step: .*{words}"):
        own.train()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_rule_does_not_go_on_from_what_another_remembered(tmp_path):
    trainer(build(), tmp_path, BalanceCallback(RULE), save_strategy="steps", save_steps=2).train()
    model = build()
    own = trainer(model, tmp_path, BalanceCallback({"name": "rare-gate", "alpha": 0.5}))
    with pytest.raises(ValueError, match=r"^resume_from_checkpoint: .*checkpoint-2.* is not of the rule 'rare-gate'"):
        own.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_frozen_table_is_refused_and_left_alone(tmp_path):
    model = build()
    model.get_input_embeddings().weight.requires_grad_(False)
    own = trainer(model, tmp_path, BalanceCallback())
    with pytest.raises(ValueError, match="^model: its table is frozen"):
        own.train()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight and own.args.max_grad_norm == 0.2
    assert not model.get_input_embeddings().weight.requires_grad


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


class Elsewhere(Trainer):
    """A folder of its own for the checkpoints, as a search of hyperparameters has one for each trial."""

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(str(self.args.output_dir)) / "run-3")


def test_what_the_rule_remembers_goes_to_the_checkpoint_that_was_written(tmp_path):
    arguments = trainer(build(), tmp_path, save_strategy="steps", save_steps=2).args
    (tmp_path / "checkpoint-2").mkdir()
    Elsewhere(model=build(), args=arguments, train_dataset=Rows(), callbacks=[BalanceCallback(RULE)]).train()
    assert not list((tmp_path / "checkpoint-2").iterdir())
    assert {file.parent.name for file in tmp_path.glob(f"run-3/*/{FILE}")} == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}


@pytest.mark.parametrize("content", [b"", b"no tensors", None], ids=["empty", "garbage", "cut"])
def test_a_damaged_memory_is_named(tmp_path, content):
    trainer(build(), tmp_path, BalanceCallback(RULE), save_strategy="steps", save_steps=4).train()
    file = tmp_path / "checkpoint-4" / FILE
    file.write_bytes(file.read_bytes()[:-3] if content is None else content)
    model = build()
    with pytest.raises(ValueError, match=r"^resume_from_checkpoint: .*checkpoint-4.* is damaged"):
        trainer(model, tmp_path, BalanceCallback(RULE)).train(resume_from_checkpoint=str(file.parent))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_rule_does_not_go_on_with_other_parameters(tmp_path):
    trainer(build(), tmp_path, BalanceCallback(RULE), save_strategy="steps", save_steps=4).train()
    own = trainer(build(), tmp_path, BalanceCallback(RULE | {"target": 0.9}))
    with pytest.raises(ValueError, match=r'^resume_from_checkpoint: .*"target": 0.3.*"target": 0.9'):
        own.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_two_callbacks_are_refused(tmp_path):
    model = build()
    with pytest.raises(ValueError, match=r"^callbacks: one BalanceCallback is needed"):
        trainer(model, tmp_path, BalanceCallback(), BalanceCallback(RULE)).train()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


class Probing(TrainerCallback):
    """A backward pass of its own between the steps, whose gradients are dropped."""

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        given["model"](tokens[:2], labels=tokens[:2]).loss.backward()
        given["model"].zero_grad()


@pytest.mark.parametrize("rule", [RULE, {"name": "rare-gate", "alpha": 0.5}])
def test_a_backward_pass_between_the_steps_is_none_of_theirs(tmp_path, rule):
    plain, probed = build(), build()
    trainer(plain, tmp_path, BalanceCallback(rule)).train()
    trainer(probed, tmp_path, BalanceCallback(rule), Probing()).train()
    assert all(torch.equal(*pair) for pair in zip(plain.parameters(), probed.parameters(), strict=True))
