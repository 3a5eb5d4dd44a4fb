"""What happens to a model of each of many architectures of transformers: small ones with random weights, tried in four ways.

python tests/many_architectures.py      # tries them all and writes ARCHITECTURES.md
"""

import contextlib
import functools
import io
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, Trainer, TrainingArguments
from transformers.utils import logging

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "ARCHITECTURES.md"
WORKS = "*works*"
V, LENGTH = 149, 12  # of no other size in these models, nor near one
SMALL: dict[str, Any] = {
    **{"vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
HEAD, EXPERTS = {"head_dim": 8}, {"num_experts": 2, "num_experts_per_tok": 1}
VISION = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 4}
VISION |= {"image_size": 28, "patch_size": 14}
# By transformers' name of the model type: what a small model needs beside `SMALL`, and scales and caps that show.
TEXT: dict[str, dict[str, Any]] = {
    "apertus": HEAD,
    "bert": {"is_decoder": True},
    "biogpt": {},
    "bloom": {},
    "codegen": {"rotary_dim": 8},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25},
    "diffllama": HEAD,
    "exaone4": HEAD,
    "falcon": {},
    "gemma": HEAD,
    "gemma2": {**HEAD, "final_logit_softcapping": 5.0},
    "gemma3_text": HEAD,
    "glm": HEAD,
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {},
    "gpt_oss": {**HEAD, "num_local_experts": 2, "num_experts_per_tok": 1},
    "gptj": {"rotary_dim": 8},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 3.0},
    "helium": HEAD,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 4, "mamba_dt_rank": 4},
    "llama": {},
    "mamba": {"state_size": 4},
    "mamba2": {"num_heads": 8, "n_groups": 1, "head_dim": 8, "state_size": 4},
    "mistral": HEAD,
    "mixtral": {**HEAD, "num_local_experts": 2, "num_experts_per_tok": 1},
    "mpt": {},
    "nemotron": HEAD,
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "olmoe": EXPERTS,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "qwen2": {},
    "qwen2_moe": {**EXPERTS, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "qwen3": HEAD,
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 8, "num_hidden_layers": 3, "use_cache": False},
    "rwkv": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48},
}
MULTIMODAL: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": HEAD, "vision_config": VISION, "mm_tokens_per_image": 4, "image_token_index": V - 1},
    "idefics3": {"text_config": {"model_type": "llama"}, "vision_config": VISION, "image_token_id": V - 1, "scale_factor": 2},
    "llava": {
        "text_config": {"model_type": "llama"},
        "vision_config": {**VISION, "model_type": "clip_vision_model"},
        "image_token_index": V - 1,
    },
    "mllama": {
        "text_config": {"cross_attention_layers": [1]},
        "vision_config": {
            **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_global_layers": 1},
            **{"attention_heads": 4, "image_size": 28, "patch_size": 14, "vision_output_dim": 64, "max_num_tiles": 1},
            **{"intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]]},
        },
        "image_token_index": V - 1,
    },
    "qwen2_vl": {
        "text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
        "vision_config": {"depth": 1, "embed_dim": 24, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14},
        **{"image_token_id": V - 1, "video_token_id": V - 2, "vision_start_token_id": V - 3, "vision_end_token_id": V - 4},
    },
}
ARCHITECTURES = sorted([*TEXT, *MULTIMODAL])
TOKENS = torch.randint(3, V - 6, (8, LENGTH), generator=torch.Generator().manual_seed(0))


def build(name: str, tied: bool = True) -> Any:
    """The small model of an architecture, its gains not 1 and its biases not 0."""
    if name in TEXT:
        kind, fields = AutoModelForCausalLM, {**SMALL, **TEXT[name]}
    else:
        kind, fields = AutoModelForImageTextToText, dict(MULTIMODAL[name])
        fields["text_config"] = {**SMALL, **fields["text_config"], "tie_word_embeddings": tied}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = kind.from_config(AutoConfig.for_model(name, tie_word_embeddings=tied, **fields))
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
            if (padding := getattr(model.get_input_embeddings(), "padding_idx", None)) is not None:
                model.get_input_embeddings().weight[padding] = 0  # as transformers begins and training leaves it
    return model


def split(name: str) -> None:
    """Both path gradients have to sum to the tied gradient, and a step has to be combined from them."""
    from tying_utils import SplitTie

    model, plain = build(name), build(name)
    tie = SplitTie(model)
    for each in (plain, model):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of dropout
            each.train()(TOKENS, labels=TOKENS).loss.backward()
    source, target = tie.path_gradients()
    expected = plain.get_input_embeddings().weight.grad
    torch.testing.assert_close(source + target, expected, rtol=1e-3, atol=1e-6)
    assert source.norm() > 0 and target.norm() > 0, "a path without a gradient"
    tie.combine()
    tie.release()


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return len(TOKENS)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": TOKENS[index], "labels": TOKENS[index]}


