"""What the tests share: a home of their own for every file they write, a small text, and a small training condition."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch.utils._python_dispatch import TorchDispatchMode

from tying_utils.training import train
from tying_utils.training import trainer as training
from tying_utils.training.config import TrainConfig
from tying_utils.training.run_store import Run

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same for the workers that xdist starts, and for what the tests start
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")  # its number, where there are several
# The files that take longest are begun first, so that no worker is left alone with one of them at the end.
LONGEST = ("test_notebooks", "test_card_command", "test_scale_explorer", "test_ranks", "test_interrupts", "test_kills")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-notebooks", action="store_true", help="train on the smoke profile in every notebook, not in three")


def pytest_configure() -> None:
    """Give each worker a core of its own: what it starts stays there, and the runs that it trains are trained one by one."""
    if WORKER and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(WORKER) % len(cores)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


SUBJECTS = ("the old sailor", "a young painter", "my neighbour", "the quiet clerk", "every gardener", "no astronomer")
VERBS = ("repairs", "remembers", "carries", "describes", "forgets", "admires", "measures", "borrows")
OBJECTS = ("a wooden boat", "the northern star", "an empty letter", "the broken clock", "seven lemons", "her first map")
PLACES = ("by the harbour", "under the bridge", "in the kitchen", "behind the library", "on the roof", "at the market")


def sentences(count: int, seed: int = 0) -> str:
    """`count` sentences of a small grammar, a line each; the same ones for the same seed."""
    draw = random.Random(seed)
    parts = SUBJECTS, VERBS, OBJECTS, PLACES
    return "".join(f"{' '.join(map(draw.choice, parts))}, {draw.randrange(1000)} times.\n" for _ in range(count))


@pytest.fixture(scope="session")
def grammar() -> Callable[..., str]:
    return sentences


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file that supports a vocabulary of 300 and more than one epoch at the size of `tiny`."""
    file = tmp_path_factory.mktemp("text") / "sentences.txt"
    file.write_text(sentences(800), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def tiny(text: Path) -> Callable[..., TrainConfig]:
    """A maker of training conditions that take a fraction of a second; keyword arguments change fields."""
    small = {
        "corpus": "text",
        "path": str(text),
        "vocab_size": 300,
        "d_model": 16,
        "n_layers": 1,
        "n_heads": 2,
        "context": 16,
        "steps": 12,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "warmup_steps": 3,
        "table_snapshots": 4,
        "checkpoint_every": 5,
        "validation_every": 5,
        "validation_sequences": 8,
        "device": "cpu",
    }

    def make(**changes: object) -> TrainConfig:
        return TrainConfig(**{**small, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty root for runs and token caches: nothing touches the checkout's data."""
    root = tmp_path / "home"
    root.mkdir()
    monkeypatch.setenv("TYING_HOME", str(root))
    return root


@pytest.fixture(scope="module")
def smoke_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of the file's own for the smoke profile; its runs and tokens are those of every such home, so none is made twice.

    The workers of xdist share them: the locks of runs and tokens have one wait for what another makes.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if WORKER else own
    data = tmp_path_factory.mktemp("home") / "data"
    data.mkdir()
    for name in ("runs", "corpora"):
        (shared / "smoke" / name).mkdir(parents=True, exist_ok=True)
        (data / name).symlink_to(shared / "smoke" / name, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TYING_HOME", str(data.parent))
        yield data.parent


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TrainConfig], Run]:
    """The uninterrupted run of a condition, trained once in a home of the module's own. Not to be written to."""
    home = tmp_path_factory.mktemp("home")
    made: dict[TrainConfig, Run] = {}

    def get(config: TrainConfig) -> Run:
        if config not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TYING_HOME", str(home))
                made[config] = train(config, progress=False)
        return made[config]

    return get


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[TrainConfig, int], None]:
    """Trains a condition, and interrupts it after so many steps."""

    def until(config: TrainConfig, last: int) -> None:
        step = training.Trainer.step

        def stopping(trainer: Any, number: int) -> torch.Tensor:
            if number > last:
                raise KeyboardInterrupt
            return step(trainer, number)

        with monkeypatch.context() as patch:
            patch.setattr(training.Trainer, "step", stopping)
            with pytest.raises(KeyboardInterrupt):
                train(config, progress=False)

    return until


@pytest.fixture
def held_by(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[TrainConfig], tuple[int, int]]:
    """Trains a condition and returns the bytes of tensor files that its run leaves, and the most there were on the way."""

    def run_of(config: TrainConfig) -> tuple[int, int]:
        most, unlink = 0, Path.unlink

        def held(folder: Path) -> int:
            return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))

        def watch(path: Path, *arguments: Any, **options: Any) -> None:
            nonlocal most  # just before a commit unlinks what it makes superfluous, there is most
            if path.suffix in (".parquet", ".safetensors"):
                most = max(most, held(path.parent))
            unlink(path, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", watch)
            kept = held(train(config, progress=False).folder)
        return kept, max(most, kept)

    return run_of


def damage(file: Path, how: str) -> bytes | None:
    """Damage `file` and return its bytes after that, None where it is gone."""
    if how == "missing":
        file.unlink()
        return None
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    damaged = {"flipped": flipped, "truncated": content[:middle], "emptied": b""}[how]
    file.write_bytes(damaged)
    return damaged


@pytest.fixture(scope="session")
def damaging() -> Callable[[Path, str], bytes | None]:
    return damage


class Watch(TorchDispatchMode):
    """Names every operation that makes the host wait for a GPU: those that give Python a number, or a size from values."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "_unique2"):
            self.waits.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="session")
def watching() -> type[Watch]:
    return Watch
