"""What the package costs beside other ways to the same values.

    python -m benchmarks [--quick] [--only NAME ...] [--threads N] [--draw]

Every figure is a ratio measured in turns in one run. Tidy tables and their manifest go to data/results/benchmarks, the figure
of growth to figures/benchmarks, both shown in benchmarks/README.md; `--quick` (small sizes, minutes) writes to
benchmarks-quick instead, which git ignores, and leaves the page alone. A part is written as soon as it is measured and replaces
only what it measured before on the same device, so that `--only` and a run on a GPU add to the tables. `--draw` measures
nothing.
"""

import argparse
import os
import time

PARTS = ("step", "run", "alignment", "neighbors", "checkpoints", "share", "lens", "growth")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the CPU (default: all)")
    parser.add_argument(
        "--draw", action="store_true", help="only draw the figure and fill README.md from the tables that are there"
    )
    options = parser.parse_args()
    # numpy's own linear algebra reads these when it is loaded, here and in every process that follows.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(options.threads))
    import torch

    from benchmarks import suite

    torch.set_num_threads(options.threads)
    for part in () if options.draw else options.only:
        began = time.monotonic()
        print(f"{part}: {suite.measure(part, options.quick)}{part} took {time.monotonic() - began:.0f} s", flush=True)
    suite.publish(options.quick)


if __name__ == "__main__":
    main()
