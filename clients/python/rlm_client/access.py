"""How the command reaches the server, by the options of its group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rlm_client.cli_errors import UsageError
from rlm_client.client import Client
from rlm_client.interrupts import Interrupts


@dataclass(frozen=True, slots=True)
class Access:
    """Where the server is, the key, and how private the way there is."""

    server: str | None
    key: str | None
    tls: bool
    allow_plaintext: bool

    @contextmanager
    def open(self) -> Iterator[tuple[Client, Interrupts]]:
        """Open the connection, and handle interrupts for as long as it is open."""
        try:
            client = Client(self.server, self.key, tls=self.tls, allow_plaintext=self.allow_plaintext)
        except ValueError as error:
            raise UsageError(str(error)) from None
        with Interrupts() as interrupts, client:
            yield client, interrupts
