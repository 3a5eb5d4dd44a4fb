"""Small models whose every parameter matters, for the measures that read whole models."""

from typing import Any

import torch
from transformers import GraniteConfig, GraniteForCausalLM

from tying_utils import models

ARCHITECTURES = ("olmo", "olmo2", "gpt_neox", "gpt_neo", "gpt2", "llama", "qwen3")
VOCAB, WIDTH, LAYERS, CONTEXT = 50, 16, 2, 16


def shaken(arch: str = "olmo", *, tied: bool = True, seed: int = 0) -> Any:
    """A model in evaluation mode with gains that are not 1 and biases that are not 0."""
    model = models.build(
        arch, tied=tied, vocab_size=VOCAB, d_model=WIDTH, n_layers=LAYERS, n_heads=2, context=CONTEXT, seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def inert(*, tied: bool = True) -> Any:
    """An OLMo whose blocks add nothing, so that all its hidden states are equal."""
    model = shaken("olmo", tied=tied)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model


def scaled_head() -> Any:
    """A model whose logits are half of what its head makes of its final norm."""
    size: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return GraniteForCausalLM(GraniteConfig(vocab_size=VOCAB, logits_scaling=2.0, **size, **heads))


def tokens(rows: int, length: int = CONTEXT, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def state_before_norm(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The input (n, T, d) of the final norm, caught without the package's help."""
    names = {"olmo": "norm", "olmo2": "norm", "llama": "norm", "qwen3": "norm", "gpt_neox": "final_layer_norm"}
    caught: list[torch.Tensor] = []
    norm = getattr(model.base_model, names.get(model.config.model_type, "ln_f"))
    hook = norm.register_forward_hook(lambda module, inputs, output: caught.append(inputs[0]))
    with torch.no_grad():
        model(ids)
    hook.remove()
    return caught[0]
