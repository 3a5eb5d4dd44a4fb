"""Models as others hand them over: what the split refuses, in which words, and that it leaves them alone; what it unwraps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tying_utils import models
from tying_utils.models import balance
from tying_utils.models.tie import SplitTie

V, D = 40, 8
tokens = torch.randint(0, V, (2, 9), generator=torch.Generator().manual_seed(0))


def build(tied: bool = True) -> Any:
    return models.build("llama", tied=tied, vocab_size=V, d_model=D, n_layers=1, n_heads=2, context=16)


def state(model: Any) -> list[Any]:
    """What a caller could miss: which Parameters there are, trainable or not, and every hook."""
    held = [(name, id(p), p.requires_grad, len(p._backward_hooks or ())) for name, p in model.named_parameters()]
    return [held, [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]]


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Borrowing(nn.Module):
    """An output layer without a weight of its own."""

    def __init__(self, layer: nn.Embedding) -> None:
        super().__init__()
        self._layer = [layer]

    @property
    def weight(self) -> Tensor:
        return self._layer[0].weight

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.weight)


def frozen(model: Any) -> Any:
    model.get_input_embeddings().weight.requires_grad_(False)
    return model


def all_frozen(model: Any) -> Any:
    return model.requires_grad_(False)


def shared(model: Any) -> Any:
    model.set_output_embeddings(model.get_input_embeddings())
    return model


def borrowed(model: Any) -> Any:
    model.set_output_embeddings(Borrowing(model.get_input_embeddings()))
    return model


def parametrized(model: Any) -> Any:
    parametrize.register_parametrization(model.get_output_embeddings(), "weight", Doubled())
    return model


def sparse(model: Any) -> Any:
    model.get_input_embeddings().sparse = True
    return model


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (sparse, "its embedding gives sparse gradients"),
        (frozen, r"its table is frozen .*requires_grad_\(True\)"),
        (all_frozen, "its table is frozen"),
        (shared, "its output layer is the input's Embedding itself"),
        (borrowed, "the weight of its output layer, Borrowing, is no Parameter of that layer"),
        (parametrized, "the weight of its output layer, ParametrizedLinear, is no Parameter"),
        (nn.Sequential, "a transformers model is needed, got Sequential; split the model itself"),
    ],
)
def test_refusals_name_the_case_and_change_nothing(change: Callable[[Any], Any], words: str):
    model = change(build())
    before = state(model)
    with pytest.raises(ValueError, match=f"^model: {words}"):
        SplitTie(model)
    assert state(model) == before


def paths(model: Any) -> tuple[Tensor, Tensor]:
    tie = SplitTie(model)
    model(tokens, labels=tokens).loss.backward()
    found = tie.path_gradients()
    tie.release()
    return found


def adapted(**options: Any) -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(build(), peft.LoraConfig(r=2, task_type="CAUSAL_LM", **options))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_modules": ["q_proj"]}, "its table is frozen"),
        ({"target_modules": ["q_proj", "lm_head"]}, "its table is frozen"),
        ({"target_modules": ["embed_tokens"]}, "its table is frozen"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "in this one a ModulesToSaveWrapper keeps a copy"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, "in this one a ModulesToSaveWrapper"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]}, "input layer, TrainableTokensWrapper, is no"),
    ],
)
def test_adapters_are_refused_in_words_that_fit(options: dict[str, Any], words: str):
    model = adapted(**options)
    before = state(model)
    with pytest.raises(ValueError, match=f"^model: .*{words}"):
        SplitTie(model)
    assert state(model) == before
    model(tokens, labels=tokens).loss.backward()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ],
)
def test_an_unfrozen_table_is_found_inside_adapters(options: dict[str, Any]):
    model = adapted(**options)
    model.get_input_embeddings().weight.requires_grad_(True)
    before = state(model)
    expected = paths(build())  # a new adapter changes nothing yet
    found = paths(model)
    assert expected[0].any() and expected[1].any()
    torch.testing.assert_close(found, expected)
    assert state(model) == before


def test_a_model_that_several_processes_train_already_is_refused(tmp_path, monkeypatch):
    distributed = torch.distributed
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        model = build()
        wrapper = nn.parallel.DistributedDataParallel(model)
        SplitTie(model).release()  # one process has nothing to average
        monkeypatch.setattr(distributed, "get_world_size", lambda *_: 2)
        before = state(model)
        with pytest.raises(ValueError, match=r"^model: DistributedDataParallel has wrapped it already"):
            SplitTie(model)
        assert state(model) == before
        del wrapper
        SplitTie(model).release()  # it averages nothing any longer
    finally:
        distributed.destroy_process_group()


def test_a_rule_is_given_as_an_object():
    with pytest.raises(ValueError, match=r"^rule: one that weighs the two paths is needed, got <class"):
        SplitTie(build(), balance.NormMatch)  # type: ignore[arg-type]
