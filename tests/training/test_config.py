import dataclasses
import itertools
import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tying_utils import models
from tying_utils.corpora import store, two_role
from tying_utils.training import run_store
from tying_utils.training.config import TrainConfig

SETTINGS = two_role.Settings()
COUNTS = (
    *("vocab_size", "d_model", "n_layers", "n_heads", "context", "steps", "batch_size", "micro_batches"),
    *("table_snapshots", "checkpoint_every", "validation_every", "validation_sequences", "threads"),
)
FROM_ZERO = ("warmup_steps", "init_seed", "data_seed")
SCALES = ("input_scale", "output_scale", "weight_decay", "final_learning_rate")
POSITIVE = ("learning_rate", "clip", "adam_eps")
NOT_A_NUMBER: tuple[Any, ...] = (float("nan"), float("inf"), -1.0, True, "1", None)

BAD = [
    *((name, value) for name in COUNTS for value in (0, -1, 1.0, True, "1", None)),
    *((name, value) for name in FROM_ZERO for value in (-1, 1.0, True, "1", None)),
    *((name, value) for name in SCALES for value in NOT_A_NUMBER),
    *((name, value) for name in POSITIVE for value in (*NOT_A_NUMBER, 0, 0.0)),
    *((name, value) for name in ("beta1", "beta2") for value in (*NOT_A_NUMBER, 1.0)),
    *((name, value) for name in ("corpus", "arch", "device", "dtype") for value in ("unheard of", None)),
    *(("tied", value) for value in (1, "yes", None)),
    ("vocab_size", 256),  # the bytes alone, without a separator
    ("micro_batches", 3),  # of a batch of 8
    ("n_heads", 3),  # of width 128 / 3
    ("n_heads", 128),  # of width 1, which cannot rotate
    *(("path", value) for value in (math.nan, 3, True)),
    ("path", "a/folder"),  # of the corpus "python", which has none
    *(("language", value) for value in (two_role.Settings(), {}, {"seed": 3}, 3)),  # of text, which takes none
]


def make(**values: Any) -> TrainConfig:
    """A configuration from values of any type."""
    return TrainConfig(**values)


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{name}={value!r}" for name, value in BAD])
def test_bad_field_is_named(name, value):
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        make(**{name: value})


def test_local_text_needs_a_path():
    with pytest.raises(ValueError, match="path"):
        TrainConfig(corpus="text")


@pytest.mark.parametrize("name", ["input_scale", "output_scale"])
def test_scales_are_for_a_tied_table(name):
    with pytest.raises(ValueError, match=rf"{name}.*tied=True"):
        make(tied=False, **{name: 2.0})
    TrainConfig(tied=False, input_scale=1, output_scale=1.0)


def test_advice_on_micro_batches_does():
    with pytest.raises(ValueError, match="try 4"):
        TrainConfig(batch_size=8, micro_batches=12)
    TrainConfig(batch_size=8, micro_batches=4)


def test_fields_are_frozen_and_named():
    config = TrainConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        TrainConfig("python")  # type: ignore[misc]


def test_replace_checks_again_and_leaves_the_first():
    config = TrainConfig()
    assert config.replace(steps=7).steps == 7 and config.steps == 400
    assert config.replace(steps=7).replace(steps=400) == config
    with pytest.raises(ValueError, match=r"^steps:"):
        config.replace(steps=0)


LANGUAGES = st.builds(
    two_role.Settings,
    classes=st.sampled_from([2, 3, 4, 5, 60]),
    temperature=st.floats(0.05, 10) | st.integers(1, 3),
    zipf=st.floats(0, 3),
    agreement=st.floats(0, 1) | st.integers(0, 1),
    length=st.integers(1000, 10**7),
    seed=st.integers(0, 2**40),
    permuted=st.sampled_from([None, "source", "target"]),
)


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    number = st.floats(1e-9, 1e3)
    tied = draw(st.booleans())
    parts = draw(st.integers(1, 4))
    heads = draw(st.integers(1, 4))
    corpus = draw(st.sampled_from([name for name in store.NAMES if name not in ("text", "shards")]))
    language, vocab_size = None, st.integers(257, 10**6)
    if corpus == "two-role":
        language, vocab_size = draw(st.none() | LANGUAGES), st.just(240)
    values: dict[str, Any] = {
        "tied": tied,
        "micro_batches": parts,
        "batch_size": parts * draw(st.integers(1, 8)),
        "n_heads": heads,
        "d_model": 2 * heads * draw(st.integers(1, 32)),
        "corpus": corpus,
        "language": language,
        "arch": draw(st.sampled_from(models.ARCHITECTURES)),
        "vocab_size": draw(vocab_size),
        "steps": draw(st.integers(1, 10**4)),
        "table_snapshots": draw(st.integers(1, 40)),
        "checkpoint_every": draw(st.integers(1, 10**4)),
        "init_seed": draw(st.integers(0, 2**31)),
        "warmup_steps": draw(st.integers(0, 50)),
        **{name: draw(number) for name in ("learning_rate", "clip", "adam_eps", "weight_decay")},
        **{name: draw(st.floats(0, 1, exclude_max=True)) for name in ("beta1", "beta2")},
        **({"input_scale": draw(number | st.integers(0, 9)), "output_scale": draw(number)} if tied else {}),
    }
    return TrainConfig(**values)


