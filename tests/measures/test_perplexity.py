import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import ARCHITECTURES, CONTEXT, VOCAB, shaken, tokens

from tying_utils.measures.perplexity import Perplexity, bits_per_byte, by_token, paired, perplexity
from tying_utils.measures.statistics import Range, mean_interval

IDS = tokens(12, seed=4)
both_arms = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def measured(model: Any, ids: Any = IDS, **changes: Any) -> Perplexity:
    return perplexity(model, ids, **{"progress": False, **changes})


def uniform() -> Any:
    model = shaken(tied=False)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    return model


def test_a_uniform_model_chooses_among_all_tokens():
    result = measured(uniform())
    assert result.loss == pytest.approx(math.log(VOCAB), rel=1e-7)
    assert result.perplexity == pytest.approx(VOCAB, rel=1e-6)
    assert result.standard_error == 0
    assert result.interval == pytest.approx((result.loss, result.loss))
    assert result.perplexity_interval == pytest.approx((VOCAB, VOCAB), rel=1e-6)
    assert result.tokens == 12 * (CONTEXT - 1)


def test_a_model_that_says_one_token_by_hand():
    """Head and bias give token 7 the odds e^3 : 1 against each other one, whatever came before."""
    model = uniform()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCAB).index_fill(0, torch.tensor([7]), 3.0))
    ids = torch.tensor([[1, 7, 7, 2], [7, 3, 4, 5]])  # 7 is to be predicted twice, and never
    whole = math.log(VOCAB - 1 + math.exp(3))
    result = measured(model, ids)
    assert result.losses == pytest.approx([whole - 2, whole])
    assert result.loss == pytest.approx(whole - 1)
    assert result.standard_error == pytest.approx(1)  # values 2 apart: std sqrt(2), over sqrt(2)
    assert result.interval == pytest.approx((whole - 1 - 12.7062, whole - 1 + 12.7062), abs=1e-3)  # Student t, 1 degree


@both_arms
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_agrees_with_the_models_own_loss(arch, tied):
    model, result = shaken(arch, tied=tied), measured(shaken(arch, tied=tied))
    with torch.no_grad():
        expected = [float(model(row[None], labels=row[None]).loss) for row in IDS]
        assert result.loss == pytest.approx(float(model(IDS, labels=IDS).loss), rel=1e-6)
    assert result.losses == pytest.approx(expected, rel=1e-5)
    assert result.perplexity == math.exp(result.loss)
    assert result.nats == pytest.approx(sum(expected) * (CONTEXT - 1))
    over = mean_interval(expected)
    assert (result.loss, *result.interval) == pytest.approx((over.mean, over.low, over.high), rel=1e-6)
    assert result.standard_error == pytest.approx(np.std(expected, ddof=1) / math.sqrt(12), rel=1e-4)


def test_the_order_of_windows_and_batches_do_not_matter():
    model, order = shaken(), torch.randperm(12, generator=torch.Generator().manual_seed(0))
    result, shuffled = measured(model), measured(model, IDS[order])
    assert shuffled.losses == pytest.approx(result.losses[order], rel=1e-6)
    assert shuffled.loss == pytest.approx(result.loss) and shuffled.standard_error == pytest.approx(result.standard_error)
    for size in (1, 5, 100):
        assert measured(model, batch_size=size).losses == pytest.approx(result.losses, rel=1e-6)


def test_a_window_of_the_context_and_a_next_token():
    model, longer = shaken(), tokens(3, CONTEXT + 1, seed=5)
    with torch.no_grad():
        logits = model(longer[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), longer[:, 1:].flatten())
    result = measured(model, longer)
    assert result.loss == pytest.approx(float(expected)) and result.tokens == 3 * CONTEXT


def test_kinds_of_arrays():
    model, result = shaken(), measured(shaken())
    for ids in (IDS.tolist(), IDS.int(), IDS.numpy().astype(np.uint16), np.asfortranarray(IDS.numpy())):
        assert measured(model, ids) == result


def test_training_loss_on_the_same_windows(home, tiny):
    """What a run records as its validation loss."""
    from tying_utils.training import train

    config = tiny()
    run = train(config, progress=False)
    windows = config.load_corpus().windows("validation", config.validation_sequences, config.context + 1)
    assert measured(run.model(), windows).loss == pytest.approx(run.metrics["validation_loss"].iloc[-1], rel=1e-6)


