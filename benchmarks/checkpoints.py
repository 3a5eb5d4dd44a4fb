"""What reading the two tables of a checkpoint costs beside loading the whole model: seconds and peak memory, and their ratio.

    python benchmarks/checkpoints.py [--vocab 50304] [--width 1024] [--layers 12] [--rounds 3] [--shards]

A local OLMo checkpoint in float32 is written to a temporary folder (1.2 GB by default). Each reading is a process of its own,
in turns: `read_tables`, and from_pretrained with its state dict; libraries are imported before the clock starts, and every byte
of both tables is looked at before it stops. Peak memory is what the reading adds to the imports', in units of the tables in
float32.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

TABLES, WHOLE = "read_tables", "from_pretrained"


def peak() -> int:
    """Of this process's memory so far, in bytes."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def measure(how: str, folder: Path, answer: Connection) -> None:
    """Send seconds, and peak memory over that of the imports in units of both tables, of one reading."""
    import torch
    from transformers import AutoModelForCausalLM

    from tying_utils.checkpoints import read_tables

    torch.set_num_threads(1)
    AutoModelForCausalLM._model_mapping.keys()  # imports the table of architectures
    before, began = peak(), time.perf_counter()
    if how == TABLES:
        tables = read_tables(folder)
        pair = tables.input, tables.output
    else:
        weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        pair = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    sums = [float(table.sum()) for table in pair]
    seconds, grown = time.perf_counter() - began, peak() - before
    answer.send((seconds, grown / sum(table.numel() * 4 for table in pair), sums))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=50_304)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", action="store_true", help="write the checkpoint in shards of 300 MB")
    options = parser.parse_args()
    from tying_utils import models

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sizes = {"vocab_size": options.vocab, "d_model": options.width, "n_layers": options.layers}
        model = models.build("olmo", tied=False, n_heads=options.width // 64, **sizes)
        model.save_pretrained(folder, max_shard_size="300MB" if options.shards else "50GB")
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e9
        del model
        seconds: dict[str, list[float]] = {TABLES: [], WHOLE: []}
        seen = []
        for _ in range(options.rounds + 1):  # the first is for the page cache alone
            for how, times in seconds.items():
                ours, theirs = multiprocessing.Pipe()
                process = multiprocessing.get_context("spawn").Process(target=measure, args=(how, folder, theirs))
                process.start()
                taken, memory, sums = ours.recv()
                process.join()
                times.append(taken)
                seen.append(sums)
                print(f"{how}: {taken:.2f} s, peak {memory:.2f} x tables", flush=True)
        assert all(sums == seen[0] for sums in seen)
        ratios = [one / whole for one, whole in zip(seconds[TABLES][1:], seconds[WHOLE][1:], strict=True)]
        shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"checkpoint of {size:.2f} GB; ratios {shown}, median {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
