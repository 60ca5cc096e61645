"""Whether pretraining learns: what `python -m benchmarks.pretraining` measures."""
