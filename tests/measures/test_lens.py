import copy
import re
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import ARCHITECTURES, CONTEXT, LAYERS, VOCAB, WIDTH, inert, shaken, state_before_norm, tokens

from tying_utils.measures.lens import kl_by_layer, logit_lens, states, train_lens, unembed

TRAIN, HELD_OUT = tokens(60, seed=1), tokens(20, seed=2)
both_arms = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def quick(model: Any, **changes: Any) -> Any:
    return train_lens(model, TRAIN, **{"steps": 100, "tokens_per_step": 96, "progress": False, **changes})


@pytest.fixture(scope="module")
def trained() -> tuple[Any, Any]:
    model = shaken(tied=False)
    return model, quick(model)


@both_arms
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_unembed_gives_the_models_logits(arch, tied):
    model = shaken(arch, tied=tied)
    with torch.no_grad():
        expected = model(HELD_OUT).logits
    torch.testing.assert_close(unembed(model)(state_before_norm(model, HELD_OUT)), expected)


def test_unembed_is_a_frozen_copy():
    model = shaken()
    before = unembed(model)
    kept = before.unembedding.weight.clone()
    assert not any(parameter.requires_grad for parameter in before.parameters())
    with torch.no_grad():
        model.get_output_embeddings().weight.add_(1)
    assert torch.equal(before.unembedding.weight, kept)


def test_unembed_refuses_a_model_without_final_norm():
    model = shaken()
    model.model.norm = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"^model: no final norm found in OlmoForCausalLM: its head reads norm"):
        unembed(model)


