"""Texts: uploaded, kept, searched, and traced."""