def train(name: str) -> None:
    """Two steps of Hugging Face's Trainer have to log an output share each."""
    from tying_utils import BalanceCallback

    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "report_to": "none"}
        arguments = TrainingArguments(folder, save_strategy="no", use_cpu=True, disable_tqdm=True, **options)
        trainer = Trainer(model=build(name), args=arguments, train_dataset=Rows(), callbacks=[BalanceCallback()])
        trainer.train()
    shares = [entry["output_share"] for entry in trainer.state.log_history if "output_share" in entry]
    assert len(shares) == 2 and all(0 < share < 1 for share in shares), f"output shares {shares}"


def look(name: str, tied: bool) -> None:
    """A lens has to be trained, to give the model's own logits where the blocks end, and finite numbers everywhere."""
    from tying_utils import kl_by_layer, train_lens

    model = build(name, tied).eval()
    lens = train_lens(model, TOKENS, steps=2, tokens_per_step=64, progress=False)
    assert np.isfinite(kl_by_layer(model, lens, TOKENS)).all(), "KL that is not finite"
    given: list[torch.Tensor] = []  # of each norm; the last one called is the one before the head
    for module in model.modules():
        if "Norm" in type(module).__name__:
            module.register_forward_hook(lambda _, state, __: given.append(state[0]))
    with torch.no_grad():
        logits = model(TOKENS).logits
        apart = (lens.unembed(given[-1]).log_softmax(-1) - logits.log_softmax(-1)).abs().max()
    assert apart < 1e-3, "the lens reads other logits than the model's own"


def read(name: str, tied: bool) -> None:
    """The tables of the saved folder have to be those of the model, bit for bit."""
    from tying_utils import read_tables

    model = build(name, tied)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tables = read_tables(folder, progress=False)
        own = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        assert tables.tied == (own[0].data_ptr() == own[1].data_ptr()), f"tied = {tables.tied}"
        assert torch.equal(tables.input, own[0]) and torch.equal(tables.output, own[1]), "other tables than the model's"


def outcome(attempt: Callable[[], None]) -> str:
    """`WORKS`, or what the user reads: the sentence of a ValueError, of any other error its kind, too."""
    try:
        attempt()
    except AssertionError as error:
        return f"**wrong**: {_sentence(error)}"
    except ValueError as error:
        return _sentence(error)
    except Exception as error:
        return f"**{type(error).__name__}**: {_sentence(error)}"
    return WORKS


def _sentence(error: Exception) -> str:
    """In one line, without what differs between machines: temporary folders and the digits of measured numbers."""
    text = " ".join(str(error).split()).replace(tempfile.gettempdir() + "/", "")
    text = re.sub(r"\btmp[\w-]{8}\b", "FOLDER", text)
    return re.sub(r"\d+\.\d+(e[-+]?\d+)?", "…", text).replace("|", "\\|")


def both(attempt: Callable[[bool], None]) -> str:
    """The outcome for a tied and an untied model; where it differs, each by its name."""
    found = [outcome(functools.partial(attempt, tied)) for tied in (True, False)]
    return found[0] if found[0] == found[1] else f"tied: {found[0]}; untied: {found[1]}"


COLUMNS: dict[str, Callable[[str], str]] = {
    "`SplitTie`": lambda name: outcome(functools.partial(split, name)),
    "`BalanceCallback`": lambda name: outcome(functools.partial(train, name)),
    "lens": lambda name: both(functools.partial(look, name)),
    "`read_tables`": lambda name: both(functools.partial(read, name)),
}


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what transformers prints and warns beside."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def rows(names: Iterable[str]) -> list[str]:
    """A line of Markdown for each architecture: what happens to it in every column."""
    with quietly():
        return [f"| {name} | {' | '.join(attempt(name) for attempt in COLUMNS.values())} |" for name in names]


def page(lines: Iterable[str]) -> str:
    """The whole of ARCHITECTURES.md."""
    import transformers

    words = (
        "What happens to a model of your own, by transformers' name of its type: *works*, or the sentence that you get.\n"
        "Tried on small models with random weights, tied for `SplitTie` and `BalanceCallback`, tied and untied for the lens\n"
        "and `read_tables`. *works*: both path gradients sum to the tied one; Hugging Face's Trainer logs the output share at\n"
        "each of two steps; a lens is trained, and reads the model's own logits; the tables of a saved folder are the\n"
        f"model's, bit for bit. transformers {transformers.__version__}. `python tests/many_architectures.py` writes this\n"
        "page, and a test fails when it drifts."
    )
    header = f"| Architecture | {' | '.join(COLUMNS)} |\n|{' --- |' * (1 + len(COLUMNS))}"
    return "\n".join(["# Architectures", "", words, "", header, *lines, ""])


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    FILE.write_text(page(rows(ARCHITECTURES)), encoding="utf-8")
