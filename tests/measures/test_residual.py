import copy
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import ARCHITECTURES, LAYERS, VOCAB, inert, scaled_head, shaken, state_before_norm, tokens
from transformers import MambaConfig, MambaForCausalLM

from tying_utils.measures import residual
from tying_utils.measures.residual import contributions
from tying_utils.models.tie import SplitTie

IDS = tokens(5, 9, seed=3)
both_arms = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def mean_right_logit(model: Any) -> float:
    """Mean of logit[next] - mean logit by an ordinary forward pass."""
    with torch.no_grad():
        logits = model(IDS).logits[:, :-1].double()
    return float((logits.gather(-1, IDS[:, 1:, None])[..., 0] - logits.mean(-1)).mean())


def written(model: Any) -> dict[str, torch.Tensor]:
    """What each component writes, label -> (n, T, d), caught at the model's own modules."""
    base, caught, hooks, is_olmo2 = model.base_model, {}, [], model.config.model_type == "olmo2"

    def catch(label: str, module: Any) -> None:
        def keep(module: Any, inputs: Any, output: Any) -> None:
            caught[label] = output[0] if isinstance(output, tuple) else output

        hooks.append(module.register_forward_hook(keep))

    catch("embedding", model.get_input_embeddings())
    if hasattr(base, "wpe"):
        catch("position embedding", base.wpe)
    for i, block in enumerate(getattr(base, "layers", None) or base.h):
        attention = next(getattr(block, name) for name in ("self_attn", "attention", "attn") if hasattr(block, name))
        # OLMo 2 normalises what attention and MLP return before it is added.
        catch(f"attention {i}", block.post_attention_layernorm if is_olmo2 else attention)
        catch(f"MLP {i}", block.post_feedforward_layernorm if is_olmo2 else block.mlp)
    with torch.no_grad():
        model(IDS)
    for hook in hooks:
        hook.remove()
    return caught


@both_arms
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_components_add_up(arch, tied):
    model = shaken(arch, tied=tied)
    table, parts = contributions(model, IDS), written(model)
    torch.testing.assert_close(sum(parts.values()), state_before_norm(model, IDS))
    assert table["attribution"].sum() == pytest.approx(mean_right_logit(model), abs=1e-5)
    stream = table[table["component"] != "bias"]
    assert list(stream["label"]) == list(parts)
    np.testing.assert_allclose(
        stream["norm"], [float(part.norm(dim=-1).expand(IDS.shape).mean()) for part in parts.values()], rtol=1e-5
    )
    np.testing.assert_allclose(table["share"], table["norm"] / table["norm"].sum())


def test_columns_and_rows():
    table = contributions(shaken("gpt2"), IDS)
    assert list(table.columns) == ["layer", "component", "label", "norm", "share", "attribution"]
    blocks = [(i, component) for i in range(LAYERS) for component in ("attention", "mlp")]
    expected = [(-1, "embedding"), (-1, "position"), *blocks, (-1, "bias")]
    assert list(zip(table["layer"], table["component"], strict=True)) == expected
    assert pd.api.types.is_integer_dtype(table["layer"])


@pytest.mark.parametrize("parallel", [True, False])
def test_parallel_and_sequential_neox(parallel):
    model = shaken("gpt_neox")
    for part in (model.config, *model.gpt_neox.layers):
        part.use_parallel_residual = parallel
    assert contributions(model, IDS)["attribution"].sum() == pytest.approx(mean_right_logit(model), abs=1e-5)


@both_arms
def test_blocks_that_do_nothing_leave_all_to_the_embedding(tied):
    model = inert(tied=tied)
    table = contributions(model, IDS).set_index("label")
    assert table.loc["embedding", "share"] == 1
    assert table.loc["embedding", "attribution"] == pytest.approx(mean_right_logit(model), abs=1e-6)
    assert (table.drop("embedding")[["norm", "share", "attribution"]] == 0).all(axis=None)


def test_attribution_of_one_component_by_hand():
    """OLMo's final norm has no gain: a component counts for (U[next] - mean U) . centred output / std of the stream."""
    model = shaken("olmo", tied=False)
    mlp, stream = written(model)["MLP 0"].double(), state_before_norm(model, IDS).double()
    table = model.get_output_embeddings().weight.detach().double()
    direction = table[IDS[:, 1:]] - table.mean(0)
    std = (stream.var(-1, correction=0) + 1e-5).sqrt()
    by_hand = ((mlp - mlp.mean(-1, keepdim=True))[:, :-1] * direction).sum(-1) / std[:, :-1]
    measured = contributions(model, IDS).set_index("label").loc["MLP 0", "attribution"]
    assert measured == pytest.approx(float(by_hand.mean()), abs=1e-6)


