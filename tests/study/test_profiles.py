"""The published configuration as a profile: its fields, its size, and its split tie, on shapes alone."""

from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from tying_utils.base.names import EQUAL, TIED, UNTIED, scaled
from tying_utils.experiments import published
from tying_utils.models import architectures, tie
from tying_utils.study import arms, profiles
from tying_utils.study.profile import Profile
from tying_utils.training import budget, hardware
from tying_utils.training.next_token import NextTokenLoss

PAPER = profiles.get("paper")


def test_the_paper_profile_is_the_published_configuration():
    setup, config = published.load()["training_setup"], PAPER.config(TIED, 0)
    ours = {"vocabulary": "vocab_size", "sequence_length": "context", "batch": "batch_size", "gradient_clip": "clip"}
    for name in (*ours, "learning_rate", "weight_decay", "adam_eps", "steps"):
        assert getattr(config, ours.get(name, name)) == setup[name], name
    assert [config.beta1, config.beta2] == setup["betas"]
    shape = f"OLMo-1B: {config.n_layers} layers, d_model {config.d_model}, {config.n_heads} heads"
    assert setup["architecture"].startswith(shape)
    assert setup["schedule"].startswith(f"cosine to {config.final_learning_rate}, warmup {config.warmup_steps} (10k runs)")
    assert not PAPER.sweep


def on_meta(arm: str, vocab_size: int) -> Any:
    config = PAPER.config(arm, 0)
    sizes = config.sizes | {"vocab_size": vocab_size}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(architectures.configured(config.arch, tied=config.tied, **sizes))


@pytest.mark.parametrize(
    ("arm", "padded", "count"),
    [(TIED, True, 1_176_764_416), (TIED, False, 1_176_715_264), (UNTIED, False, 1_279_688_704)],
)
def test_it_has_as_many_parameters_as_published(arm, padded, count):
    setup = published.load()["training_setup"]
    model = on_meta(arm, setup["vocabulary_padded" if padded else "vocabulary"])
    assert sum(p.numel() for p in model.parameters()) == count
    assert model.model.layers[0].mlp.gate_proj.weight.shape == (8192, 2048)


def test_its_tie_is_split_on_shapes():
    config = PAPER.config(TIED, 0)
    model = on_meta(TIED, config.vocab_size)
    hardware.without_mask(model)  # values, which are looked at otherwise, there are none
    split = tie.SplitTie(model)
    windows = torch.zeros(2, 65, dtype=torch.long, device="meta")
    NextTokenLoss(model, logits_at_once=32 * config.vocab_size)(windows).backward()
    assert [gradient.shape for gradient in split.path_gradients()] == [(50_280, 2048)] * 2
    split.combine(5.0, 1.0)
    assert split.weight.grad is not None and split.weight.grad.shape == (50_280, 2048)
    assert all(p.grad is not None and p.grad.shape == p.shape for p in split.parameters())
    assert sum(p.numel() for p in split.parameters()) == 1_176_715_264


def test_the_profile_for_a_gpu_compares_models_of_equal_size():
    profile = profiles.get("gpu")
    tied, untied, equal = (budget.parameters(profile.config(arm, 0)) for arm in (TIED, UNTIED, EQUAL))
    assert tied < untied == equal
    assert set(profile.arms) >= {TIED, UNTIED, *map(scaled, (0.1, 5.0, 20.0))} and len(profile.seeds) >= 3


def test_a_run_of_the_profile_for_a_gpu_is_two_minutes_of_a_t4():
    config = profiles.get("gpu").config(TIED, 0)
    operations = 6 * budget.parameters(config) * config.steps * config.batch_size * config.context
    assert operations / 4e12 < 120  # of the 8.1e12 a second on its data sheet


COMPARED = [of for name in ("smoke", "quick", "laptop") for of in profiles.PROFILES[name].values() if of.elsewhere]


@pytest.mark.parametrize("profile", COMPARED, ids=lambda of: f"{of.name}-{of.corpus}")
def test_every_other_place_has_the_three_arms_and_a_reference_of_its_own(profile: Profile) -> None:
    for compared in (profile.by_architecture, profile.grid):
        where, configs = [], [profile.config(arm, 0) for arm in compared]
        assert [arm.kind for arm in compared] == [UNTIED, TIED, scaled(5)] * (len(compared) // 3)
        for untied, tied, more in zip(configs[::3], configs[1::3], configs[2::3], strict=True):
            assert (untied.tied, tied.tied, more.tied) == (False, True, True) and more.input_scale == 5
            assert untied == tied.replace(tied=False, init_seed=1000) and tied == more.replace(input_scale=1.0)
            where.append((tied.arch, tied.vocab_size, tied.d_model))
        assert len(set(where)) == len(where), "by these a tied table finds its untied pair"
        steps = {(config.steps, config.batch_size, config.context) for config in configs}
        assert len(steps) <= 1, "equal tokens"


def test_the_laptop_compares_five_architectures_and_five_widths_of_three_vocabularies() -> None:
    for corpus in ("python", "two-role"):
        of = profiles.get("laptop", corpus)
        assert {of.config(arm, 0).arch for arm in of.by_architecture} == {"olmo", *profiles.ARCHITECTURES}
    python = profiles.get("laptop")
    assert len(python.grid) == 3 * 15 and arms.TIED in python.grid, "the profile's own place is one of them"
    assert len({python.config(arm, 0).d_model for arm in python.grid}) == 5


def test_arms_that_only_stand_elsewhere_have_the_first_three_seeds() -> None:
    of = profiles.get("laptop")
    assert of.seeds_of(UNTIED, TIED) == of.seeds_of(*of.sized) == of.seeds_of(*of.scaled) == of.seeds == (0, 1, 2, 3, 4)
    assert of.seeds_of("tied, llama") == of.seeds_of(TIED, "tied, llama") == (0, 1, 2), "what is compared has equal seeds"
    two_role = profiles.get("laptop", "two-role")
    assert two_role.seeds_of("tied, gpt2") == (0, 1, 2) and two_role.seeds_of("input x5") == two_role.seeds, "a remedy there"
    assert profiles.get("smoke", "two-role").seeds_of("tied, gpt2") == (0, 1)


def test_a_table_is_given_what_its_names_say_as_columns() -> None:
    names = ["untied", "equal parameters, d 64, 4 layers", "norm-match, equal parameters", "tied, agreement 0.5", "tied, llama"]
    told = profiles.described(pd.DataFrame({"arm": names, "value": range(5)}, index=[3, 1, 4, 1, 5]))
    assert told["kind"].tolist() == [UNTIED, TIED, "norm-match", TIED, TIED]
    assert told["enlarged"].tolist() == [False, True, True, False, False]
    assert told["agreement"].tolist() == [0, 0, 0, 0.5, 0] and told["value"].tolist() == [*range(5)]
    with pytest.raises(ValueError, match=r"^table: no profile has the arms 'new'"):
        profiles.described(pd.DataFrame({"arm": ["tied", "new"]}))
