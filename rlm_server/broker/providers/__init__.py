"""The ways to reach a model, one module each, and `faults`, which tells their failures apart."""
