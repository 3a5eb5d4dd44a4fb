"""Models that the package does not build: where their final norm is, what they make of their logits, and what is refused."""

from typing import Any

import multimodal
import numpy as np
import pytest
import torch
import transformers
from tiny_models import VOCAB, WIDTH, shaken, tokens

from tying_utils.measures.causal import Head, blocks, final_norm, some_tokens
from tying_utils.measures.lens import kl_by_layer, logit_lens, states, train_lens, unembed
from tying_utils.measures.perplexity import perplexity

IDS = tokens(6, 12, seed=4).clamp(min=1)
both_arms = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
ROWS: dict[str, Any] = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
HEADED = LLAMA | {"head_dim": 8}
OPT: dict[str, Any] = {"hidden_size": WIDTH, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
OPT |= {"max_position_embeddings": 32, "word_embed_proj_dim": WIDTH}
DECODER: dict[str, Any] = {"d_model": WIDTH, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
BERT: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MAMBA_H1: dict[str, Any] = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}

MLA = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8}

# What an architecture makes of head(norm(state)), in other words than the package's.
MADE: dict[str, tuple[dict[str, Any], Any]] = {
    "Cohere": (LLAMA | {"logit_scale": 0.25}, lambda x: x * 0.25),
    "Cohere2": (HEADED | {"logit_scale": 3.0}, lambda x: x * 3),
    "Granite": (LLAMA | {"logits_scaling": 8.0}, lambda x: x / 8),
    "GraniteMoe": (LLAMA | {"logits_scaling": 0.5}, lambda x: 2 * x),
    "HyperCLOVAX": (HEADED | {"logits_scaling": 0.125}, lambda x: x / 8),
    "MiniCPM3": (LLAMA | MLA | {"dim_model_base": 4}, lambda x: x / 4),
    "NanoChat": (LLAMA | {"final_logit_softcapping": 2.0}, lambda x: 2 * torch.tanh(x / 2)),
    "FalconH1": (HEADED | MAMBA_H1 | {"lm_head_multiplier": 0.5}, lambda x: x / 2),
    "Gemma2": (HEADED | {"final_logit_softcapping": 5.0}, lambda x: 5 * torch.tanh(x / 5)),
    "VaultGemma": (HEADED | {"final_logit_softcapping": 1.0}, torch.tanh),
    "RecurrentGemma": (
        LLAMA | {"num_hidden_layers": 3, "logits_soft_cap": 2.0, "lru_width": 16},
        lambda x: 2 * torch.tanh(x / 2),
    ),
}
NORMS: dict[str, tuple[dict[str, Any], str]] = {
    "OPT": (OPT, "decoder.final_layer_norm"),
    "Phi": (LLAMA, "final_layernorm"),
    "Mamba": ({"hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 4}, "norm_f"),
    "FalconMamba": ({"hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 4}, "norm_f"),
    "Mpt": ({"d_model": WIDTH, "n_layers": 2, "n_heads": 2, "max_seq_len": 32}, "norm_f"),
    "Rwkv": ({"hidden_size": WIDTH, "num_hidden_layers": 2, "attention_hidden_size": WIDTH}, "ln_out"),
    "Lfm2": (LLAMA | {"layer_types": ["conv", "full_attention"]}, "embedding_norm"),
    "XGLM": ({"d_model": WIDTH, "num_layers": 2, "attention_heads": 2, "ffn_dim": 32}, "layer_norm"),
    "Pegasus": (DECODER, "decoder.layer_norm"),
    "Bloom": ({"hidden_size": WIDTH, "n_layer": 2, "n_head": 2}, "ln_f"),
}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a post-norm block": ("OPT", OPT | {"do_layer_norm_before": False}, r"its head reads decoder.layers.1.final_layer_norm"),
    "BART": ("Bart", DECODER, r"its head reads decoder.layers.1.final_layer_norm"),
    "a projection": ("OPT", OPT | {"word_embed_proj_dim": 8}, r"its head reads decoder.project_out"),
    "a head with a transform": ("Roberta", BERT | {"is_decoder": True}, r"its head reads no module's output"),
}


def foreign(kind: str, *, tied: bool = True, **sizes: Any) -> Any:
    """A model of transformers' own with parameters that matter, row 0 of its input table left at 0 as padding is."""
    config = getattr(transformers, f"{kind}Config")(**ROWS, tie_word_embeddings=tied, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn(parameter.shape))
            model.get_input_embeddings().weight[0] = 0
    return model


def differing(model: Any, ids: torch.Tensor = IDS) -> float:
    """How far lens and model are apart on `ids`, of the logits' size."""
    with torch.no_grad():
        theirs = model(ids).logits
        ours = unembed(model, ids)(states(model, ids)[-1]).view_as(theirs)
    return float((ours - theirs).abs().max() / theirs.std())


@both_arms
@pytest.mark.parametrize("kind", MADE)
def test_scaled_and_capped_logits_are_the_models(kind, tied):
    sizes, made = MADE[kind]
    model = foreign(kind, tied=tied, **sizes)
    assert differing(model) < 1e-5
    assert differing(model.bfloat16()) < 0.05
    frozen = unembed(model := model.float(), IDS)
    raw = torch.nn.functional.linear(frozen.final_norm(states(model, IDS)[-1]), model.get_output_embeddings().weight)
    torch.testing.assert_close(frozen(states(model, IDS)[-1]), made(raw))
    assert float((made(raw) - raw).detach().abs().max()) > 0.1, "else the scale or cap would not matter"
    curve = kl_by_layer(model, train_lens(model, IDS, steps=3, progress=False), IDS)
    assert np.isfinite(curve).all() and curve[-1] == 0


@pytest.mark.parametrize("kind", ["Granite", "Gemma2"])
def test_the_gradient_of_a_scaled_and_of_a_capped_head_is_autograds(kind):
    head = Head(foreign(kind, tied=False, **MADE[kind][0]))
    state = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0), requires_grad=True)
    logits = head(state)
    (expected,) = torch.autograd.grad(logits.logsumexp(-1).sum(), state)
    torch.testing.assert_close(head.gradient(logits.detach(), logits.detach().softmax(-1)), expected)


def test_a_cap_of_another_size_is_another_lens():
    model = foreign("Gemma2", **MADE["Gemma2"][0])
    lens = logit_lens(model, IDS)
    model.config.final_logit_softcapping = 4.0
    with pytest.raises(ValueError, match="^lens: the lens belongs to another model"):
        kl_by_layer(model, lens, IDS)


def scaling(out: Any) -> None:
    out.logits = 1.03 * out.logits


def capping(out: Any) -> None:
    out.logits = 3 * torch.tanh(out.logits / 3)


def masking(out: Any) -> None:
    out.logits[..., 7] = -1e4


def drifting(out: Any) -> None:
    out.logits = out.logits * (1 + 0.1 * torch.arange(out.logits.shape[1])[:, None])  # right at the first position


@both_arms
@pytest.mark.parametrize("change", [scaling, capping, masking, drifting])
@pytest.mark.parametrize("given", [IDS, 0 * IDS, None], ids=["own tokens", "padding", "no tokens"])
def test_logits_that_no_configuration_tells_are_refused_tied_and_untied_alike(change, given, tied):
    """The state of token 0, which is 0 at the first position, agrees with any of these; other tokens and positions do not."""
    model = foreign("Llama", tied=tied, **LLAMA)
    unembed(model, given)
    model.register_forward_hook(lambda module, args, out: change(out))
    with pytest.raises(ValueError, match=r"^model: .* head\(norm\(state\)\), scaled and capped as its configuration says"):
        unembed(model, given)


@both_arms
@pytest.mark.parametrize("kind", NORMS)
def test_the_norm_that_the_head_reads_is_found_wherever_it_is(kind, tied):
    sizes, name = NORMS[kind]
    model = foreign(kind, tied=tied, **sizes)
    assert final_norm(model) is model.base_model.get_submodule(name)
    assert differing(model) < 1e-5
    read, embedded = states(model, IDS), model.get_input_embeddings()(IDS).detach().flatten(0, 1)
    assert len(read) == 3
    if kind in ("Phi", "Mamba", "FalconMamba", "Rwkv", "Lfm2", "Mpt"):  # nothing is added to, or made of, the token's row
        torch.testing.assert_close(read[0], embedded, msg="the first state is the embedding's output")
    theirs = model(IDS, output_hidden_states=True).hidden_states
    shift = 1 if kind in ("Mamba", "FalconMamba", "Rwkv") else 0  # which leave the embedding's output out of them
    for i in range(2 - shift):
        torch.testing.assert_close(read[i + shift], theirs[i].flatten(0, 1))
    lens = train_lens(model, IDS, steps=60, progress=False)
    assert kl_by_layer(model, lens, IDS)[0] < kl_by_layer(model, logit_lens(model), IDS)[0]


@both_arms
@pytest.mark.parametrize("kind", REFUSED)
def test_others_are_refused_with_what_their_head_reads(kind, tied):
    name, sizes, said = REFUSED[kind]
    model = foreign(name, tied=tied, **sizes)
    for refuse in (unembed, lambda model: train_lens(model, IDS, progress=False)):
        with pytest.raises(ValueError, match=rf"^model: no final norm found in {name}ForCausalLM: {said}"):
            refuse(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_ids_of_padding_and_images_are_not_among_the_tokens_that_are_tried():
    model = shaken()
    model.config.pad_token_id, model.config.image_token_id = 0, VOCAB - 1
    ids = some_tokens(model, 4, 32)
    assert ids.shape == (4, model.config.max_position_embeddings) and (int(ids.min()), int(ids.max())) == (1, VOCAB - 2)
    assert all(len(row.unique()) > 4 for row in ids)


def test_blocks_are_those_that_text_runs():
    model = shaken()
    model.model.tower = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in model.model.layers)
    model.model._modules = dict(sorted(model.model._modules.items(), reverse=True))  # tower comes before layers
    assert blocks(model) is model.model.layers


MULTIMODAL_IDS = torch.randint(3, multimodal.VOCAB - 4, (6, 12), generator=torch.Generator().manual_seed(0))


@both_arms
@pytest.mark.parametrize("kind", multimodal.KINDS)
def test_the_text_of_a_multimodal_model_is_read_as_that_of_any_other(kind, tied):
    model = multimodal.multimodal(kind, tied=tied)
    theirs = model(MULTIMODAL_IDS, output_hidden_states=True)
    read = states(model, MULTIMODAL_IDS)
    torch.testing.assert_close(unembed(model)(read[-1]), theirs.logits.flatten(0, 1))
    if kind != "Mllama":  # which gives no states for the blocks that text skips
        torch.testing.assert_close(read[:-1], torch.stack(theirs.hidden_states[:-1]).flatten(1, 2))
    lens = train_lens(model, MULTIMODAL_IDS, steps=60, progress=False)
    curve = kl_by_layer(model, lens, MULTIMODAL_IDS)
    assert (curve[:-1] < kl_by_layer(model, logit_lens(model), MULTIMODAL_IDS)[:-1]).all() and len(curve) == len(read)
    assert np.isfinite(perplexity(model, MULTIMODAL_IDS, progress=False).loss)
    with pytest.raises(ValueError, match=rf"^tokens: ids from 0 to {multimodal.VOCAB - 1} are needed"):
        train_lens(model, MULTIMODAL_IDS + multimodal.VOCAB, progress=False)
