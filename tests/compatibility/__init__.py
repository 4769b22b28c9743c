"""What the reference implementation does, asked of this server; docs/compatibility.md has a row for each case."""
