"""What an alignment with its null, folds and intervals costs: seconds, CPU seconds and peak memory, a line a kind.

    python benchmarks/alignment.py [--tokens 50000] [--width 768] [--permutations 100] [--threads 2] [--slow]

Independent Gaussian tables in float32, 5 folds, 1,000 bootstrap draws. Each line is measured in a process of its own; its peak
includes the tables and the libraries. `--slow` adds the size of the paper's largest tables, V 50,280 and d 2,048, with 5
permutations: some minutes, and values of .171 (orthogonal) and .202 (linear) that are chance alone.
"""

import argparse
import multiprocessing
import resource
import time

import torch

from tying_utils.measures.alignment import Kind, alignment

KINDS: tuple[Kind, ...] = ("orthogonal", "linear")


def measure(V: int, d: int, kind: Kind, permutations: int, threads: int) -> None:
    """Align two independent Gaussian (V, d) tables; print the seconds, this process's peak memory and the scores."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, V, d, generator=generator)
    began, cpu = time.perf_counter(), time.process_time()
    result = alignment(source, target, kind, permutations=permutations)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kilobytes, on Linux
    print(f"{kind}, V {V}, d {d}, {permutations} permutations: {seconds:.1f} s (CPU {cpu:.1f} s), peak {peak:.2f} GB")
    print(f"  value {result.value:.4f}, chance {result.chance:.4f}, Gaussian formula {result.gaussian:.4f}", end=", ")
    print(f"corrected {result.corrected:.4f}, held out {result.held_out:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--permutations", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slow", action="store_true", help="add the paper's largest size")
    options = parser.parse_args()
    sizes = [(options.tokens, options.width, options.permutations)]
    if options.slow:
        sizes.append((50_280, 2_048, 5))
    for V, d, permutations in sizes:
        for kind in KINDS:
            process = multiprocessing.get_context("spawn").Process(
                target=measure, args=(V, d, kind, permutations, options.threads)
            )
            process.start()
            process.join()


if __name__ == "__main__":
    main()
