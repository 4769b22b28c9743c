"""The ways to reach a model, one module for each. They share `http`, `fields` and `faults`."""
