"""What the loop itself costs, beside the reference implementation: `python -m benchmarks.loop --help`."""
