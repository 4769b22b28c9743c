"""What passes between the server and its workers."""
