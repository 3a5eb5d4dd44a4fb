"""An interrupt, as by a notebook's stop button: what is kept stays usable, and a sentence says what it is."""

import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs
import pytest

from tying_utils import __main__ as command
from tying_utils.base import files
from tying_utils.measures import lens
from tying_utils.training import train, train_all, trainer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A notebook's kernel with a home of its own: `kernel.run(code)` gives what it printed and the error, name and words."""
    from jupyter_client.manager import KernelManager

    home = tmp_path_factory.mktemp("home")
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env={**os.environ, "TYING_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=120)

    class Kernel:
        home: Path

        def run(self, code: str, *, until: Any = None) -> tuple[str, str]:
            asked, printed, error, sent = client.execute(code), [], "", until is None
            for _ in range(3000):
                if not sent and until():
                    manager.interrupt_kernel()
                    sent = True
                try:
                    message = client.get_iopub_msg(timeout=0.1)
                except queue.Empty:  # nothing said yet
                    continue
                if message["parent_header"].get("msg_id") != asked:
                    continue
                content = message["content"]
                if message["msg_type"] == "stream":
                    printed.append(content["text"])
                elif message["msg_type"] == "error":
                    error = f"{content['ename']}: {content['evalue']}"
                elif message["msg_type"] == "status" and content["execution_state"] == "idle":
                    assert sent, "it ended before it was interrupted"
                    return "".join(printed), error
            raise AssertionError("the kernel hangs")

    made = Kernel()
    made.home = home
    yield made
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def committed(home: Path, count: int = 1) -> Any:
    def whether() -> bool:
        return sum((files.read_json(path) or {}).get("step", 0) > 0 for path in home.rglob("run.json")) >= count

    return whether


@pytest.mark.notebook
def test_a_kernel_interrupted_while_it_trains_says_what_is_kept_and_goes_on_from_there(kernel, tiny, trained_once, tmp_path):
    config = tiny(steps=1200, checkpoint_every=40, table_snapshots=5)
    values = repr(json.dumps(config.as_dict()))
    code = "import json\nfrom tying_utils.training import TrainConfig, train\n"
    code += f"config = TrainConfig.from_dict(json.loads({values}))\n"
    _, error = kernel.run(f"{code}train(config, progress=False)", until=committed(kernel.home))
    assert (
        error.startswith("KeyboardInterrupt: training was interrupted; step ") and "the same call goes on from there" in error
    )
    (path,) = kernel.home.rglob("run.json")
    record = files.read_json(path)
    assert record is not None and f"step {record['step']} is kept in {path.parent}" in error and not record["finished"]
    printed, error = kernel.run("run = train(config, progress=False)\nprint(json.dumps(run.record['files']))")
    assert error == ""
    assert json.loads(printed.splitlines()[-1]) == jobs.result(jobs.train, tmp_path / "undisturbed", config)


@pytest.mark.notebook
def test_a_kernel_interrupted_while_it_fits_a_lens_leaves_the_model_as_it_was(kernel):
    setup = """
import torch, time
from pathlib import Path
from tying_utils import models
from tying_utils.measures import lens
model = models.build(tied=True, vocab_size=64, d_model=16, n_layers=2, n_heads=2, context=16, seed=0).train()
tokens = torch.randint(64, (200, 16), generator=torch.Generator().manual_seed(0))
before = {name: value.clone() for name, value in model.state_dict().items()}
hooks = lambda: sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())
lens.train_lens(model, tokens, steps=1, progress=False)  # transformers hooks itself in at its first reading, for good
hooked = hooks()
print("ready")
"""
    assert kernel.run(setup) == ("ready\n", "")
    began = time.monotonic()
    _, error = kernel.run(
        "lens.train_lens(model, tokens, steps=100_000, progress=False)", until=lambda: time.monotonic() > began + 3
    )
    assert error.startswith("KeyboardInterrupt: the lens was interrupted after ") and error.endswith("the model is as it was")
    assert "of 100000 steps and is dropped" in error
    looked = """
same = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
print(same, model.training, torch.is_grad_enabled(), any(p.grad is not None for p in model.parameters()), hooks() == hooked)
tuned = lens.train_lens(model, tokens, steps=5, progress=False)
print(len(lens.kl_by_layer(model, tuned, tokens[:4])))
"""
    assert kernel.run(looked) == ("True True True False True\n3\n", "")


@pytest.mark.notebook
def test_a_kernel_interrupted_in_a_sweep_says_how_many_runs_are_finished(kernel):
    code = """
import os
if hasattr(os, "sched_setaffinity"):  # all cores, so that runs are trained side by side, also where the tests are kept to one
    os.sched_setaffinity(0, range(os.cpu_count()))
from tying_utils.base.names import TWO_ROLE
from tying_utils.study.study import SWEEP, Shard, Study
study = Study("smoke", TWO_ROLE, progress=False)
"""
    kernel.run(code)
    sweep = kernel.home / "data" / "runs"
    earlier = len(list(sweep.glob("*/run.json")))

    def some() -> bool:
        return len(list(sweep.glob("*/run.json"))) >= earlier + 3

    _, error = kernel.run('study["sweep_losses"]', until=some)
    assert error.startswith("KeyboardInterrupt: training was interrupted with ") and "of 14 runs finished" in error
    done = int(error.split("interrupted with ")[1].split()[0])
    finished = {
        path: path.stat().st_mtime_ns for path in sweep.glob("*/run.json") if (files.read_json(path) or {}).get("finished")
    }
    assert 0 < done <= len(finished) - earlier
    printed, error = kernel.run('print(len(study["sweep_losses"]), study.origin["sweep_losses"])')
    assert error == "" and printed == "14 measured now from 14 runs\n"
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "a finished run was repeated"


def test_the_sentence_before_the_first_checkpoint(home, tiny, monkeypatch):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.Trainer, "step", stop)
    with pytest.raises(
        KeyboardInterrupt, match=r"^training was interrupted; nothing of it is kept yet: the same call starts it"
    ):
        train(tiny(), progress=False)
    with pytest.raises(KeyboardInterrupt, match=r"^training was interrupted with 0 of 2 runs finished; the same call goes on"):
        train_all([tiny(), tiny(), tiny(data_seed=1)], progress=False, workers=1)


