"""What the package costs beside other ways to the same values, as ratios: `python -m benchmarks`, see `benchmarks.turns`."""
