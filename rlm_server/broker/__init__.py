"""The broker: every model call is bounded, paid for, sent once, and settled."""