def test_one_bit_by_hand():
    """Where the model's distribution is uniform over half of the vocabulary and the lens' over all of it, KL is 1 bit."""
    model = inert(tied=False)
    with torch.no_grad():
        direction = torch.tensor([1.0, -1.0]).repeat(WIDTH // 2)  # its own image under the norm
        model.get_input_embeddings().weight.copy_(direction.expand(VOCAB, WIDTH))
        model.get_output_embeddings().weight.zero_()
        model.get_output_embeddings().weight[: VOCAB // 2] = 60 * direction / WIDTH
    lens = quick(model, steps=1)
    with torch.no_grad():
        for translator in lens:
            translator.weight.copy_(-torch.eye(WIDTH))  # so that the state, which it is added to, becomes 0
            translator.bias.zero_()
    np.testing.assert_allclose(kl_by_layer(model, lens, HELD_OUT), [1.0] * LAYERS + [0.0], atol=1e-6)
    np.testing.assert_allclose(kl_by_layer(model, lens, HELD_OUT, indexing="published"), [1.0] * (LAYERS + 1), atol=1e-4)


def test_blocks_that_do_nothing_leave_the_logit_lens_nothing_to_lack():
    model = inert()
    curve = kl_by_layer(model, logit_lens(model), HELD_OUT)
    np.testing.assert_allclose(curve, 0, atol=1e-6)
    assert kl_by_layer(shaken(), logit_lens(shaken()), HELD_OUT)[0] > 0.1


def entropy_gap(logits: torch.Tensor, read: torch.Tensor) -> float:
    """KL in bits by its definition, in float64."""
    p, q = logits.double().softmax(-1), read.double().softmax(-1)
    return float((p * (p.log2() - q.log2())).sum(-1).mean())


@pytest.mark.parametrize("arch", ["olmo", "gpt_neox", "gpt2"])
def test_both_indexings_against_their_definitions(arch):
    model = shaken(arch, tied=False)
    lens = quick(model, steps=3)
    matched, published = (kl_by_layer(model, lens, HELD_OUT, indexing=name) for name in ("matched", "published"))
    with torch.no_grad():
        out = model(HELD_OUT, output_hidden_states=True)
        states = out.hidden_states
        expected_matched = [entropy_gap(out.logits, lens(states[i], i)) for i in range(LAYERS)] + [0.0]
        readings = [lens(states[0], 0)] + [lens(states[k], k - 1) for k in range(1, LAYERS + 1)]
        expected_published = [entropy_gap(out.logits, reading) for reading in readings]
    assert matched.dtype == published.dtype == np.float64
    np.testing.assert_allclose(matched, expected_matched, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(published, expected_published, atol=1e-5, rtol=1e-4)
    assert matched[-1] == 0 and published[0] == matched[0]
    assert (np.abs(published - matched)[1:] > 1e-3).all()


def test_mean_does_not_depend_on_batches(monkeypatch):
    model = shaken()
    lens = logit_lens(model)
    whole = kl_by_layer(model, lens, HELD_OUT)
    monkeypatch.setattr("tying_utils.measures.lens._TOKENS_AT_ONCE", 3 * CONTEXT)
    monkeypatch.setattr("tying_utils.measures.lens._LOGITS_AT_ONCE", 7 * VOCAB)
    np.testing.assert_allclose(kl_by_layer(model, lens, HELD_OUT), whole, rtol=1e-5)


def test_trained_lens_beats_the_logit_lens_and_its_own_start(trained):
    model, lens = trained
    curve = kl_by_layer(model, lens, HELD_OUT)
    start = kl_by_layer(model, quick(model, steps=1, learning_rate=1e-9), HELD_OUT)
    assert (curve[:-1] < start[:-1]).all()
    assert (start[:-1] < kl_by_layer(model, logit_lens(model), HELD_OUT)[:-1]).all()


@both_arms
@pytest.mark.parametrize(
    "sizes",
    [
        {"vocab_size": 128, "d_model": 32, "n_layers": 2, "context": 16, "steps": 120, "learning_rate": 1e-2},
        pytest.param(
            {"vocab_size": 2048, "d_model": 128, "n_layers": 4, "context": 64, "steps": 200, "learning_rate": 3e-3},
            marks=pytest.mark.slow,  # the size that the docstring speaks of
        ),
    ],
    ids=["small", "as promised"],
)
def test_the_defaults_end_within_a_fiftieth_of_a_bit_of_a_converged_lens(tied, sizes, trained_once, tiny):
    """Four times as many steps over the same 60,000 tokens change no layer by 0.02 bits on other text; the start is further."""
    language = {"corpus": "two-role", "path": None, "language": {"length": 70_000, "classes": 8}}
    run = trained_once(tiny(**language, **sizes, batch_size=32, validation_every=500, tied=tied))
    corpus, context, model = run.config.load_corpus(), run.config.context, run.model()
    train, held_out = corpus.windows("train", 60_000 // context, context), corpus.windows("validation", 200, context)
    start, usual, longer = (
        kl_by_layer(model, train_lens(model, train, progress=False, **options), held_out)
        for options in ({"steps": 1, "learning_rate": 1e-9}, {}, {"steps": 1600})
    )
    assert np.abs(usual - longer).max() < 0.02 < np.abs(start - longer).max()


def test_start_is_a_regression_on_the_last_state():
    """Least squares with an intercept keeps the mean: translated states and last states have the same one."""
    model = shaken("gpt_neox")
    lens = quick(model, steps=1, learning_rate=1e-9)
    with torch.no_grad():
        states = model(TRAIN, output_hidden_states=True).hidden_states
        expected = state_before_norm(model, TRAIN).flatten(0, 1).mean(0)
        for i in range(LAYERS):
            translated = lens.transform_hidden(states[i], i).flatten(0, 1)
            torch.testing.assert_close(translated.mean(0), expected, atol=1e-4, rtol=1e-4)
            assert translated.var() > 0.2 * state_before_norm(model, TRAIN).var()  # and it is no constant


def test_affine_blocks_are_seen_through():
    """GPT-NeoX's blocks with zero output weights add a constant: an affine lens can be exact where a logit lens is not."""
    model = shaken("gpt_neox")
    with torch.no_grad():
        for layer in model.gpt_neox.layers:
            layer.attention.dense.weight.zero_()
            layer.mlp.dense_4h_to_h.weight.zero_()
            layer.mlp.dense_4h_to_h.bias.mul_(5)
    untranslated = kl_by_layer(model, logit_lens(model), HELD_OUT)[:-1]
    curve = kl_by_layer(model, quick(model, steps=400), HELD_OUT)[:-1]
    assert (untranslated > 0.1).all() and (curve < 0.01 * untranslated).all()


def test_a_lens_without_cached_states_sees_the_same():
    model = shaken()
    every = {"steps": 1, "tokens_per_step": TRAIN.numel()}  # one step over all tokens: their order cannot matter
    cached, streamed = quick(model, **every), quick(model, **every, cache_bytes=0)
    for one, other in zip(cached, streamed, strict=True):
        torch.testing.assert_close(one.weight, other.weight, atol=1e-4, rtol=1e-3)
    curve = kl_by_layer(model, quick(model, cache_bytes=0), HELD_OUT)
    assert (curve[:-1] < kl_by_layer(model, streamed, HELD_OUT)[:-1]).all()


def test_save_and_load(trained, tmp_path):
    from tuned_lens.nn.lenses import TunedLens

    model, lens = trained
    assert type(lens) is TunedLens
    lens.save(tmp_path)
    again = TunedLens.from_unembed_and_pretrained(unembed(model), str(tmp_path))
    np.testing.assert_array_equal(kl_by_layer(model, again, HELD_OUT), kl_by_layer(model, lens, HELD_OUT))


def test_model_and_generators_are_left_alone():
    model = shaken()
    model.train()
    model.model.layers[0].eval()  # a mixed mode must come back as it was
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    modes = [module.training for module in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    generator, numpy_generator = torch.get_rng_state(), str(np.random.get_state())
    kl_by_layer(model, quick(model, steps=5), HELD_OUT)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert bool((model.lm_head.weight.grad == 1).all()) and model.model.layers[0].mlp.up_proj.weight.grad is None
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator) and str(np.random.get_state()) == numpy_generator


def test_dropout_is_off():
    model = shaken("gpt2")
    expected = kl_by_layer(model, quick(model, steps=5), HELD_OUT)
    model.transformer.drop.p = 0.5
    model.train()
    np.testing.assert_array_equal(kl_by_layer(model, quick(model, steps=5), HELD_OUT), expected)


@pytest.mark.parametrize("few", [tokens(1, 2), torch.zeros(2, 2, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long)])
def test_fewer_tokens_than_dimensions_do(few):
    model = shaken("llama")
    lens = train_lens(model, few, progress=False, steps=20)
    assert np.isfinite(kl_by_layer(model, lens, HELD_OUT)).all()
    assert kl_by_layer(model, lens, few).max() < 0.01


def test_seed_decides():
    model = shaken()
    one, same, other = (quick(model, steps=5, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one.weight, same.weight) and torch.equal(one.bias, same.bias)
    assert not torch.equal(one.weight, other.weight)


def test_trains_where_gradients_are_off(trained):
    model, lens = trained
    with torch.no_grad():
        again = quick(model)
    assert torch.equal(again[0].weight, lens[0].weight)


def test_bfloat16_model_gets_a_float32_lens(trained):
    model, _ = trained
    coarse = copy.deepcopy(model).bfloat16()
    lens = quick(coarse)
    assert {parameter.dtype for parameter in lens.parameters()} == {torch.float32}
    np.testing.assert_allclose(kl_by_layer(coarse, lens, HELD_OUT), kl_by_layer(model, quick(model), HELD_OUT), atol=0.03)


def test_stale_or_foreign_lens_is_refused(trained):
    model, lens = trained
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved.get_output_embeddings().weight[0, 0] += 1e-3
    shallow = copy.deepcopy(lens)
    del shallow.layer_translators[-1]
    gpt2 = shaken("gpt2")
    pairs = [(moved, lens), (moved, logit_lens(model)), (model, shallow), (model, logit_lens(gpt2)), (gpt2, lens)]
    for subject, refused in pairs:
        with pytest.raises(ValueError, match=r"^lens: the lens belongs to another model or an earlier step: train it anew$"):
            kl_by_layer(subject, refused, HELD_OUT)


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (torch.zeros(0, 4, dtype=torch.long), r"non-empty .* got shape \(0, 4\)"),
        (torch.zeros(4, 0, dtype=torch.long), r"non-empty .* got shape \(4, 0\)"),
        (torch.zeros(4, dtype=torch.long), r"\(n, T\) is needed, got shape \(4,\)"),
        (torch.zeros(2, 4), "integers are needed, got torch.float32"),
        (torch.zeros(2, 4, dtype=torch.bool), "integers are needed, got torch.bool"),
        (np.zeros((2, 4)), "integers are needed, got float64"),
        (np.array([["a", "b"]]), "integers are needed, got <U1"),
        (torch.full((2, 4), VOCAB), rf"0 to {VOCAB - 1} are needed, got {VOCAB} to {VOCAB}"),
        (torch.full((2, 4), -1), "got -1 to -1"),
        (torch.zeros(1, CONTEXT + 1, dtype=torch.long), f"at most {CONTEXT} tokens are needed, got {CONTEXT + 1}"),
    ],
)
def test_bad_tokens_are_named(bad, what):
    model = shaken()
    with pytest.raises(ValueError, match=rf"^tokens: .*{what}"):
        train_lens(model, bad, progress=False)
    with pytest.raises(ValueError, match=rf"^tokens: .*{what}"):
        kl_by_layer(model, logit_lens(model), bad)


@pytest.mark.parametrize(
    "same",
    [HELD_OUT.tolist(), HELD_OUT.numpy().astype(np.uint16), HELD_OUT.to(torch.uint8), HELD_OUT.to(torch.uint16)],
    ids=["list", "numpy", "uint8", "uint16"],
)
def test_any_integers_do(same):
    model = shaken()
    lens = logit_lens(model)
    np.testing.assert_array_equal(kl_by_layer(model, lens, same), kl_by_layer(model, lens, HELD_OUT))


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("steps", 2.0), ("tokens_per_step", 0), ("learning_rate", 0.0), ("learning_rate", float("nan"))],
)
def test_bad_training_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        quick(shaken(), **{name: value})


@pytest.mark.parametrize(("rate", "steps"), [(30.0, 20), (1e5, 100), (1e37, 3)])
@pytest.mark.parametrize("cache_bytes", [2**30, 0], ids=["cached", "not cached"])
def test_a_lens_that_diverges_is_told_and_not_returned(rate, steps, cache_bytes):
    said = (
        rf"^learning_rate: the lens diverged at {re.escape(f'{rate:g}')}: at layer \d it is .* from .*; a lower one would do$"
    )
    with pytest.raises(ValueError, match=said):
        quick(shaken(), learning_rate=rate, steps=steps, cache_bytes=cache_bytes)


def test_a_lens_whose_kl_is_no_number_is_told(trained):
    model, lens = trained
    for value in (np.nan, np.inf, 1e38):
        broken = copy.deepcopy(lens)
        with torch.no_grad():
            broken.layer_translators[1].weight[0] = value
        with pytest.raises(ValueError, match=r"^lens: its KL at layer 1 is (nan|inf): it has diverged; train it at a lower"):
            kl_by_layer(model, broken, HELD_OUT)


def test_a_model_that_has_diverged_is_told():
    model = shaken()
    with torch.no_grad():
        model.get_output_embeddings().weight[3, 0] = np.nan
    for reads in (quick, logit_lens):
        with pytest.raises(ValueError, match=r"^model: finite logits are needed, .* it has diverged$"):
            reads(model)


def test_unknown_indexing_is_named(trained):
    model, lens = trained
    with pytest.raises(ValueError, match=r"^indexing: one of 'matched', 'published' is needed, got 'shifted'$"):
        kl_by_layer(model, lens, HELD_OUT, indexing="shifted")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bar(progress, capsys):
    quick(shaken(), steps=2, progress=progress)
    assert ("tuned lens" in capsys.readouterr().err) == progress


NO_NUMBERS = [(name, value) for name in ("learning_rate", "cache_bytes", "seed") for value in ("x", None, True, -1)]


@pytest.mark.parametrize(("name", "value"), [*NO_NUMBERS, ("seed", 2**64)])
def test_a_number_that_is_none_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}: "):
        quick(shaken(), **{name: value})


@pytest.mark.parametrize("model", [None, "gpt2", torch.nn.DataParallel(torch.nn.Linear(2, 2))])
def test_what_is_no_model_or_lens_is_named(trained, model):
    for read in (
        unembed,
        logit_lens,
        quick,
        lambda model: states(model, HELD_OUT),
        lambda m: kl_by_layer(m, trained[1], HELD_OUT),
    ):
        with pytest.raises(ValueError, match="^model: a causal LM of transformers is needed, got "):
            read(model)
    with pytest.raises(ValueError, match="^lens: one of train_lens or logit_lens is needed, got "):
        kl_by_layer(trained[0], model, HELD_OUT)
