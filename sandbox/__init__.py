"""Untrusted Python, with state, in WebAssembly."""
