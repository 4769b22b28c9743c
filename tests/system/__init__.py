"""The whole server, as its users meet it: real gRPC on loopback, the real sandbox, scripted models."""
