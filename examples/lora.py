"""LoRA fine-tuning of a small tied model with PEFT, and what each use of the token table asks of it.

    pip install '.[examples]' && python examples/lora.py

An adapter freezes the whole model, the table too: no gradient reaches it, and SplitTie says so. With the table unfrozen, both
path gradients are there while LoRA trains the rest.
"""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

import tying_utils
from tying_utils import SplitTie, models
from tying_utils.measures.gradients import path_statistics

STEPS, BATCH, CONTEXT = 20, 8, 64

# A text, a token per byte: this package's own source.
text = b"\n".join(file.read_bytes() for file in sorted(Path(tying_utils.__file__).parent.glob("measures/*.py")))
tokens = torch.tensor(list(text))

# A tied model. Yours comes from AutoModelForCausalLM.from_pretrained.
base = models.build("llama", tied=True, vocab_size=256, d_model=64, n_layers=2, n_heads=4, context=CONTEXT)
model: Any = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]))

# Frozen: a clear sentence, and the model is as it was.
try:
    SplitTie(model)
except ValueError as refusal:
    print(f"As PEFT leaves it:\n  {refusal}\n")

# Unfrozen, the table trains in full beside the adapters.
model.get_input_embeddings().weight.requires_grad_(True)
tie = SplitTie(model)
optimizer = torch.optim.AdamW((p for p in tie.parameters() if p.requires_grad), lr=3e-3)

shares = []
for step in range(STEPS):
    starts = torch.randint(len(tokens) - CONTEXT, (BATCH, 1))
    windows = tokens[starts + torch.arange(CONTEXT)]
    loss = model(input_ids=windows, labels=windows).loss
    loss.backward()
    measured = path_statistics(*tie.path_gradients())  # of both uses of the table, before they become one gradient
    tie.combine()
    optimizer.step()
    optimizer.zero_grad()
    shares.append(float(measured["output_share"]))
    if step % 5 == 0:
        print(f"step {step:2}  loss {loss:.3f}  output share {shares[-1]:.2f}  cosine {measured['cosine']:+.2f}")

# Ordinary again: one table, saved as PEFT saves any adapter.
tie.release()
