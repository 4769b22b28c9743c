"""The server: contexts, sessions and runs over gRPC, with every model call brokered and paid from an account."""
