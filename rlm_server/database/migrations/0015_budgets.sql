-- A key may be bound to a customer: the customer's path, empty where the key is its tenant's as a whole.
ALTER TABLE api_key ADD COLUMN customer TEXT NOT NULL DEFAULT '';
