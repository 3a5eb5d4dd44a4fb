"""A model without a part of it, beside the same model built without that part by hand."""

import copy
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ARCHITECTURES, LAYERS, VOCAB, inert, shaken, state_before_norm, tokens
from torch.nn.functional import cross_entropy

from tying_utils import models
from tying_utils.measures.ablation import loss_without_layers
from tying_utils.measures.perplexity import perplexity
from tying_utils.models.tie import SplitTie

IDS = tokens(5, 9, seed=3)
both_arms = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


class Constant(torch.nn.Module):
    """A block that adds a constant to the stream."""

    def __init__(self, added: Any = 0.0, *, in_tuple: bool = False) -> None:
        super().__init__()
        self.added, self.in_tuple = added, in_tuple

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        stream = hidden_states + self.added
        return (stream, None) if self.in_tuple else stream


def blocks(model: Any) -> Any:
    base = getattr(model.base_model, "decoder", model.base_model)
    return getattr(base, "layers", None) or base.h


def constant(model: Any, added: Any = 0.0) -> Constant:
    return Constant(added, in_tuple=model.config.model_type == "gpt_neo")


def loss(model: Any, ids: torch.Tensor = IDS, **given: Any) -> float:
    with torch.no_grad():
        logits = model(**(given or {"input_ids": ids[:, :-1]})).logits
    return float(cross_entropy(logits.double().flatten(0, 1), ids[:, 1:].flatten()))


def rows(table: pd.DataFrame, how: str) -> list[float]:
    return table[table["how"] == how]["loss"].tolist()


@both_arms
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_each_part_against_a_model_that_was_built_without_it(arch, tied):
    model, read = shaken(arch, tied=tied), IDS[:, :-1]
    with torch.no_grad():
        states = model(read, output_hidden_states=True).hidden_states
    stream = [*states[:-1], state_before_norm(model, read)]
    embedded = model.get_input_embeddings()(read).detach()
    mean = embedded.mean((0, 1)).expand_as(embedded)
    by_hand = {"zero": [loss(model, inputs_embeds=0 * embedded)], "mean": [loss(model, inputs_embeds=mean)]}
    for i in range(LAYERS):
        for how, added in (("zero", 0.0), ("mean", (stream[i + 1] - stream[i]).mean((0, 1)))):
            without = copy.deepcopy(model)
            blocks(without)[i] = constant(without, added)
            by_hand[how].append(loss(without))
    table = loss_without_layers(model, IDS)
    for how, expected in by_hand.items():
        assert rows(table, how) == pytest.approx(expected, abs=1e-6)
    assert (table["loss"] - table["increase"]).to_list() == pytest.approx([loss(model)] * len(table), abs=1e-6)
    assert (table["increase"].abs() > 1e-5).all(), "every part of this model matters"


def test_columns_and_rows():
    table = loss_without_layers(shaken(), IDS)
    assert list(table.columns) == ["layer", "component", "how", "loss", "increase"]
    parts = [(-1, "embedding"), *((i, "block") for i in range(LAYERS))]
    expected = [(*part, how) for part in parts for how in ("zero", "mean")]
    assert list(table[["layer", "component", "how"]].itertuples(index=False, name=None)) == expected
    assert pd.api.types.is_integer_dtype(table["layer"]) and table["loss"].dtype == np.float64


@both_arms
def test_a_block_of_zero_weights_is_not_missed_at_all(tied):
    table = loss_without_layers(inert(tied=tied), IDS)
    assert (table.query("component == 'block'")["increase"] == 0).all()
    assert (table.query("component == 'embedding'")["increase"].abs() > 1e-3).all()


@pytest.mark.parametrize("arch", ["olmo", "gpt_neo", "gpt2"])
def test_a_constant_is_its_own_mean(arch):
    """Without what a block says of the text at hand nothing changes, where it says nothing of it."""
    model = shaken(arch)
    blocks(model)[0] = constant(model, torch.linspace(-2, 3, model.config.hidden_size))
    increase = loss_without_layers(model, IDS).query("layer == 0").set_index("how")["increase"]
    assert increase["mean"] == pytest.approx(0, abs=1e-6) and abs(increase["zero"]) > 1e-3


@settings(max_examples=12)
@given(
    arch=st.sampled_from(["olmo", "olmo2", "gpt_neo", "gpt2"]),
    tied=st.booleans(),
    vocab=st.integers(2, 40),
    heads=st.integers(1, 3),
    layers=st.integers(1, 3),
    shape=st.tuples(st.integers(1, 4), st.integers(2, 9)),
    seed=st.integers(0, 99),
)
def test_without_any_block_the_embedding_is_read_by_the_head(arch, tied, vocab, heads, layers, shape, seed):
    sizes = {"vocab_size": vocab, "d_model": 4 * heads, "n_layers": layers, "n_heads": heads, "context": 8}
    model: Any = models.build(arch, tied=tied, seed=seed, **sizes).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    ids, last = torch.randint(vocab, shape, generator=generator), seed % layers
    for i in {*range(layers)} - {last}:
        blocks(model)[i] = constant(model)
    base = model.base_model
    with torch.no_grad():
        stream = model.get_input_embeddings()(ids[:, :-1])
        if hasattr(base, "wpe"):
            stream = stream + base.wpe(torch.arange(shape[1] - 1))
        logits = model.get_output_embeddings()((base.norm if hasattr(base, "norm") else base.ln_f)(stream))
    table = loss_without_layers(model, ids)
    assert len(table) == 2 * (layers + 1) and np.isfinite(table["loss"]).all()
    by_hand = float(cross_entropy(logits.double().flatten(0, 1), ids[:, 1:].flatten()))
    assert table.query("layer == @last and how == 'zero'")["loss"].item() == pytest.approx(by_hand, abs=1e-5)
    others = table[(table["layer"] >= 0) & (table["layer"] != last)]
    assert (others["increase"] == 0).all()
    assert (table["loss"] - table["increase"]).to_list() == pytest.approx(
        [perplexity(model, ids, progress=False).loss] * len(table)
    )


