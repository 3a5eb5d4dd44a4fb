"""Does a tied table look like the input or like the output table of an untied model? Two checkpoint folders give an answer.

    python examples/compare_checkpoints.py TIED UNTIED [TIED UNTIED ...]

Each is a local folder as `save_pretrained` writes it, of models with the same tokens; only their tables are read. Without
folders it writes twelve architectures of transformers first, small and with random weights, whose tables align by chance.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from tying_utils import align, read_tables
from tying_utils.measures.alignment import chance

# By transformers' name of the model type: what a small model of it needs beside `SMALL`.
ARCHITECTURES: dict[str, dict[str, int]] = {
    "bloom": {},
    "cohere": {},
    "falcon": {},
    "gemma2": {"head_dim": 8},
    "gpt2": {},
    "gpt_neox": {},
    "llama": {},
    "mpt": {},
    "olmo2": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "phi": {},
    "qwen2": {},
}
SMALL = {
    **{"vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}


def write(architecture: str, folder: Path) -> list[Path]:
    """Write a tied and an untied model of `architecture` with random weights below `folder`; return their folders."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    folders = []
    for seed, tied in enumerate((True, False)):
        config = AutoConfig.for_model(architecture, tie_word_embeddings=tied, **SMALL, **ARCHITECTURES[architecture])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of their own: tables that start alike would align
            model = AutoModelForCausalLM.from_config(config)
        folders.append(folder / f"{architecture}-{'tied' if tied else 'untied'}")
        model.save_pretrained(folders[-1])
    return folders


def compare(tied: Path, untied: Path) -> dict[str, object]:
    """Return how the table of the folder `tied` aligns with both of `untied`, rotated onto them, and by chance.

    Raises ValueError if a folder holds the other number of tables, and as `read_tables` and `align` do.
    """
    one, two = (read_tables(folder, progress=False) for folder in (tied, untied))
    if not one.tied or two.tied:
        wrong = untied if one.tied else tied
        raise ValueError(f"folders: a tied model and then an untied one is needed, got {wrong}; put each in its place")
    table = one.input
    return {
        "tied": tied.name,
        "untied": untied.name,
        "tokens": len(table),
        "with input": align(table, two.input, "orthogonal"),
        "with output": align(table, two.output, "orthogonal"),
        "by chance": chance(table, two.output, "orthogonal", permutations=10).mean,
    }


def main(arguments: Sequence[str]) -> pd.DataFrame:
    """Print a row for each pair of folders, and return them."""
    if len(arguments) % 2:
        raise ValueError(f"folders: pairs of them are needed, a tied and an untied model each, got {len(arguments)}")
    with tempfile.TemporaryDirectory() as scratch:
        pairs = [arguments[at : at + 2] for at in range(0, len(arguments), 2)]
        pairs = pairs or [write(name, Path(scratch)) for name in ARCHITECTURES]
        rows = pd.DataFrame([compare(Path(tied), Path(untied)) for tied, untied in pairs])
    print(rows.to_string(index=False, float_format="{:.3f}".format))
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