@settings(max_examples=60)
@given(config=configs())
def test_dictionary_round_trip(config):
    values = config.as_dict()
    assert set(values) == {field.name for field in dataclasses.fields(TrainConfig)}
    assert TrainConfig.from_dict(values) == config
    assert (values["language"] is None) is (config.corpus != "two-role")
    through_json = TrainConfig.from_dict(json.loads(json.dumps(values)))
    assert through_json == config and hash(through_json) == hash(config)
    assert run_store.run_key(through_json, {}) == run_store.run_key(config, {})


def test_unknown_names_are_named():
    with pytest.raises(ValueError, match="learning, stepz"):
        TrainConfig.from_dict({"stepz": 3, "steps": 3, "learning": 1})
    with pytest.raises(ValueError, match="^language: zip: no field of two_role.Settings"):
        make(corpus="two-role", language={"zip": 1.0})


def test_a_language_may_be_left_out_or_be_plain_values():
    assert TrainConfig(corpus="two-role").language == two_role.Settings()
    assert TrainConfig(corpus="two-role") == make(corpus="two-role", language={}) == make(corpus="two-role", language=SETTINGS)
    plain = make(corpus="two-role", language={"classes": 8, "agreement": 1})
    assert plain.language == two_role.Settings(classes=8, agreement=1.0)
    assert plain.as_dict()["language"] == SETTINGS.as_dict() | {"classes": 8, "agreement": 1.0}
    assert TrainConfig().language is None and TrainConfig().as_dict()["language"] is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"language": 3}, "^language: two_role.Settings or None is needed, got 3"),
        ({"language": {"classes": 1}}, "^classes:"),
        ({"language": {"classes": 15}}, "^vocab_size: 15 equal classes .* try 2040 or 2055 tokens"),
        ({"vocab_size": 2049}, "^vocab_size: 16 equal classes .* try 2048 or 2064 tokens"),
        ({"path": "a/folder"}, "^path: 'two-role'"),
    ],
)
def test_bad_language_is_named(values, said):
    with pytest.raises(ValueError, match=said):
        make(corpus="two-role", **values)


def test_the_corpus_is_loaded_with_its_language(monkeypatch: pytest.MonkeyPatch):
    asked, found = [], SimpleNamespace(train=range(200), validation=range(200))
    monkeypatch.setattr(store, "load", lambda *names, **options: asked.append((*names, options)) or found)
    TrainConfig(corpus="text", path="a/folder", vocab_size=300).load_corpus()
    TrainConfig(corpus="two-role", language=SETTINGS, vocab_size=32).load_corpus()
    assert asked == [
        ("text", {"vocab_size": 300, "path": "a/folder", "language": None, "vocabulary": None}),
        ("two-role", {"vocab_size": 32, "path": None, "language": SETTINGS, "vocabulary": None}),
    ]


@settings(max_examples=60)
@given(config=configs())
def test_kept_steps_hold_both_ends_and_every_checkpoint(config):
    tables, whole = config.table_steps, config.checkpoint_steps
    assert tables == sorted(set(tables)) and whole == sorted(set(whole))
    assert tables[0] == 0 and tables[-1] == whole[-1] == config.steps
    assert set(whole) - {config.steps} == {s for s in range(1, config.steps) if s % config.checkpoint_every == 0}
    assert set(whole) <= set(tables)
    assert len(tables) <= config.table_snapshots + len(whole) + 2


def test_about_twenty_tables_are_kept_log_spaced():
    steps = TrainConfig(steps=10_000, checkpoint_every=10_000).table_steps
    assert 18 <= len(steps) <= 22
    ratios = [later / earlier for earlier, later in itertools.pairwise(steps[6:])]
    assert max(ratios) / min(ratios) < 1.2
    assert 15 <= len(TrainConfig().table_steps) <= 25


@pytest.mark.parametrize(
    ("whole", "name"),
    [*((5, name) for name in (*SCALES, *POSITIVE)), (0, "beta1"), (0, "beta2"), (0, "weight_decay"), (0, "input_scale")],
)
def test_equal_numbers_are_one_condition(whole, name):
    one, other = make(**{name: whole}), make(**{name: float(whole)})
    assert one == other
    assert run_store.run_key(one, {}) == run_store.run_key(other, {})


OTHER: dict[str, Any] = {"corpus": "wikitext-2", "arch": "gpt2", "tied": False, "device": "cpu", "dtype": "float32"}


@pytest.mark.parametrize(
    "name", [f.name for f in dataclasses.fields(TrainConfig) if f.name not in ("path", "language", "remedy", "start")]
)
def test_every_field_is_in_the_key(name):
    config = TrainConfig()
    value = getattr(config, name)
    changed = config.replace(**{name: OTHER[name] if name in OTHER else value / 2 if value in (0.9, 0.95) else value * 2 or 3})
    assert run_store.run_key(changed, {}) != run_store.run_key(config, {})


