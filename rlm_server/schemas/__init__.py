"""JSON Schemas from outside: what one may be, and whether a value is what it says, with bounded work."""
