"""What the neighbour graphs of two tables cost beside the matrix products that they could be had from: seconds and peak memory.

    python benchmarks/neighbors.py [--tokens 50304] [--width 2048] [--threads 2] [--large]

Independent Gaussian tables. `knn_overlap` (k 10, float32) is measured between the two full products unit @ unit.T, in the
same blocks of rows and with nothing kept; each line is a process of its own, whose peak includes the tables and the libraries.
On cores that others use, trust the ratio of CPU seconds. `--large` measures instead what `knn_overlap` costs at V 151,936 and
d 2,560 and 4,096 in bfloat16: about an hour on two free cores.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence

import torch

from tying_utils.measures.neighbors import knn_chance, knn_overlap

BLOCK = 1024


def product(table: torch.Tensor) -> str:
    """The full matrix product of a table with itself."""
    unit = torch.nn.functional.normalize(table)
    for start in range(0, len(unit), BLOCK):
        torch.mm(unit[start : start + BLOCK], unit.T)
    return "one full product"


def graphs(a: torch.Tensor, b: torch.Tensor) -> str:
    """The neighbour graphs of two tables, and how far they agree."""
    return f"knn_overlap {knn_overlap(a, b, block=BLOCK):.5f}, chance {knn_chance(len(a), 10):.5f}"


def measure(
    task: Callable[..., str], V: int, d: int, dtype: torch.dtype, seeds: Sequence[int], threads: int
) -> tuple[float, float]:
    """Run `task` on Gaussian (V, d) tables, one a seed; print and return its seconds and CPU seconds."""
    torch.set_num_threads(threads)
    tables = [torch.empty(V, d, dtype=dtype).normal_(generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    began, cpu = time.perf_counter(), time.process_time()
    done = task(*tables)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kilobytes, on Linux
    print(f"V {V}, d {d}, {dtype}: {seconds:.1f} s (CPU {cpu:.1f} s), peak {peak:.2f} GB, {done}", flush=True)
    return seconds, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=50_304)
    parser.add_argument("--width", type=int, default=2_048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--large", action="store_true", help="V 151,936, d 2,560 and 4,096, bfloat16, without the products")
    options = parser.parse_args()

    def alone(*arguments: object) -> tuple[float, float]:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(measure, (*arguments, options.threads))

    if options.large:
        for width in (2_560, 4_096):
            alone(graphs, 151_936, width, torch.bfloat16, (0, 1))
        return
    size = options.tokens, options.width, torch.float32
    one, both, other = alone(product, *size, (0,)), alone(graphs, *size, (0, 1)), alone(product, *size, (1,))
    wall, cpu = (two / (first + second) for first, two, second in zip(one, both, other, strict=True))
    print(f"knn_overlap took {wall:.2f} of the time of the two products (CPU {cpu:.2f})")


if __name__ == "__main__":
    main()
