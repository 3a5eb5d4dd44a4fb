"""A lens from the identity: nearer to the prediction the longer it trains, and the logit lens where it has hardly begun."""

import numpy as np
import pandas as pd
import pytest
import torch

from tying_utils import models
from tying_utils.measures import lens
from tying_utils.measures.lens_budget import kl_by_budget

SIZES = {"vocab_size": 60, "d_model": 16, "n_layers": 2, "n_heads": 2, "context": 16}


@pytest.fixture(scope="module")
def model():
    built = models.build("olmo", tied=True, seed=1, **SIZES)
    with torch.no_grad():  # an untrained model says nothing: a louder table and louder blocks give it something to say
        for parameter in built.parameters():
            parameter.mul_(12)
    return built


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(60, (24, 16), generator=torch.Generator().manual_seed(0))


def test_a_row_a_budget_and_layer_and_zero_at_the_output(model, tokens) -> None:
    table = kl_by_budget(model, tokens[:16], tokens[16:], budgets=(1, 5), progress=False)
    assert list(table.columns) == ["steps", "text", "layer", "kl_bits"] and set(table["text"]) == {"held-out"}
    assert list(zip(table["steps"], table["layer"], strict=True)) == [(s, i) for s in (1, 5) for i in range(3)]
    assert (table.query("layer == 2")["kl_bits"] == 0).all()


def test_it_starts_at_the_logit_lens_and_comes_nearer(model, tokens) -> None:
    table = kl_by_budget(model, tokens[:16], tokens[16:], budgets=(1, 150), progress=False, learning_rate=1e-3)
    logit = lens.kl_by_layer(model, lens.logit_lens(model), tokens[16:])
    first, last = (table[table["steps"] == steps]["kl_bits"].to_numpy() for steps in (1, 150))
    np.testing.assert_allclose(first[0], logit[0], rtol=0.05)
    assert last[0] < 0.8 * first[0]


def test_the_training_text_is_judged_beside_the_held_out_one(model, tokens) -> None:
    options = {"budgets": (2, 300), "progress": False, "learning_rate": 3e-3}
    alone = kl_by_budget(model, tokens[:4], tokens[16:], **options)
    both = kl_by_budget(model, tokens[:4], tokens[16:], training=tokens[:4], **options)
    assert list(both["text"]) == 2 * (3 * ["held-out"] + 3 * ["training"])
    pd.testing.assert_frame_equal(both[both["text"] == "held-out"].reset_index(drop=True), alone)
    swapped = kl_by_budget(model, tokens[:4], tokens[:4], **options)["kl_bits"]
    np.testing.assert_array_equal(both[both["text"] == "training"]["kl_bits"], swapped)
    last = both[both["steps"] == 300].set_index(["text", "layer"])["kl_bits"]
    assert last["training", 0] < 0.8 * last["held-out", 0], "64 tokens are learnt by heart"


def test_model_and_global_generator_are_left_alone(model, tokens) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state, mode = torch.random.get_rng_state(), model.training
    kl_by_budget(model, tokens[:16], tokens[16:], budgets=(3,), progress=False)
    assert torch.equal(torch.random.get_rng_state(), state) and model.training == mode
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())


def test_the_seed_decides_the_path(model, tokens) -> None:
    runs = [kl_by_budget(model, tokens[:16], tokens[16:], budgets=(10,), seed=s, progress=False) for s in (0, 0, 1)]
    assert runs[0].equals(runs[1]) and not runs[0].equals(runs[2])


@pytest.mark.parametrize(
    "bad",
    [
        *({"budgets": budgets} for budgets in ((0,), (5, -1), (), 5, None, "12")),
        {"tokens_per_step": 0},
        *({"learning_rate": rate} for rate in ("x", None, True, 0)),
        {"seed": 2**64},
    ],
)
def test_a_number_that_cannot_be_is_named(model, tokens, bad) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        kl_by_budget(model, tokens[:16], tokens[16:], progress=False, **bad)


def test_a_lens_that_diverges_is_told_and_has_no_curve(model, tokens) -> None:
    said = r"^lens: its KL at layer \d is nan: it has diverged; train it at a lower learning_rate"
    with pytest.raises(ValueError, match=said):
        kl_by_budget(model, tokens, tokens, budgets=(2,), learning_rate=1e30, progress=False)
