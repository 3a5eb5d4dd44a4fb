import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tying_utils import models

SMALL: dict[str, Any] = {"vocab_size": 300, "d_model": 16, "n_layers": 2, "n_heads": 2, "context": 16}
TOKENS = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(0))

every_architecture = pytest.mark.parametrize("arch", models.ARCHITECTURES)
both_arms = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


@every_architecture
@both_arms
def test_every_architecture_builds_as_asked(arch, tied):
    model: Any = models.build(arch, tied=tied, **SMALL)
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    logits = model(TOKENS).logits
    assert logits.shape == (2, 9, 300)
    assert torch.equal(model(TOKENS).logits, logits), "dropout is on"
    whole = torch.zeros(1, SMALL["context"], dtype=torch.long)
    assert model(whole).logits.shape == (*whole.shape, 300), "a full context does not fit"

    tables = models.tables(model)
    assert tables.tied is tied
    assert tables.input.shape == tables.output.shape == (300, 16)
    assert (tables.input.data_ptr() == tables.output.data_ptr()) is tied
    assert tables.input.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert tables.output.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert not tables.input.requires_grad
    elements = {p.data_ptr(): p.numel() for p in model.parameters()}
    assert sum(n == 300 * 16 for n in elements.values()) == (1 if tied else 2)


@every_architecture
def test_no_position_sees_a_later_token(arch):
    model: Any = models.build(arch, tied=False, **SMALL)
    changed = TOKENS.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 300
    before, after = model(TOKENS).logits, model(changed).logits
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


@every_architecture
@both_arms
def test_seed_decides_the_weights_alone(arch, tied):
    made = []
    for elsewhere, seed in ((1, 7), (2, 7), (3, 8)):
        torch.manual_seed(elsewhere)
        before = torch.random.get_rng_state()
        made.append(models.build(arch, tied=tied, seed=seed, **SMALL).state_dict())
        assert torch.equal(torch.random.get_rng_state(), before), "the global generator is left as it was"
    first, again, other = made
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name, value in first.items() if value.ndim == 2 and value.std() > 0]
    assert len(drawn) > 8
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


@every_architecture
def test_tied_and_untied_share_input_table_and_trunk_at_the_start(arch):
    tied: Any = models.build(arch, tied=True, seed=5, **SMALL)
    untied: Any = models.build(arch, tied=False, seed=5, **SMALL)
    assert torch.equal(models.tables(tied).input, models.tables(untied).input)
    assert not torch.equal(models.tables(untied).input, models.tables(untied).output)
    head = untied.get_output_embeddings().weight
    others = {name: parameter for name, parameter in untied.named_parameters() if parameter is not head}
    own = dict(tied.named_parameters())
    assert others.keys() == own.keys() and all(torch.equal(own[name], others[name]) for name in own)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"arch": "mamba"}, "arch"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"d_model": -16}, "d_model"),
        ({"n_layers": 1.0}, "n_layers"),
        ({"context": True}, "context"),
        ({"n_heads": "2"}, "n_heads"),
        ({"n_heads": 3}, "n_heads"),
        ({"n_heads": 16}, "n_heads"),  # heads of width 1 cannot rotate
    ],
)
def test_bad_argument_is_named(changes, named):
    with pytest.raises(ValueError, match=rf"^{named}:"):
        models.build(**{"tied": True, **SMALL, **changes})


@pytest.mark.parametrize("arch", ["gpt2", "gpt_neo"])
def test_odd_heads_do_where_nothing_rotates(arch):
    model: Any = models.build(arch, tied=True, **{**SMALL, "n_heads": 16})
    assert model(TOKENS).logits.shape == (2, 9, 300)


@settings(max_examples=40)
@given(arch=st.sampled_from(["olmo", "gpt2"]), d_model=st.integers(1, 40), n_heads=st.integers(1, 9))
def test_heads_build_or_the_advice_does(arch, d_model, n_heads):
    size: dict[str, Any] = {**SMALL, "n_layers": 1, "d_model": d_model}
    try:
        models.build(arch, tied=True, **{**size, "n_heads": n_heads})
    except ValueError as error:
        advice = re.search(r"try n_heads = (\d+)", str(error))
        if advice:
            models.build(arch, tied=True, **{**size, "n_heads": int(advice[1])})
        else:
            assert arch != "gpt2" and d_model % 2, error  # no number of heads would do


@both_arms
def test_tables_refuse_a_configuration_that_lies(tied):
    model = models.build(tied=tied, **SMALL)
    model.config.tie_word_embeddings = not tied
    with pytest.raises(ValueError, match="tie_word_embeddings"):
        models.tables(model)


def test_tables_notice_a_tie_that_a_cast_broke():
    model: Any = models.build(tied=True, **SMALL)
    model.get_output_embeddings().weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    with pytest.raises(ValueError, match=r"tie_weights\(\)"):
        models.tables(model)
    model.tie_weights()
    assert models.tables(model).tied


def test_tables_need_both_ends():
    from transformers import OlmoModel

    model: Any = models.build(tied=False, **SMALL)
    with pytest.raises(ValueError, match=r"^model: OlmoModel"):
        models.tables(OlmoModel(model.config))


def test_the_one_table_is_asked_of_tied_models_only():
    tied = models.tables(models.build(tied=True, **SMALL))
    assert tied.table is tied.input
    with pytest.raises(ValueError, match="table: a tied model is needed"):
        _ = models.tables(models.build(tied=False, **SMALL)).table


@pytest.mark.parametrize("seed", [-1, 1.5, "7", None, True, 2**63])
def test_a_bad_seed_is_named(seed):
    with pytest.raises(ValueError, match="^seed: an integer"):
        models.build(tied=True, seed=seed, **SMALL)
