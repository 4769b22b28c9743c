"""JSON Schemas of tenants: what one may be, and whether a value is what it says, with bounded work."""
