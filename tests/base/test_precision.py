"""What the caller's torch is set to changes no number that is measured, and none that is trained."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from tying_utils import alignment, knn_overlap, models, spectral_distance
from tying_utils.base.precision import plain
from tying_utils.measures.ablation import loss_without_layers
from tying_utils.measures.gradients import share_of
from tying_utils.measures.lens import kl_by_layer, train_lens
from tying_utils.measures.perplexity import perplexity
from tying_utils.measures.residual import contributions
from tying_utils.training import TrainConfig, train

draw = torch.Generator().manual_seed(0)
A, B = (torch.randn(300, 16, generator=draw) for _ in range(2))
IDS = torch.randint(0, 60, (8, 12), generator=draw)


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SETTINGS: dict[str, Callable[[], Any]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: default(torch.float64),
    "bfloat16": lambda: default(torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}
settings = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)


def built() -> Any:
    return models.build("llama", tied=True, vocab_size=60, d_model=16, n_layers=2, n_heads=2, context=16)


def weights() -> Any:
    return [parameter.detach().clone() for parameter in built().parameters()]


def of_tables() -> Any:
    fits = alignment(A, B, "linear")
    return torch.tensor([fits.value, fits.chance, knn_overlap(A, B), spectral_distance(A, B, 8, 12)], dtype=torch.float64)


def of_a_model() -> Any:
    with torch.inference_mode(False):
        model = built()
    lens = train_lens(model, IDS, steps=3, progress=False)
    shares = contributions(model, IDS)[["norm", "attribution"]].to_numpy()
    losses = [perplexity(model, IDS, progress=False).loss, share_of(model, [IDS], progress=False).output_share]
    losses += loss_without_layers(model, IDS)["loss"].tolist()
    return torch.from_numpy(np.concatenate((kl_by_layer(model, lens, IDS), shares.ravel(), losses)))


@settings
@pytest.mark.parametrize("asked", [weights, of_tables, of_a_model])
def test_measures_and_models_are_the_same(setting, asked):
    expected = asked()
    with setting():
        found = asked()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@settings
def test_a_run_is_the_same(setting, tmp_path, monkeypatch):
    config = TrainConfig(
        corpus="two-role", vocab_size=128, d_model=16, n_layers=1, n_heads=2, context=16, steps=4, batch_size=4
    )
    tables = []
    for place, context in ((tmp_path / "plain", plain), (tmp_path / "set", setting)):
        monkeypatch.setenv("TYING_HOME", str(place))
        with context():
            tables.append(train(config, progress=False).tables(4).input)
    assert torch.equal(*tables)
