"""The ways to reach a model, one module each; every one is a `calls.Provider`."""
