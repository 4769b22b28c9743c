"""What a tenant can do to its neighbours through the server: `python -m benchmarks.neighbours --help`."""
