"""The server that is measured: the product as it is, with a scripted model and tenants that each have a key.

Reads one line of JSON: `settings`, and `tenants` by name with the limits of their accounts. Writes one: `address`, and
`keys` by tenant. Serves until SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import signal
import sys
from typing import Any

from benchmarks.neighbours.script import Player
from rlm_server.config.settings import Settings
from rlm_server.ledger import Limit
from rlm_server.server import serving
from rlm_server.tenants.terms import OwnTerms


async def main() -> None:
    """Serve until SIGTERM."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)r")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asked: dict[str, Any] = json.loads(sys.stdin.readline())
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with serving(Settings.load(**asked["settings"]), scripts={"play": Player()}) as running:
        keys = {}
        for name, limit in asked["tenants"].items():
            await running.tenants.create(name, OwnTerms(budget=Limit(**limit)), {})
            _, keys[name] = await running.keys.create(name)
        print(json.dumps({"address": running.address, "keys": keys}), flush=True)
        await stopped.wait()


if __name__ == "__main__":
    asyncio.run(main())
