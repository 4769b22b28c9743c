"""What an operator states, and what the server makes of it."""