@pytest.mark.parametrize(("arch", "silent"), [("olmo", True), ("olmo2", True), ("llama", True), ("gpt2", False)])
def test_without_embedding_only_learned_positions_say_something(arch, silent):
    without = rows(loss_without_layers(shaken(arch), IDS), "zero")[0]
    assert (abs(without - math.log(VOCAB)) < 1e-6) == silent


def test_batches_do_not_matter():
    model = shaken("gpt2")
    one, whole = loss_without_layers(model, IDS, batch_size=2), loss_without_layers(model, IDS)
    pd.testing.assert_frame_equal(one, whole, rtol=1e-4, atol=1e-6)


def test_split_tie_reads_like_the_tied_model():
    model = shaken()
    expected = loss_without_layers(model, IDS)
    SplitTie(model)
    pd.testing.assert_frame_equal(loss_without_layers(model, IDS), expected)


def test_bfloat16_is_read_as_it_is():
    exact, coarse = loss_without_layers(shaken(), IDS), loss_without_layers(shaken().bfloat16(), IDS)
    np.testing.assert_allclose(coarse["loss"], exact["loss"], atol=0.05)
    assert (loss_without_layers(inert().bfloat16(), IDS).query("component == 'block'")["increase"] == 0).all()


def others() -> list[Any]:
    """Models that the package does not build."""
    from transformers import MixtralConfig, MixtralForCausalLM, OPTConfig, OPTForCausalLM

    sizes: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "max_position_embeddings": 16}
    experts: dict[str, Any] = {"num_local_experts": 2, "num_key_value_heads": 2, "num_experts_per_tok": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [
            OPTForCausalLM(OPTConfig(**sizes, **ids, ffn_dim=32, word_embed_proj_dim=16)),
            MixtralForCausalLM(MixtralConfig(**sizes, **ids, **experts, intermediate_size=32)),  # as many experts as blocks
        ]


def test_other_models_with_a_list_of_blocks():
    for model in others():
        measured = rows(loss_without_layers(model, IDS), "zero")
        model.eval()
        for i in range(2):
            without = copy.deepcopy(model)
            blocks(without)[i] = Constant()
            assert measured[i + 1] == pytest.approx(loss(without), abs=1e-6)


def test_model_is_left_alone():
    model = shaken("gpt2").train()
    model.base_model.eval()
    modes, weights = [module.training for module in model.modules()], copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    expected = loss_without_layers(model, IDS)
    model.base_model.drop.p = 0.5
    pd.testing.assert_frame_equal(loss_without_layers(model, IDS), expected)  # without dropout
    with pytest.raises(ValueError, match="^tokens: "):
        loss_without_layers(model, IDS + VOCAB)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def hidden(model: Any) -> None:
    model.model.layers = torch.nn.Sequential(*model.model.layers)


def repeated(model: Any) -> None:
    model.model.layers[1] = model.model.layers[0]


def unused(model: Any) -> None:
    model.model.config = copy.deepcopy(model.config)
    model.model.config.num_hidden_layers = 1


def narrowing(model: Any) -> None:
    model.model.layers[1].register_forward_hook(lambda *of: of[-1][..., :-1])


def nesting(model: Any) -> None:
    model.model.layers[0].register_forward_hook(lambda *of: [of[-1]])


def branching(model: Any) -> None:
    model.model.layers[1].register_forward_pre_hook(lambda _, args: (2 * args[0],))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (hidden, "no list of blocks was found"),
        (repeated, "block 1 does not go on from where the part before it ended"),
        (branching, "block 1 does not go on from where the part before it ended"),
        (unused, "only 2 of its 3 parts were run"),
        (narrowing, "block 1 returns no stream of the shape that it was given"),
        (nesting, "block 0 returns no stream of the shape that it was given"),
    ],
)
def test_a_model_that_is_no_list_of_blocks_is_told(change, what):
    model = shaken()
    change(model)
    words = rf"^model: {what} in OlmoModel; a causal LM is needed with one torch.nn.ModuleList of {LAYERS} blocks"
    with pytest.raises(ValueError, match=words):
        loss_without_layers(model, IDS)


@pytest.mark.parametrize(
    ("ids", "what"),
    [
        (IDS[:, :1], r"windows \(n, length\) of at least 2 tokens are needed, got shape \(5, 1\)"),
        (IDS.float(), "integers are needed"),
        (IDS + VOCAB, f"ids from 0 to {VOCAB - 1} are needed"),
        (tokens(2, 18), "windows of at most 17 tokens are needed"),
    ],
)
def test_bad_tokens_are_named(ids, what):
    with pytest.raises(ValueError, match=rf"^tokens: .*{what}"):
        loss_without_layers(shaken(), ids)


def test_a_bad_batch_size_is_named():
    with pytest.raises(ValueError, match="^batch_size: "):
        loss_without_layers(shaken(), IDS, batch_size=0)


@pytest.mark.parametrize("model", [None, "gpt2", torch.nn.DataParallel(torch.nn.Linear(2, 2))])
def test_what_is_no_model_is_named(model):
    with pytest.raises(ValueError, match="^model: a causal LM of transformers is needed, got "):
        loss_without_layers(model, [[1, 2]])
