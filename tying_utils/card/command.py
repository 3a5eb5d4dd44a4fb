"""`tying-utils gpu`: check a card, or read what a check has found."""

import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tying_utils import card
from tying_utils.base.console import say
from tying_utils.card.plan import RESULTS, SCRATCH, SUMMARY, UNTIED_START, size_of

# Where each part ends, as a fraction of all minutes; what a part leaves, the next one has.
PARTS = {"facts": 0.06, "correct": 0.34, "fast": 0.56, "claims": 0.97}
_GRACE = 15.0  # seconds after the last minute, from which on a call into a library counts as one that never returns


def check(minutes: float, device: str, folder: Path, seeds: Sequence[int] | None = None, like: Path | None = None) -> int:
    """Run all parts on `device` within `minutes` into `folder` and print the summary last; return 1 if anything failed, else 0.

    With `seeds` the claims alone are asked for, with those; `like` is the folder of a check whose size of models is taken over.
    Nothing is written elsewhere. Raises ValueError, before anything is written, for less than a minute, seeds that are not each
    once from 0 to 999, a folder `like` without a size, a device that is not there, and a folder that cannot be written or holds
    results.
    """
    began = time.monotonic()
    if not 1 <= minutes <= 24 * 60:
        raise ValueError(f"--minutes: a number from 1 to 1440 is needed, got {minutes:g}")
    if seeds and (len(set(seeds)) < len(seeds) or not {*seeds} <= {*range(UNTIED_START)}):
        given = " ".join(map(str, seeds))
        raise ValueError(f"--seeds: numbers from 0 to {UNTIED_START - 1} are needed, each once, got {given}")
    size = None if like is None else size_of(like)
    if device not in ("cuda", "cpu"):
        raise ValueError(f"--device: 'cuda' or 'cpu' is needed, got {device!r}")
    if device == "cpu":  # so that no part uses a card that is there
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        why = "this torch was built without CUDA" if torch.version.cuda is None else "torch finds no card"
        raise ValueError(f"--device: no CUDA device ({why}); `--device cpu` tries the command itself at a small size")
    _empty(folder)
    scratch = folder / SCRATCH
    scratch.mkdir()
    _keep_inside(scratch)
    # Whatever ends a job tells it so first: what was found by then is summed up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _parts(minutes, torch.device(device), folder, began, seeds, size)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _empty(folder: Path) -> None:
    """Raise ValueError unless `folder` can be made, or is there, empty and writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = next(folder.iterdir(), None)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--out: {folder} cannot be written ({error.strerror}); give another folder") from error
    if there is not None:
        raise ValueError(f"--out: {folder} holds {there.name}; give a folder that is empty or not there")


def _keep_inside(scratch: Path) -> None:
    """Have what libraries keep of their own written into `scratch`."""
    inside = {
        "TYING_HOME": "home", "TMPDIR": "tmp", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton",
        "CUDA_CACHE_PATH": "cuda", "HF_HOME": "hf", "XDG_CACHE_HOME": "cache", "MPLCONFIGDIR": "mpl",
    }  # fmt: skip
    for name, place in inside.items():
        (scratch / place).mkdir()
        os.environ[name] = str((scratch / place).resolve())
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", "PYTHONDONTWRITEBYTECODE": "1"}
    # The processes that it starts import what this one does, from wherever it has it.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(card.__file__).parents[2]), *filter(None, sys.path)])
    tempfile.tempdir = None  # it remembers where it wrote last
    warnings.filterwarnings("ignore")  # of deprecations in libraries: what matters here is raised or measured


def _parts(
    minutes: float,
    device: Any,
    folder: Path,
    began: float,
    seeds: Sequence[int] | None = None,
    size: Mapping[str, int] | None = None,
) -> int:
    from transformers.utils import logging

    from tying_utils.card import claims, correct, facts, fast, summary
    from tying_utils.card.plan import Plan
    from tying_utils.card.setting import Setting

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    setting = Setting(device, folder / SCRATCH, smoke=device.type == "cpu")
    # The time that the libraries took to load counts for no part.
    plan = Plan(folder, max(0.25, minutes - (time.monotonic() - began) / 60))
    text = claims.Text(setting)

    def sum_up() -> None:
        words = [*summary.lines(plan.records), f"{(plan.clock() - began) / 60:.1f} of {minutes:g} minutes; {folder / RESULTS}"]
        say("\n" + "\n".join(words))  # first, for where the disk is full
        (folder / SUMMARY).write_text("\n".join(words) + "\n", encoding="utf-8")

    def give_up() -> None:
        try:
            text.stop()
            say("a task does not return from a library: given up")
            sum_up()
            shutil.rmtree(folder / SCRATCH, ignore_errors=True)
        finally:
            os._exit(1)

    # An alarm is heard between two lines of Python alone; a library that waits for the card for good hears none.
    last = threading.Timer(began + 60 * minutes + _GRACE - time.monotonic(), give_up)
    last.daemon = True
    last.start()
    try:
        parts = {"facts": facts.tasks(setting), "correct": correct.tasks(setting), "fast": fast.tasks(setting)}
        if seeds:
            parts = {"facts": islice(parts["facts"], 1)}  # which machine it is
        for name, tasks in {**parts, "claims": claims.tasks(setting, plan, text, seeds, size)}.items():
            plan.part(name, PARTS[name], tasks)
    finally:  # also where it is interrupted
        last.cancel()
        text.stop()
        sum_up()
    return 1 if summary.failed(plan.records) else 0
