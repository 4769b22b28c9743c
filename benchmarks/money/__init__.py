"""How safe and how fast money is: `python -m benchmarks.money --help`."""
