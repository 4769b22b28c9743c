"""The ways to reach a model, one module each; and what they share: `http`, `fields` and `faults`."""