def test_the_text_is_in_the_key_and_its_place_is_not_nor_that_of_a_start():
    here, there = (TrainConfig(corpus="text", path=path) for path in ("here", "there"))
    assert run_store.run_key(here, {"sha256": "a"}) == run_store.run_key(there, {"sha256": "a"})
    assert run_store.run_key(here, {"sha256": "a"}) != run_store.run_key(here, {"sha256": "b"})
    after_here, after_there = (TrainConfig(start=start) for start in (here, there))
    assert run_store.run_key(after_here, {}) == run_store.run_key(after_there, {})


def test_every_setting_of_the_language_is_in_the_key():
    changes = {"classes": 8, "temperature": 1.0, "zipf": 0.5, "agreement": 1.0, "length": 2000, "seed": 6, "permuted": "source"}
    assert set(changes) == {field.name for field in dataclasses.fields(two_role.Settings)}
    languages = [SETTINGS, *(dataclasses.replace(SETTINGS, **{name: value}) for name, value in changes.items())]
    keys = {run_store.run_key(TrainConfig(corpus="two-role", language=language), {}) for language in languages}
    assert len(keys) == 8


def test_a_language_that_is_not_permuted_has_the_key_that_it_always_had():
    assert run_store.run_key(TrainConfig(corpus="two-role"), {"sha256": "a"}) == "df6d4616b7a8c78b"
    assert "permuted" not in SETTINGS.as_dict()


SMALL: dict[str, Any] = {"d_model": 16, "n_layers": 2, "n_heads": 2, "context": 32, "vocab_size": 300}
BEFORE = TrainConfig(**SMALL)


def test_a_start_is_plain_in_a_configuration_and_in_its_key():
    config = make(**SMALL, corpus="wikitext-2", start=BEFORE)
    values = config.as_dict()
    assert values["start"] == BEFORE.as_dict() and BEFORE.as_dict()["start"] is None
    through_json = TrainConfig.from_dict(json.loads(json.dumps(values)))
    assert through_json == config and hash(through_json) == hash(config)
    keys = {run_store.run_key(one, {}) for one in (config, through_json)}
    assert len(keys) == 1
    others = (BEFORE.replace(steps=7), BEFORE.replace(remedy="norm-match"), BEFORE.replace(start=BEFORE), None)
    assert len(keys | {run_store.run_key(config.replace(start=start), {}) for start in others}) == 5
    assert run_store.run_key(config.replace(start=None), {}) == run_store.run_key(make(**SMALL, corpus="wikitext-2"), {})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"start": 3}, "^start: a TrainConfig, a mapping of its fields or None is needed, got 3"),
        ({"start": {"stepz": 3}}, "^values: stepz: no field of TrainConfig; it has corpus, path"),
        ({"arch": "gpt2"}, "^arch: the run to start from ends with arch='olmo', got 'gpt2'; use 'olmo'"),
        ({"vocab_size": 301}, "^vocab_size: .* vocab_size=300, got 301"),
        ({"d_model": 32}, "^d_model: .* d_model=16, got 32"),
        ({"n_layers": 1}, "^n_layers: .* n_layers=2, got 1"),
        ({"n_heads": 1}, "^n_heads: .* n_heads=2, got 1"),
        ({"context": 16}, "^context: .* context=32, got 16"),
        ({"tied": False}, "^tied: .* tied=True, got False"),
        ({"start": BEFORE.replace(remedy="untie")}, "^tied: .* tied=False, got True"),
        ({"start": BEFORE.replace(remedy="projection")}, "^tied: .* tied=False, got True"),
        ({"corpus": "two-role", "language": {"classes": 4}}, "^corpus: the tokens of 'python', .* none of 'two-role'"),
        ({"remedy": "projection"}, "^remedy: 'projection' makes the tables of weights that a finished run does not hold"),
    ],
)
def test_a_start_that_does_not_fit_is_named(changes, said):
    with pytest.raises(ValueError, match=said):
        make(**{**SMALL, "start": BEFORE, **changes})


def test_a_run_that_ends_with_two_tables_goes_on_with_two():
    for remedy in ("untie", "projection", "spd-map"):
        make(**SMALL, tied=False, start=BEFORE.replace(remedy=remedy))
    make(**SMALL, start=BEFORE.replace(remedy="norm-match"), remedy={"name": "untie", "at": 0.5})


@pytest.mark.parametrize("values", [None, [1], {1: 2}, {"nope": 1}])
def test_what_names_no_fields_is_refused(values):
    with pytest.raises(ValueError, match="^values: .* of TrainConfig"):
        TrainConfig.from_dict(values)
    with pytest.raises(ValueError, match="^changes: nope: no field of TrainConfig; it has corpus, "):
        TrainConfig().replace(nope=1)
    with pytest.raises(ValueError, match="^language: "):
        two_role.Settings.from_dict(values)


@pytest.mark.parametrize("name", ["init_seed", "data_seed"])
def test_a_seed_that_torch_does_not_take_is_refused(name):
    with pytest.raises(ValueError, match=f"^{name}: an integer below"):
        TrainConfig().replace(**{name: 2**64})