def test_bias_row_is_the_norms_bias_and_only_where_there_is_one():
    model = shaken("gpt2")
    table = model.get_output_embeddings().weight.detach()
    shift = model.transformer.ln_f.bias.detach()
    row: Any = contributions(model, IDS).set_index("label").loc["bias"]
    assert row["attribution"] == pytest.approx(float(((table[IDS[:, 1:]] - table.mean(0)) @ shift).mean()), abs=1e-6)
    assert row["norm"] == row["share"] == 0
    with torch.no_grad():
        model.transformer.ln_f.bias.zero_()
    assert "bias" not in set(contributions(model, IDS)["component"])


def test_head_bias_counts_too():
    model = shaken("olmo", tied=False)
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(0, 1, VOCAB))
    table = contributions(model, IDS).set_index("label")
    bias = model.lm_head.bias.detach()
    assert table.loc["bias", "attribution"] == pytest.approx(float(bias[IDS[:, 1:]].mean() - bias.mean()), abs=1e-5)
    assert table["attribution"].sum() == pytest.approx(mean_right_logit(model), abs=1e-5)


@pytest.mark.parametrize("arch", ["olmo", "gpt_neox", "gpt2"])
def test_model_is_left_alone(arch, tmp_path):
    model = shaken(arch).train()
    model.base_model.eval()
    weights, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    attention, modes = model.config._attn_implementation, [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    contributions(model, IDS)
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert model.config.to_dict() == config and model.config._attn_implementation == attention
    assert [module.training for module in model.modules()] == modes
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert torch.equal(torch.get_rng_state(), generator)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(again.eval()(IDS).logits, model.eval()(IDS).logits)


def test_split_tie_reads_like_the_tied_model():
    model = shaken()
    expected = contributions(model, IDS)
    SplitTie(model)
    pd.testing.assert_frame_equal(contributions(model, IDS), expected)
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()


def test_batches_do_not_matter():
    model = shaken("gpt2")
    pd.testing.assert_frame_equal(contributions(model, IDS, batch=2), contributions(model, IDS, batch=100), rtol=1e-5)


def test_bfloat16_is_read_in_float32():
    model = shaken().bfloat16()
    pd.testing.assert_frame_equal(contributions(model, IDS), contributions(copy.deepcopy(model).float(), IDS))


def test_missing_component_is_noticed(monkeypatch):
    every = residual._components
    monkeypatch.setattr(residual, "_components", lambda layers: every(layers - 1))
    with pytest.raises(ValueError, match=r"^model: the components of OlmoForCausalLM do not add up to its residual stream"):
        contributions(shaken(), IDS)


def test_a_scaled_head_is_read_with_its_scale():
    model = scaled_head().eval()
    assert contributions(model, IDS)["attribution"].sum() == pytest.approx(mean_right_logit(model), abs=1e-6)
    model.config.logits_scaling = 4.0
    assert contributions(model, IDS)["attribution"].sum() == pytest.approx(mean_right_logit(model), abs=1e-6)


def test_a_capped_head_is_refused():
    model = shaken()
    model.config.final_logit_softcapping = 5.0
    with pytest.raises(ValueError, match=r"^model: logits that are a sum are needed, OlmoForCausalLM caps them at 5$"):
        contributions(model, IDS)


@pytest.mark.parametrize(
    ("ids", "what"),
    [
        (IDS[:, :1], r"at least 2 columns are needed, the last as a next token, got shape \(5, 1\)"),
        (IDS.float(), "integers are needed"),
        (IDS + VOCAB, f"ids from 0 to {VOCAB - 1} are needed"),
        (IDS[0], r"shape \(n, T\) is needed"),
    ],
)
def test_bad_tokens_are_named(ids, what):
    with pytest.raises(ValueError, match=rf"^tokens: .*{what}"):
        contributions(shaken(), ids)


def test_bad_batch_is_named():
    with pytest.raises(ValueError, match=r"^batch: "):
        contributions(shaken(), IDS, batch=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_model_is_refused(bad):
    model = shaken()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = bad
    with pytest.raises(ValueError, match="^model: finite states are needed, the residual stream"):
        contributions(model, IDS)


def test_a_model_of_other_blocks_is_refused():
    config = MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4, tie_word_embeddings=True)
    with pytest.raises(ValueError, match="^model: blocks of attention and MLP are needed, MambaForCausalLM has no blocks.0"):
        contributions(MambaForCausalLM(config), IDS)
