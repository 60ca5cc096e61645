"""What `python -m benchmarks.classification` is made of."""
