"""A tuned lens beside two other ways to train it to the same KL on held-out windows.

The others start from the identity, as published: a loop that trains one layer at a time with a forward pass of its own (Adam
at tuned-lens' rate for it, 1e-3), and tuned-lens' recipe (`tuned_lens.scripts`: all layers at each forward pass, SGD with
Nesterov momentum 0.9 and the rate 1 - 0.9, weight decay 1e-3, clipping at 1), both with a rate that falls to 0 linearly. The
recipe takes 2^18 tokens a step, which no small model is worth; here both take 1,024. Their steps are doubled, each time from
the start, until a lens comes within 1 % of ours or twice the steps would take longer than the cap, a multiple of our seconds;
only that last training counts, not the search for it.
"""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import turns
from benchmarks.turns import Contest
from tying_utils.measures import lens as measured
from tying_utils.training import TrainConfig, train

OURS, ONE_BY_ONE, RECIPE = "train_lens", "one layer at a time", "tuned-lens' recipe"
TOKENS = 1024  # a step of either other way

Train = Callable[[Any, Tensor, int], Any]


def rows(quick: bool) -> list[dict[str, Any]]:
    """The tidy rows: on a two-role model of 2 layers (`quick`), or of 4 layers on Python source."""
    if quick:
        config = TrainConfig(corpus="two-role", vocab_size=512, d_model=64, n_layers=2, steps=150)
        return race(config, steps=200, rounds=1, cap=10)
    return race(TrainConfig(), steps=400, rounds=3, cap=8)


def race(config: TrainConfig, *, steps: int, rounds: int, cap: float, first: int = 100) -> list[dict[str, Any]]:
    """Train the model, then lenses on it: ours with `steps`, the others from `first` steps up to `cap` times our seconds."""
    model = train(config.replace(threads=torch.get_num_threads()), progress=False).model(device=turns.device())
    corpus = config.load_corpus()
    tokens = torch.from_numpy(corpus.windows("train", math.ceil(60_000 / config.context), config.context))
    held_out = corpus.windows("validation", 64, config.context)

    def kl(lens: Any) -> float:
        return float(measured.kl_by_layer(model, lens, held_out)[:-1].mean())

    def ours() -> Any:
        return measured.train_lens(model, tokens, steps=steps, progress=False)

    ours()  # the first one loads the libraries
    began = time.perf_counter()
    made = ours()
    limit, goal = cap * (time.perf_counter() - began), kl(made)
    size = {"V": config.vocab_size, "d": config.d_model, "layers": config.n_layers, "tokens": steps * 128}
    out = []
    for name, way in ((ONE_BY_ONE, one_by_one), (RECIPE, recipe)):
        needed, reached = _equal(partial(way, model, tokens), kl, goal, first, limit)
        note, capped = f"{needed} steps; KL {reached / goal:.3f} of ours", reached > 1.01 * goal
        if capped:
            note += f": not within 1 % at the cap of {cap:g} times our seconds, so the ratio is too high"
        contest = Contest("lens", "tuned lens of equal KL", (OURS, name), partial, size, lambda values: None, note=note)
        taken = turns.in_turns({OURS: ours, name: partial(way, model, tokens, needed)}, 1 if capped else rounds)
        out += turns.against(contest, "seconds", taken)
    return out


def one_by_one(model: Any, tokens: Tensor, steps: int) -> Any:
    """A lens whose layers are trained one after another, `steps` each."""
    lens = identity(model)
    for layer in range(model.config.num_hidden_layers):
        optimizer = torch.optim.Adam(lens[layer].parameters(), lr=1e-3)
        _train(model, tokens, lens, [layer], optimizer, steps, math.inf)
    return lens


def recipe(model: Any, tokens: Tensor, steps: int) -> Any:
    """A lens whose layers are trained together by tuned-lens' own settings, `steps` in all."""
    lens = identity(model)
    trained = [p for p in lens.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1 - 0.9, momentum=0.9, nesterov=True, weight_decay=1e-3)
    _train(model, tokens, lens, list(range(model.config.num_hidden_layers)), optimizer, steps, 1.0)
    return lens


def identity(model: Any) -> Any:
    """tuned-lens' own lens as it starts: every state goes on as it is."""
    from tuned_lens.nn.lenses import TunedLens, TunedLensConfig

    settings = TunedLensConfig("", d_model=model.config.hidden_size, num_hidden_layers=model.config.num_hidden_layers)
    return TunedLens(measured.unembed(model), settings).to(model.device)


def _train(
    model: Any, tokens: Tensor, lens: Any, layers: list[int], optimizer: torch.optim.Optimizer, steps: int, clip: float
) -> None:
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    batches = _batches(tokens.to(model.device))
    for _ in range(steps):
        with torch.no_grad():
            out = model(next(batches), output_hidden_states=True)
            log_p = out.logits.float().log_softmax(-1)
        for layer in layers:
            log_q = lens(out.hidden_states[layer].float(), layer).log_softmax(-1)
            (log_p.exp() * (log_p - log_q)).sum(-1).mean().backward()
        torch.nn.utils.clip_grad_norm_(lens.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def _batches(tokens: Tensor) -> Iterator[Tensor]:
    generator, rows = torch.Generator().manual_seed(0), max(1, TOKENS // tokens.shape[1])
    while True:
        for picked in torch.randperm(len(tokens), generator=generator).split(rows):
            yield tokens[picked.to(tokens.device)]


def _equal(way: Callable[[int], Any], kl: Callable[[Any], float], goal: float, steps: int, cap: float) -> tuple[int, float]:
    """The steps from which `way` comes within 1 % of the `goal`, doubled up to the cap, and the KL it comes to."""
    while True:
        began = time.perf_counter()
        lens = way(steps)
        taken, reached = time.perf_counter() - began, kl(lens)
        if reached <= 1.01 * goal or 2 * taken > cap:
            return steps, reached
        steps *= 2
