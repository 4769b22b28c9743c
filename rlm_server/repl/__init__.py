"""What the code of runs and of sessions may use, and what comes of it."""
