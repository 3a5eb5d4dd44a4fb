"""A loop of your own with accelerate and torch.compile: the two path gradients of a tied table, weighed by hand.

    python examples/plain_loop.py

In this order: the model goes where it will train, its tie is split, accelerate wraps it (for several processes, say), the
optimizer gets the split tie's parameters, and torch.compile comes last. Where the machine has no C++ compiler the loop says so
and goes on uncompiled.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

import tying_utils
from tying_utils import SplitTie, models
from tying_utils.measures.gradients import path_statistics

STEPS, BATCH, CONTEXT = 10, 8, 64

# A text, a token per byte: this package's own source.
text = b"\n".join(file.read_bytes() for file in sorted(Path(tying_utils.__file__).parent.glob("measures/*.py")))
tokens = torch.tensor(list(text))

accelerator = Accelerator(gradient_accumulation_steps=2)
network: Any = models.build("llama", tied=True, vocab_size=256, d_model=64, n_layers=1, n_heads=4, context=CONTEXT)
tie = SplitTie(network.to(accelerator.device))
network = accelerator.prepare_model(network, device_placement=False)  # which would copy what is split
optimizer = accelerator.prepare(torch.optim.AdamW(tie.parameters(), lr=3e-3))


def windows() -> torch.Tensor:
    starts = torch.randint(len(tokens) - CONTEXT, (BATCH, 1))
    return tokens[starts + torch.arange(CONTEXT)].to(accelerator.device)


model = torch.compile(network)
try:
    model(input_ids=windows(), labels=windows())
except RuntimeError as error:  # torch compiles at the first call
    print(f"No compiler here, so uncompiled: {str(error).strip().splitlines()[0]}\n")
    model = network
compiled = model is not network

shares = []
for _ in range(2 * STEPS):
    ids = windows()
    with accelerator.accumulate(network):
        loss = model(input_ids=ids, labels=ids).loss
        accelerator.backward(loss)
        if not loss.isfinite():  # skipped: whatever resets gradients resets those of both paths
            network.zero_grad()
            continue
        if accelerator.sync_gradients:
            measured = path_statistics(*tie.path_gradients())
            tie.combine(input_scale=2.0, output_scale=1.0)  # or SplitTie(model, rule), and combine(step=, steps=)
            accelerator.clip_grad_norm_(tie.parameters(), 1.0)
            shares.append(float(measured["output_share"]))
            print(f"step {len(shares):2}  loss {loss:.3f}  output share {shares[-1]:.2f}")
        optimizer.step()
        optimizer.zero_grad()

tie.release()  # an ordinary tied model again; it could have been saved before, too
