"""Hugging Face's Trainer with BalanceCallback: TensorBoard, gradient accumulation, an interruption, and on from its checkpoint.

    pip install '.[examples]' && python examples/hf_trainer.py [folder]
    tensorboard --logdir FOLDER

The callback splits the tied table's gradient into that of its two uses, holds their norms at equal shares, and logs what it
measured beside the loss. Interrupt it where you like: the model and the arguments are ordinary afterwards.
"""

import sys
import tempfile
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Trainer, TrainerCallback, TrainingArguments

import tying_utils
from tying_utils import BalanceCallback, models

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())

# A text, a token per byte: this package's own source, in windows of 64 tokens.
text = b"\n".join(file.read_bytes() for file in sorted(Path(tying_utils.__file__).parent.glob("measures/*.py")))
windows = torch.tensor(list(text[: len(text) // 64 * 64])).view(-1, 64)
data = [{"input_ids": window, "labels": window} for window in windows]

arguments = TrainingArguments(
    output_dir=str(folder),
    max_steps=12,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,  # a step's path gradients are those of all its micro-batches
    learning_rate=3e-3,
    max_grad_norm=1.0,  # clips what the optimizer is given: both gradients, weighed and added up
    logging_steps=1,
    save_steps=4,
    report_to="tensorboard",
    disable_tqdm=True,
    use_cpu=True,
)


class CtrlC(TrainerCallback):
    """You, after six steps."""

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 6:
            raise KeyboardInterrupt


def trainer(*more: TrainerCallback) -> Trainer:
    model = models.build("llama", tied=True, vocab_size=256, d_model=64, n_layers=2, n_heads=4, context=64)
    return Trainer(model=model, args=arguments, train_dataset=data, callbacks=[BalanceCallback("norm-match"), *more])


try:
    trainer(CtrlC()).train()
except KeyboardInterrupt:
    kept = sorted(path.name for path in folder.glob("checkpoint-*"))
    print(f"\nInterrupted. Kept: {', '.join(kept)}; max_grad_norm is {arguments.max_grad_norm} as before.\n")

# What the rule remembers lies in the checkpoint, too: the second half is that of a run that nobody stopped.
trainer().train(resume_from_checkpoint=True)

# TensorBoard has it all: an event file for each of the two calls.
share = {}
for file in sorted(folder.rglob("events.out.tfevents.*"), key=lambda file: file.stat().st_mtime):
    events = EventAccumulator(str(file))
    events.Reload()
    share |= {event.step: event.value for event in events.Scalars("train/output_share")}
print("\nOutput share before balancing, by step:", *(f"{step}: {share[step]:.2f}" for step in sorted(share)))
