"""The gRPC surface: a servicer for each service, and what all calls pass."""
