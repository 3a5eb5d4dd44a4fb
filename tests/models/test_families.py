import pytest
import torch

from tying_utils import models
from tying_utils.experiments import shares
from tying_utils.experiments.published import SIZES, evolution, load
from tying_utils.models import checkpoints
from tying_utils.models.families import MODELS, families
from tying_utils.training.config import TrainConfig

# As the models' own cards and the published Pythia suite (arXiv 2304.01373, Table 1) give them.
PARAMETERS = {
    "Pythia-70M": (70_426_624, 18_915_328),
    "Pythia-160M": (162_322_944, 85_056_000),
    "Pythia-410M": (405_334_016, 302_311_424),
    "Pythia-1B": (1_011_781_632, 805_736_448),
    "Pythia-1.4B": (1_414_647_808, 1_208_602_624),
    "Pythia-2.8B": (2_775_208_960, 2_517_652_480),
    "Pythia-6.9B": (6_857_302_016, 6_444_163_072),
    "Pythia-12B": (11_846_072_320, 11_327_027_200),
}


def test_every_model_of_the_paper_is_there_with_its_pair():
    known = checkpoints.families()
    assert known == families()
    sources = {model.source for family in known.values() for model in family.models}
    paper = load()["models"]
    assert {family.name for family in known.values()} == set(paper)
    for family in known.values():
        assert (family.tied.source, family.untied.source) == (paper[family.name]["tied"], paper[family.name]["untied"])
        assert family.tied.tied and not family.untied.tied
    assert {part["model_id"] for part in load()["figures_3_8_9_evolution"].values()} <= sources
    assert set(evolution()["model"]) == {model.name for family in known.values() for model in family.evolution}
    assert len(sources) == 8


def test_real_tokens_are_those_of_the_paper():
    assert MODELS["OLMo-1B"].tokens == load()["training_setup"]["vocabulary"] == SIZES["OLMo"][0]
    assert MODELS["OLMo-1B"].rows == load()["training_setup"]["vocabulary_padded"]
    assert all(model.tokens <= model.rows for model in MODELS.values())


@pytest.mark.parametrize("name", MODELS)
def test_names_and_architectures_are_known(name):
    model = MODELS[name]
    assert model.name == name and model.arch in models.ARCHITECTURES
    assert hasattr(torch, model.dtype) and model.source.count("/") == 1


@pytest.mark.parametrize("name", PARAMETERS)
def test_shapes_give_the_published_parameters(name):
    total, without = PARAMETERS[name]
    counted = shares.count(MODELS[name])
    assert counted.parameters == total
    assert counted.trunk == without
    assert counted.table_fraction(tied=False) == pytest.approx(1 - without / total)


@pytest.mark.parametrize("tied", [True, False])
def test_a_share_is_counted_as_a_built_model_counts(tied):
    config = TrainConfig(tied=tied, vocab_size=300, d_model=16, n_layers=2, n_heads=2)
    built = models.build("olmo", tied=tied, vocab_size=300, d_model=16, n_layers=2, n_heads=2)
    counted = shares.count(config)
    assert counted.parameters == sum(p.numel() for p in built.parameters())
    assert counted == shares.count(built.config)
    assert (counted.table, counted.tied) == (300 * 16, tied)
    assert counted.table_fraction(tied=True) == 4800 / (counted.trunk + 4800)
    assert counted.table_fraction(tied=False) == 9600 / (counted.trunk + 9600)


def test_the_table_of_shares():
    table = shares.table(["Pythia-70M", "Qwen3-0.6B"])
    assert table["model"].tolist() == ["Pythia-70M", "Qwen3-0.6B"]
    assert table["tied"].tolist() == [False, True]
    assert (table["share_untied"] > table["share_tied"]).all()
    assert table["parameters"].tolist() == [70_426_624, 596_049_920]
