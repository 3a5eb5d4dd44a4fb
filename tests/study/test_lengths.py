"""The axis of training length: what its runs are, in which order they are trained, and who trains them."""

import itertools
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tying_utils import corpora
from tying_utils.study import lengths, train_lengths
from tying_utils.study.arms import EQUAL, SECOND_START, TIED, UNTIED, scaled
from tying_utils.study.lengths import ARMS, D64, D128, PROFILES, ROLES, TOKENS_PER_WEIGHT, Condition
from tying_utils.training import budget, run_store, sentinels
from tying_utils.training import trainer as training
from tying_utils.training.config import TrainConfig

TRIED, REMEDIES, AXIS = list(lengths.tried()), list(lengths.remedied()), list(lengths.axis())


def key(config: TrainConfig) -> str:
    return run_store.run_key(config, {"name": "x"})


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
@pytest.mark.parametrize("tokens", TOKENS_PER_WEIGHT)
def test_a_run_sees_as_many_tokens_as_asked_for(profile, tokens):
    weights = budget.parameters(profile.condition(UNTIED, tokens, 0).config)
    for arm in ARMS:
        config = profile.condition(arm, tokens, 0).config
        a_step = config.batch_size * config.context
        assert config.steps * a_step == pytest.approx(tokens * weights, rel=0.01, abs=a_step / 2)
        assert config.warmup_steps == pytest.approx(config.steps / 4, abs=1)
        assert len(config.checkpoint_steps) <= 17 and config.checkpoint_steps[-1] == config.steps
        assert 5 <= config.steps // config.validation_every <= 10
        assert config.language is None or config.steps * a_step <= config.language.length, "less than one epoch"


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_the_equal_arm_has_the_weights_of_two_tables(profile):
    counts = {arm: budget.parameters(profile.condition(arm, 1.3, 0).config) for arm in ARMS}
    assert counts[EQUAL] == pytest.approx(counts[UNTIED], rel=0.04)
    assert counts[SECOND_START] == counts[UNTIED] == profile.weights > counts[TIED] == counts[scaled(5)]


def test_arms_of_a_seed_differ_in_nothing_but_what_they_are():
    def others(config: TrainConfig) -> dict[str, Any]:
        return {name: value for name, value in config.as_dict().items() if name not in ("tied", "input_scale", "init_seed")}

    for profile, tokens, seed in itertools.product(PROFILES, TOKENS_PER_WEIGHT, range(5)):
        runs = {arm: profile.condition(arm, tokens, seed).config for arm in ARMS}
        plain = others(runs[TIED])
        assert plain["data_seed"] == seed and all(others(runs[arm]) == plain for arm in (UNTIED, SECOND_START, scaled(5)))
        assert others(runs[EQUAL]) == plain | profile.equal
        assert len({runs[arm].text for arm in ARMS}) == 1
        assert [runs[arm].tied for arm in ARMS] == [False, True, True, True, False]
        assert [runs[arm].input_scale for arm in ARMS] == [1, 1, 5, 1, 1]
        assert len({runs[arm].init_seed for arm in (TIED, UNTIED, SECOND_START)}) == 3
        assert runs[TIED].init_seed == runs[EQUAL].init_seed == runs[scaled(5)].init_seed


def test_seeds_of_a_profile_share_neither_start_nor_order():
    for profile, arm in itertools.product(PROFILES, ARMS):
        runs = [profile.condition(arm, 1.3, seed).config for seed in range(5)]
        assert len({run.init_seed for run in runs}) == len({run.data_seed for run in runs}) == 5
        assert len({run.text for run in runs}) == (5 if profile is ROLES else 1)


def test_the_order_of_training_is_rates_remedies_axis_and_wide_models_last():
    every = list(lengths.conditions())
    assert Counter(map(repr, every)) == Counter(map(repr, [*TRIED, *REMEDIES, *AXIS]))
    wide = [condition.profile == D128.name for condition in every]
    assert wide == sorted(wide)
    for profile in PROFILES:
        own = [condition for condition in every if condition.profile == profile.name]
        assert own == [condition for condition in [*TRIED, *REMEDIES, *AXIS] if condition.profile == profile.name]


def test_no_run_is_there_twice_but_those_that_chose_the_rate():
    on_axis = {key(condition.config): condition for condition in AXIS}
    assert len(on_axis) == len(AXIS), "the axis has a run twice"
    tried = {key(condition.config): condition for condition in TRIED}
    assert len(tried) == len(TRIED)
    assert {k for k in tried if k in on_axis} == {k for k, condition in tried.items() if condition.rate == 1}
    for k in tried.keys() & on_axis.keys():
        assert tried[k] == on_axis[k]
    assert {condition.tokens_per_weight for condition in tried.values()} <= set(TOKENS_PER_WEIGHT)


