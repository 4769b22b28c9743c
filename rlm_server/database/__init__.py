"""The server's database, on SQLite or Postgres."""
