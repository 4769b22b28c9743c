"""Signs what is sent, as Standard Webhooks has it: https://www.standardwebhooks.com (symmetric signatures, v1)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Iterable

SECRET_PREFIX = "whsec_"  # noqa: S105 - what all begin with
SECRET_BYTES = 32


def new_secret() -> str:
    """Make a secret: what follows the prefix is the key in base64."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def headers(keys: Iterable[str], id: str, at: int, body: bytes) -> dict[str, str]:
    """Return the headers that sign a body with each of some secrets, sent at a time in Unix milliseconds."""
    timestamp = str(at // 1000)
    signed = b".".join((id.encode(), timestamp.encode(), body))
    signatures = " ".join(_signature(secret, signed) for secret in keys)
    return {"webhook-id": id, "webhook-timestamp": timestamp, "webhook-signature": signatures}


def _signature(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    return f"v1,{base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}"
