"""Train the axis of length, in as many processes as there are cores to spare."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tying_utils.base import paths
from tying_utils.base.names import PACKAGES
from tying_utils.corpora.corpus import Corpus
from tying_utils.study import lengths
from tying_utils.study.arms import TIED
from tying_utils.study.lengths import TOKENS_PER_WEIGHT, Condition, LongProfile
from tying_utils.training import run_store, sentinels
from tying_utils.training import trainer as training
from tying_utils.training.run_store import Run


def train_next(*, progress: bool = True) -> Iterator[tuple[Condition, Run]]:
    """Train the runs that are neither finished nor in training elsewhere, in order, and yield each as it ends.

    Several processes share the work, also on several machines that see one folder; an interrupted run goes on. One that
    diverges is named in a warning, and the next one is trained. Raises ValueError as `training.train` does, and before anything
    is trained where the installed packages are too short a text for the longest run.
    """
    known: dict[Any, dict[str, Any]] = {}
    for profile in lengths.ON_PACKAGES:
        known[profile.config(TIED, 0).text] = _long_enough(profile).fingerprint
    for condition in lengths.conditions():
        config = condition.config
        if config.text not in known:
            known[config.text] = config.load_corpus().fingerprint
        folder = run_store.run_folder(config, known[config.text])
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Claimed until it is trained: of two processes that saw it free together, one would wait until the other has ended.
        with _held(folder.with_suffix(".claim")) as claimed:
            with _held(folder.with_suffix(".lock")) as free:
                pass  # let go at once: training takes it
            if not (claimed and free) or run_store.is_finished(config, known[config.text]):
                continue
            try:
                run = training.train(config, progress=progress)
            except sentinels.Diverged as lost:
                warnings.warn(f"{condition.profile}, {condition.arm.name}, seed {condition.seed}: {lost}", stacklevel=2)
                continue
        yield condition, run


def _long_enough(profile: LongProfile) -> Corpus:
    """Return the text of `profile`. Raises ValueError unless its longest run reads none of it twice."""
    corpus = profile.config(TIED, 0).load_corpus()
    fitting = [length for length in TOKENS_PER_WEIGHT if length * profile.weights < len(corpus.train)]
    if len(fitting) < len(TOKENS_PER_WEIGHT):
        raise ValueError(
            f"packages: what is installed here makes {len(corpus.train):,} tokens to train on; at {profile.weights:,} weights "
            f"{', '.join(f'{length:g}' for length in fitting) or 'no'} tokens per weight fit, of "
            f"{', '.join(f'{length:g}' for length in TOKENS_PER_WEIGHT)}; install more packages, or make a folder of them "
            f"at {paths.texts() / PACKAGES}"
        )
    return corpus


@contextmanager
def _held(lock: Path) -> Iterator[bool]:
    """Hold `lock` unless another process does, and say whether it is held."""
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(lock, timeout=0))
        except Timeout:
            yield False
        else:
            yield True
