"""Takes the events that rlm-server sends to a webhook, and verifies that they are its own.

    WEBHOOK_SECRET=whsec_… .venv/bin/python examples/webhook_receiver.py 8080

It needs nothing but Python. What it serves is to stand behind TLS.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import sys
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

TOLERANCE_SECONDS = 300
MAX_BODY = 64 << 10


class NotSigned(Exception):
    """It does not come from the server, was changed on the way, or is too old."""


def verified(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> str:
    """Return the id of an event whose signature is right. The same id may come again: handle it once."""
    id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not timestamp.isdigit() or abs(now - int(timestamp)) > TOLERANCE_SECONDS:
        raise NotSigned("its time is not about now")
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = b".".join((id.encode(), timestamp.encode(), body))
    expected = "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    # There are two while a secret is being replaced.
    signatures = headers.get("webhook-signature", "").split(" ")
    if not any(hmac.compare_digest(expected.encode(), one.encode()) for one in signatures):
        raise NotSigned("its signature is another")
    return id


class Receiver(BaseHTTPRequestHandler):
    """Prints each event once."""

    secret = ""
    seen: ClassVar[set[str]] = set()

    def do_POST(self) -> None:
        """Take an event."""
        body = self.rfile.read(min(int(self.headers.get("content-length", 0)), MAX_BODY))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            id = verified(self.secret, headers, body, time.time())
        except NotSigned as error:
            self.send_error(401, str(error))
            return
        if id not in self.seen:
            self.seen.add(id)
            event = json.loads(body)
            print(id, event["type"], json.dumps(event["data"]), flush=True)
        self.send_response(204)
        self.end_headers()


if __name__ == "__main__":
    Receiver.secret = os.environ["WEBHOOK_SECRET"]
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
