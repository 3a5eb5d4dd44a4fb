import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from tying_utils.corpora.two_role import Language, Settings

DEFAULT = Language(512)


def make(vocab_size: int = 48, **values: Any) -> Language:
    return Language(vocab_size, Settings(**{"classes": 4, **values}))


def chain(language: Language) -> np.ndarray:
    """P(next | current) of tokens, (V, V), from the definition, a pair at a time."""
    V, p, M = language.vocab_size, language.weights, language.affinity
    rows = np.empty((V, V))
    for w, after in itertools.product(range(V), repeat=2):
        rows[w, after] = p[after] * np.exp(M[language.source[w], language.target[after]])
    return rows / rows.sum(axis=1, keepdims=True)


def stationary(rows: np.ndarray) -> np.ndarray:
    """Of a chain (V, V), by walking it until it no longer changes."""
    share = np.full(len(rows), 1 / len(rows))
    for _ in range(5000):
        share = share @ rows
    return share


@st.composite
def languages(draw: st.DrawFn, tokens: int = 64) -> Language:
    classes = draw(st.integers(2, 8))
    settings = Settings(
        classes=classes,
        temperature=draw(st.floats(0.05, 10)),
        zipf=draw(st.floats(0, 3)),
        agreement=draw(st.floats(0, 1)),
        seed=draw(st.integers(0, 2**40)),
        permuted=draw(st.sampled_from([None, "source", "target"])),
    )
    return Language(classes * draw(st.integers(2, tokens // classes)), settings)


@examples(max_examples=60)
@given(language=languages())
def test_every_language_is_one(language):
    V, settings = language.vocab_size, language.settings
    for labels in (language.source, language.target):
        assert labels.shape == (V,) and labels.dtype == np.int64
        assert np.bincount(labels).tolist() == [V // settings.classes] * settings.classes
    if settings.permuted is None:
        assert (language.source == language.target).sum() >= round(settings.agreement * V)
    assert language.weights.shape == language.unigram.shape == (V,)
    assert language.affinity.shape == (settings.classes, settings.classes)
    assert language.transition.shape == (settings.classes, V)
    assert language.transition.min() > 0 and language.unigram.min() > 0
    np.testing.assert_allclose(language.weights.sum(), 1)
    np.testing.assert_allclose(language.transition.sum(axis=1), 1)
    np.testing.assert_allclose(language.unigram.sum(), 1)
    np.testing.assert_allclose(language.unigram @ language.transition[language.source], language.unigram)
    # What came before cannot make the next token less certain.
    assert 0 < language.entropy_rate <= language.unigram_entropy * (1 + 1e-12) <= np.log(V) * (1 + 2e-12)
    tokens = language.sample(50)
    assert tokens.dtype == np.int64 and tokens.min() >= 0 and tokens.max() < V
    assert np.isfinite(language.loss(tokens[None]))


@pytest.mark.parametrize("values", [{}, {"temperature": 2.0}, {"zipf": 0.0, "agreement": 0.5}, {"temperature": 0.2, "seed": 3}])
def test_exact_numbers_are_those_of_the_whole_chain(values):
    language = make(**values)
    rows = chain(language)
    np.testing.assert_allclose(language.transition[language.source], rows, rtol=1e-12)
    unigram = stationary(rows)
    np.testing.assert_allclose(language.unigram, unigram, rtol=1e-9)
    assert language.entropy_rate == pytest.approx(-(unigram[:, None] * rows * np.log(rows)).sum(), rel=1e-9)
    assert language.unigram_entropy == pytest.approx(-(unigram * np.log(unigram)).sum(), rel=1e-9)


def test_classes_that_are_hardly_ever_left_are_still_exact():
    language = make(8, temperature=0.05)
    assert language.transition.min() < 1e-16  # where 1 less a probability no longer shows it
    np.testing.assert_allclose(language.unigram @ language.transition[language.source], language.unigram, rtol=1e-12)


def test_without_roles_the_next_token_is_as_frequent_as_ever():
    language = make(temperature=1e6)
    np.testing.assert_allclose(language.unigram, language.weights, rtol=1e-4)
    assert language.entropy_rate == pytest.approx(language.unigram_entropy, rel=1e-9)


@pytest.mark.parametrize("zipf", [0.0, 0.5, 1.0, 2.0])
def test_weights_fall_with_rank_as_asked(zipf):
    weights = np.sort(make(480, zipf=zipf).weights)[::-1]
    slope, _ = np.polyfit(np.log(np.arange(1, 481)), np.log(weights), 1)
    assert slope == pytest.approx(-zipf, abs=1e-9)


def test_frequency_is_independent_of_both_roles():
    """Over seeds, the correlation of rank with either role has mean 0 and the variance that chance has, 1 / (V - 1)."""
    found = [Language(512, Settings(seed=seed)) for seed in range(200)]
    for role in ("source", "target"):
        correlations = [np.corrcoef(getattr(one, role), one.weights.argsort().argsort())[0, 1] for one in found]
        assert abs(np.mean(correlations)) < 4 / np.sqrt(511 * 200)
        assert np.std(correlations) == pytest.approx(1 / np.sqrt(511), rel=0.25)


@pytest.mark.parametrize("agreement", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_roles_agree_as_asked_and_by_chance_beside(agreement):
    """And stay balanced. Of the tokens that are not asked to agree, one in 16 does by chance."""
    shares = []
    for seed in range(20):
        language = Language(512, Settings(agreement=agreement, seed=seed))
        assert set(np.bincount(language.source)) == set(np.bincount(language.target)) == {32}
        shares.append((language.source == language.target).mean())
    assert min(shares) >= round(agreement * 512) / 512
    assert np.mean(shares) == pytest.approx(agreement + (1 - agreement) / 16, abs=0.01)


def test_roles_are_independent_without_agreement():
    """Each pair of classes holds as many tokens as chance gives it: chi-square with 15 * 15 degrees of freedom."""
    found = []
    for seed in range(20):
        language = Language(1024, Settings(seed=seed))
        counts = np.zeros((16, 16))
        np.add.at(counts, (language.source, language.target), 1)
        found.append(((counts - 4) ** 2 / 4).sum())
    # The variance of the sum over seeds is 20 * 2 * 225.
    assert abs(np.sum(found) - 20 * 225 * 1024 / 1023) < 4 * np.sqrt(20 * 2 * 225)


def test_a_setting_changes_what_it_decides_and_nothing_else():
    base = Language(512)
    arrays = ("source", "target", "weights", "affinity")
    for change, decided in (
        ({"agreement": 0.5}, {"target"}),
        ({"zipf": 0.5}, {"weights"}),
        ({"temperature": 1.0}, {"affinity"}),
        ({"length": 1000}, set()),
        ({"seed": 1}, set(arrays)),
        ({"permuted": "source"}, {"source"}),
        ({"permuted": "target"}, {"target"}),
    ):
        other = Language(512, dataclasses.replace(base.settings, **change))
        assert {name for name in arrays if not np.array_equal(getattr(base, name), getattr(other, name))} == decided
    np.testing.assert_allclose(Language(512, Settings(temperature=0.8)).affinity, base.affinity / 2)
    # Who agrees at one share agrees at every larger one.
    half, most = (Language(512, Settings(agreement=share)) for share in (0.5, 0.75))
    agreeing = half.source == half.target
    assert (agreeing & (most.source == most.target)).sum() >= 256


@pytest.mark.parametrize("role", ["source", "target"])
def test_a_permuted_role_is_dealt_anew_to_as_many_tokens_of_each_class(role):
    """The other role, the weights and the affinities stay, and so, but for chance, does how much there is to know."""
    moved, entropies = [], []
    for seed in range(20):
        before, after = (Language(512, Settings(seed=seed, permuted=permuted)) for permuted in (None, role))
        assert np.array_equal(np.bincount(getattr(after, role)), np.bincount(getattr(before, role)))
        moved.append((getattr(after, role) != getattr(before, role)).mean())
        entropies.append(after.entropy_rate - before.entropy_rate)
    assert np.mean(moved) == pytest.approx(15 / 16, abs=0.02), "one token in 16 is dealt its own class again"
    assert abs(np.mean(entropies)) < 4 * np.std(entropies) / np.sqrt(20)


def test_with_agreement_the_role_that_is_kept_is_that_of_the_language_before():
    before, after = (Language(512, Settings(agreement=1.0, permuted=permuted)) for permuted in (None, "source"))
    assert np.array_equal(before.target, after.target) and np.array_equal(before.source, before.target)
    assert (after.source == after.target).mean() < 0.2


def test_bigrams_come_as_often_as_the_language_says():
    language = make(24, temperature=1.0)
    tokens = language.sample(200_000)
    counts = np.zeros((24, 24))
    np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
    expected = counts.sum(axis=1, keepdims=True) * chain(language)
    statistic = ((counts - expected) ** 2 / expected)[expected >= 5].sum()
    freedom = (expected >= 5).sum() - 24
    assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)


def test_samples_start_from_the_stationary_distribution():
    language = make(8, zipf=2.0)
    starts = np.bincount([language.sample(1, seed)[0] for seed in range(4000)], minlength=8)
    expected = 4000 * language.unigram
    assert ((starts - expected) ** 2 / expected)[expected >= 5].sum() < 7 + 4 * np.sqrt(14)


def test_samples_are_fixed_by_their_seeds():
    tokens = DEFAULT.sample(3000)
    assert np.array_equal(tokens, Language(512, Settings()).sample(3000, 0))
    assert np.array_equal(tokens[:70], DEFAULT.sample(70)), "a shorter sample begins a longer one"
    for other in (DEFAULT.sample(3000, 1), Language(512, Settings(seed=1)).sample(3000)):
        assert (other == tokens).mean() < 0.2
    assert tokens[:8].tolist() == [471, 99, 129, 116, 284, 92, 480, 317], "raise FORMAT where other tokens come"


def test_loss_is_the_entropy_rate_in_the_long_run():
    tokens = DEFAULT.sample(400_000, 7)
    surprise = -np.log(DEFAULT.transition[DEFAULT.source[tokens[:-1]], tokens[1:]])
    assert DEFAULT.loss(tokens[None]) == pytest.approx(surprise.mean(), rel=1e-12)
    # The bound allows for some correlation of neighbouring terms.
    assert abs(DEFAULT.loss(tokens[None]) - DEFAULT.entropy_rate) < 5 * surprise.std() / np.sqrt(len(surprise))


def test_loss_is_over_windows():
    windows = DEFAULT.sample(33 * 40).reshape(40, 33)
    surprise = [-np.log(DEFAULT.transition[DEFAULT.source[row[i]], row[i + 1]]) for row in windows for i in range(32)]
    assert DEFAULT.loss(windows) == pytest.approx(np.mean(surprise), rel=1e-12)
    assert DEFAULT.loss(windows.astype(np.uint16)) == DEFAULT.loss(windows)


@pytest.mark.parametrize("role", ["source", "target"])
def test_no_other_classes_explain_the_text_as_well(role):
    language = make(64, classes=8)
    windows = language.sample(20_000).reshape(100, 200)
    for shift in range(1, 8):
        other = make(64, classes=8)
        other.__dict__[role] = (getattr(language, role) + shift) % 8
        assert other.loss(windows) > language.loss(windows) + 0.1


def test_equal_languages_are_one_key():
    assert Settings(agreement=1, zipf=1, temperature=2) == Settings(agreement=1.0, zipf=1.0, temperature=2.0)
    assert repr(Settings(agreement=1)) == repr(Settings(agreement=1.0))
    assert len({Settings(), Settings(), Settings(seed=1)}) == 2
    assert len({Language(512), Language(512, Settings()), Language(256)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().seed = 3  # type: ignore[misc]


def test_settings_round_trip():
    for settings in (Settings(classes=8, agreement=0.5, seed=3), Settings(permuted="target")):
        assert Settings.from_dict(settings.as_dict()) == Settings.from_dict(dataclasses.asdict(settings)) == settings
    assert Settings.from_dict({}) == Settings()
    with pytest.raises(ValueError, match=r"^language: seeds, zip: no field of two_role.Settings"):
        Settings.from_dict({"zip": 1.0, "seeds": 3, "seed": 1})


NOT_A_NUMBER: tuple[Any, ...] = (float("nan"), float("inf"), -0.1, True, "1", None, 10**400)
BAD = [
    *(("classes", value) for value in (1, 0, -1, 16.0, True, "16", None)),
    *(("length", value) for value in (999, 0, -1, 1e5, True, "1000", None)),
    *(("seed", value) for value in (-1, 1.0, True, "1", None)),
    *(("temperature", value) for value in (*NOT_A_NUMBER, 0, 0.01)),
    *(("zipf", value) for value in (*NOT_A_NUMBER, 11)),
    *(("agreement", value) for value in (*NOT_A_NUMBER, 1.1)),
    *(("permuted", value) for value in ("both", "", True, 0)),
    *(("vocab_size", value) for value in (0, 3, -512, 512.0, True, "512", None)),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{name}={str(value)[:9]}" for name, value in BAD])
def test_bad_setting_is_named(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: .* is needed, got "):
        Language(value) if name == "vocab_size" else Settings(**{name: value})


@pytest.mark.parametrize(
    ("vocab_size", "classes", "advice"),
    [(500, 16, (496, 512)), (512, 512, (1024, 1536)), (20, 16, (32, 48)), (16, 16, (32, 48))],
)
def test_a_vocabulary_that_the_classes_do_not_divide_is_named_and_the_advice_does(vocab_size, classes, advice):
    with pytest.raises(
        ValueError, match=rf"^vocab_size: {classes} .* {vocab_size} tokens; try {advice[0]} or {advice[1]} tokens"
    ):
        Language(vocab_size, Settings(classes=classes))
    for size in advice:
        Language(size, Settings(classes=classes))


@pytest.mark.parametrize(
    ("windows", "said"),
    [
        (np.zeros(5, int), r"needed, got int64 \(5,\)"),
        (np.zeros((3, 1), int), r"needed, got int64 \(3, 1\)"),
        (np.zeros((0, 5), int), r"needed, got int64 \(0, 5\)"),
        (np.zeros((3, 5)), r"needed, got float64 \(3, 5\)"),
        (np.array([[0, 512]]), "0 to 511 are needed, got 0 to 512"),
        (np.array([[-1, 3]]), "0 to 511 are needed, got -1 to 3"),
    ],
)
def test_bad_windows_are_named(windows, said):
    with pytest.raises(ValueError, match=rf"^windows: .*{said}"):
        DEFAULT.loss(windows)


@pytest.mark.parametrize(("name", "value"), [("length", 0), ("length", 10.0), ("seed", -1), ("seed", True)])
def test_bad_sample_is_named(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: an integer of at least"):
        DEFAULT.sample(**{"length": 10, name: value})
