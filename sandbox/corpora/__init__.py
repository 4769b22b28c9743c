"""Texts in the form a guest's `str` has in memory."""
