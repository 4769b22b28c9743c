"""Copies of all that a server keeps, made while it runs, and put back elsewhere."""