def test_the_rate_multiplies_the_learning_rate_and_nothing_else():
    profiles = {profile.name: profile for profile in PROFILES}
    assert {condition.profile for condition in TRIED} == {D64.name, D128.name}
    for condition in TRIED:
        own = profiles[condition.profile].condition(condition.arm, condition.tokens_per_weight, condition.seed).config
        assert condition.config == own.replace(learning_rate=own.learning_rate * condition.rate)


def test_the_rate_falls_with_the_length_and_is_one_for_all_arms():
    for profile in PROFILES:
        rates = [{profile.condition(arm, length, 0).config.learning_rate for arm in ARMS} for length in TOKENS_PER_WEIGHT]
        assert all(len(of_arms) == 1 for of_arms in rates)
        values = [rate for (rate,) in rates]
        assert values == sorted(values, reverse=True)
    for length in TOKENS_PER_WEIGHT:
        narrow, wide = (profile.condition(TIED, length, 0).config.learning_rate for profile in (D64, D128))
        assert narrow == 2 * wide


def test_what_is_finished_is_a_whole_axis_of_fewer_seeds():
    """A seed of a profile is begun when its seeds before are whole, and it goes from short to long."""
    for profile in PROFILES:
        own = [(run.seed, run.tokens_per_weight, run.arm) for run in AXIS if run.profile == profile.name]
        seeds = range(len(own) // (len(TOKENS_PER_WEIGHT) * len(ARMS)))
        assert own == list(itertools.product(seeds, TOKENS_PER_WEIGHT, ARMS))
    assert sorted(TOKENS_PER_WEIGHT) == list(TOKENS_PER_WEIGHT)
    blocks = [profile for profile, _ in itertools.groupby((run.profile, run.seed) for run in AXIS)]
    assert len(blocks) == len(set(blocks)), "a seed of a profile is left unfinished for another"


def test_there_are_seeds_enough():
    seeds = Counter((run.profile, run.arm) for run in AXIS if run.tokens_per_weight == 20)
    for arm in ARMS:
        assert seeds[D64.name, arm] >= 5 and seeds[ROLES.name, arm] >= 5 and seeds[D128.name, arm] >= 2


@pytest.mark.parametrize(
    ("profile", "arm", "tokens", "seed", "expected"),
    [
        (D64, UNTIED, 20.0, 0, "cfb7a99fa8738a81"),
        (D64, TIED, 1.3, 0, "3dfa8ab82c1ef641"),
        (ROLES, TIED, 4.0, 3, "a9044a650f8c8938"),
        (D128, EQUAL, 20.0, 1, "fd6571a57257cc05"),
    ],
)
def test_runs_of_days_keep_their_keys(profile, arm, tokens, seed, expected):
    assert key(profile.condition(arm, tokens, seed).config) == expected


def test_an_arm_that_is_none_is_named():
    with pytest.raises(
        ValueError, match=r"^arm: 'input x2' is no `Arm` of the axis of length; choose one of untied, tied, input x5"
    ):
        D64.condition(scaled(2), 1.3, 0)
    with pytest.raises(ValueError, match=r"^arm: 'tied' is no `Arm`"):
        D64.condition("tied", 1.3, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [math.nan, math.inf, 0, -1.3, "1", None])
def test_a_length_that_is_none_is_named(length: Any) -> None:
    with pytest.raises(ValueError, match=r"^tokens_per_weight: a finite number"):
        D64.condition(TIED, length, 0)
    with pytest.raises(ValueError, match=r"^rate: a finite number"):
        D64.condition(TIED, 1.3, 0, length)
    with pytest.raises(ValueError, match=r"^seed: an integer"):
        D64.condition(TIED, 1.3, 0.5)  # type: ignore[arg-type]


# Training them


@pytest.fixture
def small(home: Path, tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> list[Condition]:
    """Three runs that take the place of the axis."""
    runs = [Condition("tiny", TIED, 0.1, seed, 1.0, tiny(init_seed=seed)) for seed in range(3)]
    monkeypatch.setattr(lengths, "conditions", lambda: iter(runs))
    monkeypatch.setattr(lengths, "ON_PACKAGES", ())  # which are 300 MB
    return runs


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Init seed and number of each step, as they are taken."""
    steps, step = [], training.Trainer.step

    def noting(trainer: Any, number: int) -> Any:
        steps.append((trainer.config.init_seed, number))
        return step(trainer, number)

    monkeypatch.setattr(training.Trainer, "step", noting)
    return steps


@pytest.fixture
def elsewhere() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def fingerprint(condition: Condition) -> dict[str, Any]:
    return condition.config.load_corpus().fingerprint


def test_runs_are_trained_in_order_once(small, trained):
    made = list(train_lengths.train_next(progress=False))
    assert [condition for condition, _ in made] == small
    assert trained == [(seed, number) for seed in range(3) for number in range(1, 13)]
    for condition, run in made:
        assert run.config == condition.config
        assert run_store.find(condition.config, fingerprint(condition)) is not None
    assert list(train_lengths.train_next(progress=False)) == [] and len(trained) == 36


def test_what_is_finished_is_passed_over(small, trained):
    training.train(small[1].config, progress=False)
    assert [condition for condition, _ in train_lengths.train_next(progress=False)] == [small[0], small[2]]
    assert len(trained) == 36


def test_what_another_process_trains_is_passed_over(small, trained, elsewhere):
    lock = run_store.run_folder(small[0].config, fingerprint(small[0])).with_suffix(".lock")
    lock.parent.mkdir(parents=True)
    held = FileLock(lock, thread_local=False)
    elsewhere.submit(held.acquire).result()
    assert [condition for condition, _ in train_lengths.train_next(progress=False)] == small[1:]
    elsewhere.submit(held.release).result()
    assert [condition for condition, _ in train_lengths.train_next(progress=False)] == small[:1]
    assert len(trained) == 36


def test_of_two_that_see_a_run_free_one_takes_it(small, trained, elsewhere, monkeypatch):
    """The other does not wait for it: it takes the next."""
    train, others = training.train, []

    def late(config: TrainConfig, **options: Any) -> Any:
        if config == small[0].config and not others:  # before it has the run's lock, the other looks for work, too
            others.append(None)
            others[0] = elsewhere.submit(next, train_lengths.train_next(progress=False)).result()[0]
        return train(config, **options)

    monkeypatch.setattr(training, "train", late)
    own = [condition for condition, _ in train_lengths.train_next(progress=False)]
    assert (own, others) == ([small[0], small[2]], [small[1]])
    assert len(trained) == 36


def test_two_processes_share_the_work(small, trained):
    start = threading.Barrier(2)

    def work() -> list[Condition]:
        start.wait()
        return [condition for condition, _ in train_lengths.train_next(progress=False)]

    with ThreadPoolExecutor(2) as pool:
        parts = [worker.result() for worker in [pool.submit(work) for _ in range(2)]]
    assert Counter(condition.config.init_seed for part in parts for condition in part) == {0: 1, 1: 1, 2: 1}
    assert Counter(trained) == {(seed, number): 1 for seed in range(3) for number in range(1, 13)}


def test_an_interrupted_run_is_gone_on_with(small, trained, monkeypatch):
    step = training.Trainer.step

    def stopping(trainer: Any, number: int) -> Any:
        if (trainer.config.init_seed, number) == (1, 8):
            raise KeyboardInterrupt
        return step(trainer, number)

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "step", stopping)
        runs = train_lengths.train_next(progress=False)
        assert next(runs)[0] == small[0]
        with pytest.raises(KeyboardInterrupt, match="step 5 is kept"):
            next(runs)
    trained.clear()
    assert [condition for condition, _ in train_lengths.train_next(progress=False)] == small[1:]
    assert trained == [(1, number) for number in range(6, 13)] + [(2, number) for number in range(1, 13)]


def test_a_text_too_short_for_the_longest_run_says_which_lengths_fit(home, tmp_path, grammar, monkeypatch):
    for package in ("one", "other"):
        (tmp_path / "packages" / package).mkdir(parents=True)
        (tmp_path / "packages" / package / "__init__.py").write_text(grammar(800 if package == "one" else 40), encoding="utf-8")
        (tmp_path / "packages" / f"{package}-1.dist-info").mkdir()
        (tmp_path / "packages" / f"{package}-1.dist-info" / "METADATA").write_text(f"Name: {package}\nVersion: 1\n")
        (tmp_path / "packages" / f"{package}-1.dist-info" / "RECORD").write_text(f"{package}/__init__.py,,\n")
    monkeypatch.setenv("TYING_TEXTS", str(tmp_path))
    small = {"vocab_size": 300, "d_model": 16, "n_layers": 1, "context": 16}
    profile = lengths.LongProfile(name="small", purpose="", corpus="packages", seeds=(0,), training=small)
    monkeypatch.setattr(lengths, "ON_PACKAGES", (profile,))
    held = len(corpora.load("packages", vocab_size=300).train)
    words = (
        rf"^packages: what is installed here makes {held:,} tokens .* at {profile.weights:,} weights 0.13, 0.4, 1.3 tokens per "
    )
    with pytest.raises(ValueError, match=words):
        next(train_lengths.train_next(progress=False))
    assert not (home / "data" / "runs").exists(), "nothing was trained"


def test_a_run_that_diverges_is_named_and_the_next_one_is_trained(small, trained, monkeypatch):
    first, train = small[0].config, training.train

    def losing(config: TrainConfig, **options: Any) -> Any:
        if config == first:
            raise sentinels.Diverged(3, "the loss is nan", 0, None, "rate")
        return train(config, **options)

    monkeypatch.setattr(training, "train", losing)
    with pytest.warns(UserWarning, match="step 3: the loss is nan"):
        done = [condition for condition, _ in train_lengths.train_next(progress=False)]
    assert done == small[1:]
