"""`share_of` against autograd on an untied copy with equal weights, over shapes and splits, and what it leaves as it was."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ARCHITECTURES, CONTEXT, VOCAB, scaled_head, shaken, tokens
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BartConfig, BartForConditionalGeneration, BertConfig, BertForMaskedLM, XLNetConfig, XLNetLMHeadModel

from tying_utils.measures.gradients import PathShare, path_statistics, share_of
from tying_utils.measures.perplexity import perplexity
from tying_utils.measures.residual import contributions
from tying_utils.tie import SplitTie

EXACT: dict[str, Any] = {"rel": 1e-10, "abs": 1e-12}
ROUNDED: dict[str, Any] = {
    "rel": 1e-5,
    "abs": 1e-7,
}  # where transformers' own norms or attention compute in float32 whatever comes


def by_autograd(model: Any, windows: Tensor) -> dict[str, float]:
    """The same by autograd, on a copy whose two tables are equal and apart."""
    apart = copy.deepcopy(model)
    apart.tie_weights()
    apart.get_output_embeddings().weight = torch.nn.Parameter(apart.get_input_embeddings().weight.detach().clone())
    apart.requires_grad_(True)
    loss = cross_entropy(apart(windows[:, :-1]).logits.flatten(0, 1), windows[:, 1:].flatten())
    loss.backward()
    values = path_statistics(apart.get_input_embeddings().weight.grad, apart.get_output_embeddings().weight.grad)
    return {name: float(value) for name, value in values.items()} | {"loss": float(loss.detach())}


def measured(found: PathShare) -> dict[str, float]:
    return {name: getattr(found, name) for name in ("input_norm", "output_norm", "cosine", "output_share", "loss")}


def soft_capped() -> Any:
    """A Gemma: its rows are read times the root of the width, one token is padding, and its logits are capped."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    size: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "final_logit_softcapping": 3.0}
    torch.manual_seed(0)
    return Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=VOCAB, pad_token_id=3, tie_word_embeddings=True, **size, **heads))


def granite() -> Any:
    model = scaled_head()
    model.config.tie_word_embeddings = True
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    return model


@pytest.mark.parametrize("make", [*ARCHITECTURES, granite, soft_capped])
def test_both_paths_are_autograds_on_an_untied_copy(make):
    model = (shaken(make) if isinstance(make, str) else make()).double()
    model.tie_weights()
    windows = tokens(6, CONTEXT, seed=1)
    found = share_of(model, windows.split(2), progress=False)
    allowed = EXACT if make in ("gpt2", "gpt_neox") else ROUNDED
    assert measured(found) == pytest.approx(by_autograd(model, windows), **allowed)
    assert (found.tokens, found.positions, found.groups) == (6 * (CONTEXT - 1), (0, CONTEXT - 1), ())


@settings(max_examples=25)
@given(n=st.integers(1, 7), length=st.integers(2, CONTEXT), split=st.integers(1, 7), seed=st.integers(0, 99), data=st.data())
def test_no_split_into_batches_or_groups_changes_it(n, length, split, seed, data):
    model, windows = shaken("gpt2", seed=seed % 3).double(), tokens(n, length, seed)
    whole = share_of(model, [windows], progress=False)
    groups = data.draw(st.integers(1, min(4, length - 1)))
    other = share_of(model, iter(windows.numpy()[i : i + split] for i in range(0, n, split)), groups=groups, progress=False)
    assert measured(other) == pytest.approx(measured(whole), **EXACT)
    assert len(other.groups) == (groups if groups > 1 else 0)
    if groups > 1:
        assert [part.positions[0] for part in other.groups[1:]] == [part.positions[1] for part in other.groups[:-1]]
        assert sum(part.tokens for part in other.groups) == other.tokens == n * (length - 1)
        assert sum(part.loss * part.tokens for part in other.groups) == pytest.approx(other.loss * other.tokens)


