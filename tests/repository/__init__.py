"""The repository itself: its arrows, its pins, its README, its generated code."""
