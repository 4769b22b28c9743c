"""Webhooks: where tenants have the events of their budgets sent, signed, and how that is done."""
