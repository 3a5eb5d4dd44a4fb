"""Reading the two tables of a local checkpoint beside loading the whole model: seconds, peak memory and bytes.

An OLMo checkpoint in float32 is written to a temporary folder. Each reading is a process of its own, in turns; libraries are
imported before the clock starts, and every byte of both tables is looked at before it stops.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import turns
from benchmarks.turns import Contest
from tying_utils.base.quiet import quiet
from tying_utils.models import architectures

TABLES, WHOLE = "read_tables", "from_pretrained"


def rows(quick: bool) -> list[dict[str, Any]]:
    """The tidy rows of a small checkpoint (`quick`), or of one of 1.2 GB in one file and in shards of 300 MB."""
    if quick:
        return read(16_384, 256, 4, rounds=2)
    return [row for shard in ("50GB", "300MB") for row in read(50_304, 1_024, 12, rounds=5, shard=shard)]


def read(V: int, d: int, layers: int, *, rounds: int, shard: str = "50GB") -> list[dict[str, Any]]:
    """The rows of one checkpoint; AssertionError if the two ways do not read the same tables."""
    with tempfile.TemporaryDirectory() as temporary, quiet():
        folder = Path(temporary)
        model = architectures.build("olmo", tied=False, vocab_size=V, d_model=d, n_layers=layers, n_heads=d // 64 or 1)
        model.save_pretrained(folder, max_shard_size=shard)
        del model
        files = sorted(folder.glob("*.safetensors"))
        found: dict[str, list[dict[str, Any]]] = {TABLES: [], WHOLE: []}
        for index in range(rounds + 1):
            for way in (TABLES, WHOLE)[:: -1 if index % 2 else 1]:
                found[way].append(turns.alone(_reading, way, folder))
    assert len({tuple(reading["sums"]) for readings in found.values() for reading in readings}) == 1
    size = {"V": V, "d": d, "layers": layers}
    what = f"tables of a checkpoint, {len(files)} file" + "s" * (len(files) > 1)
    contest = Contest("checkpoints", what, (TABLES, WHOLE), _reading, size, lambda values: None)
    out = []
    for quantity in ("seconds", "memory", "bytes"):
        # The first reading is left out: it fills the page cache.
        values = {way: [reading[quantity] for reading in readings[1:]] for way, readings in found.items()}
        out += turns.against(contest, quantity, values)
    return [{**row, "device": "cpu"} for row in out]  # wherever the suite computes, files are read by the CPU


def _reading(way: str, folder: Path) -> dict[str, Any]:
    """Seconds, peak memory over that of the imports, bytes read and the sums of both tables."""
    from transformers import AutoModelForCausalLM, OlmoConfig

    from tying_utils.models.checkpoints import read_tables

    AutoModelForCausalLM._model_mapping[OlmoConfig]  # imports the table of architectures and this one
    before, began = turns.peak(), time.perf_counter()
    if way == TABLES:
        tables = read_tables(folder)
        pair, read = (tables.input, tables.output), tables.bytes_read
    else:
        with quiet():
            weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        pair = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
        read = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    sums = [float(table.sum()) for table in pair]
    return {"seconds": time.perf_counter() - began, "memory": turns.peak() - before, "bytes": read, "sums": sums}