def test_a_group_has_the_parts_that_arise_at_its_positions():
    model, windows = shaken("gpt_neox").double(), tokens(4, CONTEXT)
    first, second = share_of(model, [windows], groups=2, progress=False).groups
    apart = copy.deepcopy(model)
    table = apart.get_input_embeddings().weight
    apart.get_output_embeddings().weight = torch.nn.Parameter(table.detach().clone())
    rows: list[Tensor] = []
    apart.get_input_embeddings().register_forward_hook(lambda _, inputs, out: rows.append(out))
    losses = cross_entropy(apart(windows[:, :-1]).logits.transpose(1, 2), windows[:, 1:], reduction="none") / (
        4 * (CONTEXT - 1)
    )
    for part in (first, second):
        start, stop = part.positions
        (at_rows,) = torch.autograd.grad(losses.sum(), rows[0], retain_graph=True)
        source = torch.zeros_like(table).index_add_(0, windows[:, start:stop].flatten(), at_rows[:, start:stop].flatten(0, 1))
        (target,) = torch.autograd.grad(losses[:, start:stop].sum(), apart.get_output_embeddings().weight, retain_graph=True)
        assert part.input_norm == pytest.approx(float(source.norm()), **EXACT)
        assert part.output_norm == pytest.approx(float(target.norm()), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_near(dtype):
    model = shaken("llama").to(dtype)
    windows = tokens(8, CONTEXT)
    found, exact = (share_of(m, windows.split(4), progress=False) for m in (model, copy.deepcopy(model).double()))
    near = 1e-4 if dtype == torch.float32 else 0.03
    assert measured(found) == pytest.approx(measured(exact), rel=near, abs=near)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(split, fails):
    model = shaken().train()
    model.model.layers[0].eval().requires_grad_(False)
    tie = SplitTie(model) if split else None
    model.get_input_embeddings().requires_grad_(not fails)  # frozen or not
    model.model.layers[1].mlp.up_proj.weight.grad = torch.ones_like(model.model.layers[1].mlp.up_proj.weight)

    def state() -> list[Any]:
        modules = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        parameters = [(id(p), p.requires_grad, p.grad is None or p.grad.sum().item()) for p in model.parameters()]
        return [modules, parameters, model.get_output_embeddings().weight.data_ptr()]

    before, weights = state(), copy.deepcopy(model.state_dict())
    batches = [tokens(2), *([tokens(2).float()] if fails else [])]
    with pytest.raises(ValueError, match="integers") if fails else torch.no_grad():
        share_of(model, batches, progress=False)
    assert state() == before
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    if tie is not None:
        tie.release()
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_dropout_is_off():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, n_positions=CONTEXT)).train()
    assert share_of(model, [tokens(2)], progress=False) == share_of(model, [tokens(2)], progress=False)


@pytest.mark.parametrize(
    ("batches", "options", "words"),
    [
        ([], {}, "batches: at least one"),
        (iter(()), {}, "batches: at least one"),
        (None, {}, "batches: an iterable of integer windows .* got NoneType"),
        (3, {}, "batches: an iterable of integer windows .* got int"),
        (tokens(2), {}, r"batches: in number 0 .*windows \(n, length\)"),
        ([tokens(2), tokens(2) + VOCAB], {}, "batches: in number 1 .*ids from 0 to 49"),
        ([tokens(2).double()], {}, "integers are needed"),
        ([tokens(2, CONTEXT + 2)], {}, "at most 17 tokens"),
        ([tokens(2, 1)], {}, "at least 2 tokens"),
        ([tokens(2), tokens(2, 5)], {"groups": 2}, "batches: groups need windows of one length, got 16 tokens and then 5"),
        ([tokens(2, 3)], {"groups": 3}, "groups: at most .* 2, got 3"),
        ([tokens(2)], {"groups": 0}, "groups: an integer of at least 1"),
    ],
)
def test_what_cannot_be_measured_is_named(batches, options, words):
    with pytest.raises(ValueError, match=words):
        share_of(shaken(), batches, progress=False, **options)


