"""The user sees this package's bars or none, and transformers goes on as the user had set it."""

import logging
import os
import subprocess
import sys

import pytest
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
from huggingface_hub.utils.tqdm import progress_bar_states
from transformers.utils import logging as theirs

from tying_utils.base.quiet import quiet

MISSING = "`selective_scan_fn` is falling back to its reference PyTorch implementation because `mamba_ssm` is not installed."


@pytest.fixture(autouse=True)
def restored():
    shown, held = theirs.is_progress_bar_enabled(), dict(progress_bar_states)
    yield
    (theirs.enable_progress_bar if shown else theirs.disable_progress_bar)()
    progress_bar_states.clear()
    progress_bar_states.update(held)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("hub", ["on", "off", "a group is off"])
@pytest.mark.parametrize("shown", [True, False])
def test_the_users_settings_are_put_back(shown, hub, fails):
    (theirs.enable_progress_bar if shown else theirs.disable_progress_bar)()
    progress_bar_states.clear()
    if hub != "on":
        disable_progress_bars("some.group" if "group" in hub else None)
    held, filters = dict(progress_bar_states), [list(one.filters) for one in logging.getLogger("transformers").handlers]

    def use() -> None:
        with quiet(), quiet():
            assert not theirs.is_progress_bar_enabled() and are_progress_bars_disabled()
            if fails:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) if fails else quiet():
        use()
    assert theirs.is_progress_bar_enabled() is shown and dict(progress_bar_states) == held
    assert [list(one.filters) for one in logging.getLogger("transformers").handlers] == filters


def test_only_what_says_that_a_kernel_is_missing_is_hidden(capsys):
    logger = theirs.get_logger("transformers.models.some")
    handler = next(one for one in logging.getLogger("transformers").handlers if type(one) is logging.StreamHandler)
    stream, level = handler.setStream(sys.stderr), theirs.get_verbosity()
    theirs.set_verbosity_warning()  # a Trainer of another test may have set it
    try:
        with quiet():
            with quiet():
                logger.warning("Some weights were newly initialized")
            logger.warning(MISSING)
            logger.warning("The fast path is not available because `causal_conv1d_fn` is None")
        said = capsys.readouterr().err
        assert "newly initialized" in said and "mamba_ssm" not in said and "fast path" not in said
        logger.warning(MISSING)
        assert "mamba_ssm" in capsys.readouterr().err
    finally:
        handler.setStream(stream)
        theirs.set_verbosity(level)


EVERYTHING = """
import sys, torch
from transformers import MambaConfig, MambaForCausalLM
from tying_utils import TrainConfig, read_tables, train
from tying_utils.measures.gradients import share_of
from tying_utils.models import real

sizes = dict(vocab_size=64, d_model=16, n_layers=1, n_heads=2, context=16, steps=2, warmup_steps=1, batch_size=2)
for arch in ("llama", "gpt_neo"):
    run = train(TrainConfig(corpus="two-role", arch=arch, **sizes), progress=False)
    run.model()
folder = run.folder / "model"
read_tables(folder, progress=False)
try:
    real.load(folder, progress=False)  # it has no tokenizer
except ValueError:
    pass
mamba = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4))
share_of(mamba, [torch.randint(0, 64, (2, 8))], progress=False)
print("before", file=sys.stderr)
mamba.save_pretrained(sys.argv[1])
"""


@pytest.mark.parametrize(
    "bars", [None, "1", "0"], ids=["as it is", "disabled by the environment", "enabled by the environment"]
)
def test_nothing_is_shown_without_progress(tmp_path, bars):
    environment = {**os.environ, "TYING_DATA": str(tmp_path)} | ({"HF_HUB_DISABLE_PROGRESS_BARS": bars} if bars else {})
    command = [sys.executable, "-W", "error::UserWarning:huggingface_hub", "-c", EVERYTHING, str(tmp_path / "mamba")]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    before, after = told.stderr.split("before")
    assert not before.strip() and not told.stdout.strip()
    assert ("Writing model shards" in after) is (bars != "1"), "transformers shows what it did before"
