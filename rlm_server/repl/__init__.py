"""What the code of runs and of sessions may call, and what comes of it."""
