"""Run llama.cpp's server until the standard input ends. For the Python of `scripts/compatible`, which has it.

Usage: serve.py MODEL.gguf KEY CONTEXT SLOTS, where the tokens of context are divided between so many requests at once.
It prints its address, and listens on loopback alone.
"""

from __future__ import annotations

import sys

import xllamacpp  # type: ignore[import-not-found]


def main(model: str, key: str, context: str, slots: str) -> None:
    """Load the model and serve it."""
    settings = xllamacpp.CommonParams()
    settings.model.path = model
    settings.model_alias = {"gemma"}
    settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = int(context), int(slots), 0
    settings.use_jinja, settings.chat_template = False, "gemma"
    settings.hostnames, settings.port, settings.ui = ["127.0.0.1"], 0, False
    settings.api_keys, settings.endpoint_slots = [key], True
    settings.cpuparams.n_threads = 1  # where others are at work too, several wait for each other
    server = xllamacpp.Server(settings)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