def test_models_that_have_no_such_gradients_are_named():
    with pytest.raises(ValueError, match="model: a tied model is needed.*tie_weights"):
        share_of(shaken(tied=False), [tokens(2)], progress=False)
    with pytest.raises(ValueError, match="model: a causal LM .* got Embedding and NoneType"):
        share_of(shaken().model, [tokens(2)], progress=False)
    model = shaken()
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, out: out + 1)
    with pytest.raises(ValueError, match="model: its Embedding is no lookup times a number"):
        share_of(model, [tokens(2)], progress=False)
    model = shaken()
    model.get_input_embeddings().weight.data.fill_(float("inf"))
    with pytest.raises(ValueError, match="model: a finite loss is needed"):
        share_of(model, [tokens(2)], progress=False)


def doubled(module: Any, inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


def test_a_hook_of_the_callers_on_the_head_counts():
    model, windows = shaken("gpt2").double(), tokens(4, CONTEXT)
    model.lm_head.register_forward_hook(doubled)
    assert measured(share_of(model, [windows], progress=False)) == pytest.approx(by_autograd(model, windows), **EXACT)


def test_it_measures_in_inference_mode_and_refuses_a_model_built_there():
    model, windows = shaken("gpt2").double(), tokens(4, CONTEXT)
    plain = share_of(model, [windows], progress=False)
    with torch.inference_mode():
        assert share_of(model, [windows.clone()], progress=False) == plain
        built = shaken("gpt2")
    with pytest.raises(ValueError, match="^model: it was built in inference mode"):
        share_of(built, [windows], progress=False)
    with pytest.raises(ValueError, match="^model: its weights are on the device meta"):
        share_of(copy.deepcopy(model).to("meta"), [windows], progress=False)
    assert all(p.requires_grad for p in built.parameters())


@pytest.mark.parametrize("option", [{"scale_grad_by_freq": True}, {"max_norm": 1.0}])
def test_an_embedding_that_depends_on_the_batch_is_refused(option):
    model = shaken("gpt2")
    vars(model.get_input_embeddings()).update(option)
    with pytest.raises(ValueError, match="^model: an embedding that only looks up is needed"):
        share_of(model, [tokens(2)], progress=False)


def bert() -> Any:
    config = BertConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    torch.manual_seed(0)
    return BertForMaskedLM(config)


def bart() -> Any:
    size: dict[str, Any] = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads: dict[str, Any] = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return BartForConditionalGeneration(BartConfig(vocab_size=VOCAB, d_model=16, **size, **heads))


def xlnet() -> Any:
    torch.manual_seed(0)
    return XLNetLMHeadModel(XLNetConfig(vocab_size=VOCAB, d_model=16, n_layer=1, n_head=2, d_inner=32))


@pytest.mark.parametrize(
    ("make", "words"), [(bert, "depend on the tokens after"), (bart, "reads one text"), (xlnet, "after it")]
)
def test_models_that_see_the_answer_are_refused(make, words):
    model = make()
    for measure in (lambda: share_of(model, [tokens(2)], progress=False), lambda: perplexity(model, tokens(2), progress=False)):
        with pytest.raises(ValueError, match=f"^model: a causal LM is needed, .*{words}"):
            measure()


@pytest.mark.parametrize("model", [None, "gpt2", torch.nn.DataParallel(torch.nn.Linear(2, 2))])
def test_what_is_no_model_is_named(model):
    for measure in (
        lambda: share_of(model, [tokens(2)]),
        lambda: perplexity(model, tokens(2)),
        lambda: contributions(model, tokens(2)),
    ):
        with pytest.raises(ValueError, match="^model: a causal LM of transformers is needed, got"):
            measure()


def test_rows_of_several_lengths_are_named():
    for measure in (perplexity, contributions):
        with pytest.raises(ValueError, match="^tokens: rows of one length"):
            measure(shaken(), [[1, 2, 3], [4, 5]])