def test_an_interrupted_lens_puts_everything_back(tiny, trained_once, monkeypatch):
    import torch

    model = trained_once(tiny()).model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls, step = [], torch.optim.Adam.step

    def stop(optimizer: Any, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", stop)
    tokens = torch.arange(160).view(10, 16)
    with pytest.raises(
        KeyboardInterrupt, match=r"^the lens was interrupted after 3 of 9 steps and is dropped; the model is as it"
    ):
        lens.train_lens(model, tokens, steps=9, tokens_per_step=32, progress=False)
    assert not model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT")
def test_a_command_that_is_interrupted_ends_with_130_and_the_sentence(home, tiny):
    config = tiny(steps=100_000, checkpoint_every=500, table_snapshots=2, validation_every=1000)
    line = [sys.executable, "-m", "tying_utils", "train", "--lines", "--config", json.dumps(config.as_dict())]
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    # As at a terminal, also where the tests run in a shell's background, which ignores interrupts and hands that down.
    with subprocess.Popen(line, cwd=ROOT, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **pipes) as child:
        try:
            while not committed(home)():
                assert child.poll() is None
                time.sleep(0.01)
            child.send_signal(signal.SIGINT)
            _, said = child.communicate(timeout=60)
        finally:
            child.kill()
    assert child.returncode == 130
    assert said.splitlines()[-1].startswith("tying-utils: training was interrupted; step ")


def test_a_command_that_was_given_no_words_says_so(monkeypatch, capsys):
    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_train", stop)
    assert command.main(["train"]) == 130
    assert capsys.readouterr().err == "tying-utils: interrupted\n"