def test_model_is_left_alone():
    model = shaken("gpt2").train()
    model.base_model.eval()
    model.transformer.drop.p = 0.5  # would show if dropout were on
    model.transformer.drop.train()
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    first, second = measured(model), measured(model)
    assert np.array_equal(first.losses, second.losses)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    model(IDS, labels=IDS).loss.backward()  # no inference tensor was left behind


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_full(dtype):
    model = shaken().to(dtype)
    with torch.no_grad():
        logits = model(IDS[:, :-1]).logits.double()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())
    assert measured(model).loss == pytest.approx(float(expected), rel=1e-6)
    assert model.dtype == dtype


def test_one_window_has_no_interval():
    result = measured(shaken(), IDS[:1])
    assert math.isfinite(result.loss) and result.tokens == CONTEXT - 1
    assert all(map(math.isnan, (result.standard_error, *result.interval, *result.perplexity_interval)))


def test_paired_difference():
    one, other = measured(shaken(seed=0)), measured(shaken(seed=1))
    difference = paired(one, other)
    assert difference == mean_interval(other.losses - one.losses)
    assert difference.mean == pytest.approx(other.loss - one.loss)
    assert math.exp(difference.mean) == pytest.approx(other.perplexity / one.perplexity)
    back = paired(other, one)
    assert (back.low, back.high) == pytest.approx((-difference.high, -difference.low))
    same = paired(one, one)
    assert (same.mean, same.low, same.high, same.n) == (0, 0, 0, 12)


def test_pairing_takes_out_what_is_common():
    """A model that is worse by 0.1 nats on every window: the windows' own spread is not in the interval."""
    losses = np.random.default_rng(0).normal(3, 0.5, size=40)
    made = []
    for x in (losses, losses + 0.1):
        over = mean_interval(x)
        made.append(Perplexity(over.mean, float(x.std(ddof=1) / 40**0.5), Range(over.low, over.high), 400, x, "of one text"))
    difference = paired(*made)
    assert (difference.low, difference.high) == pytest.approx((0.1, 0.1))
    assert made[0].interval.high > made[1].interval.low


def test_other_windows_are_not_paired():
    model = shaken()
    for ids in (IDS[:6], IDS.flip(0), IDS.reshape(24, CONTEXT // 2), tokens(12, seed=9)):
        with pytest.raises(ValueError, match=r"^first and second: perplexities on the same windows are needed, got 12 windows"):
            paired(measured(model), measured(model, ids))


def test_bits_per_byte():
    assert bits_per_byte(8 * math.log(2), 4) == pytest.approx(2)
    # A uniform model over V tokens of which each stands for 2 bytes.
    result = measured(uniform())
    assert bits_per_byte(result.nats, 2 * result.tokens) == pytest.approx(math.log2(VOCAB) / 2)


@pytest.mark.parametrize(
    ("nats", "size", "named"), [(-1.0, 3, "nats"), (math.nan, 3, "nats"), ("1", 3, "nats"), (1.0, 0, "size")]
)
def test_bad_bits_are_named(nats, size, named):
    with pytest.raises(ValueError, match=rf"^{named}: "):
        bits_per_byte(nats, size)


@pytest.mark.parametrize(
    ("ids", "what"),
    [
        (IDS[0], r"windows \(n, length\) of at least 2 tokens are needed, got shape \(16,\)"),
        (IDS[:, :1], r"at least 2 tokens are needed, got shape \(12, 1\)"),
        (IDS[:0], r"got shape \(0, 16\)"),
        (tokens(2, CONTEXT + 2), rf"windows of at most {CONTEXT + 1} tokens are needed, the context and a next one, got 18"),
        (IDS.float(), "integers are needed"),
        (IDS + VOCAB, f"ids from 0 to {VOCAB - 1} are needed"),
        (torch.tensor([[0, 1, VOCAB]]), f"ids from 0 to {VOCAB - 1} are needed"),  # the last token of a window counts too
    ],
)
def test_bad_tokens_are_named(ids, what):
    with pytest.raises(ValueError, match=rf"^tokens: .*{what}"):
        measured(shaken(), ids)


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_bad_batch_size_is_named(size):
    with pytest.raises(ValueError, match=r"^batch_size: an integer of at least 1 is needed"):
        measured(shaken(), batch_size=size)


def test_a_loss_that_is_not_finite_is_named():
    model = shaken(tied=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"^model: a finite loss is needed, got NaN or infinity in 12 of 12 windows"):
        measured(model)


@both_arms
def test_losses_by_token_are_those_of_the_windows(tied):
    model = shaken(tied=tied)
    losses = by_token(model, IDS, batch_size=5, progress=False)
    assert losses.shape == (12, CONTEXT - 1) and losses.dtype == np.float32
    assert losses.mean(1, dtype=np.float64) == pytest.approx(measured(model).losses, rel=1e-6)
