"""What is behind a run that goes on: kept in a file, so that another process can go on with it."""
