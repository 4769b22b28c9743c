"""The server's side of the wall: sessions in worker processes."""
