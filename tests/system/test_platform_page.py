"""The commands of docs/platform.md, typed in their order into one shell, do what the page says."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from rlm_server.database.migrations import MIGRATIONS
from tests.databases import postgres_database
from tests.former.versions import RECENT

PAGE = (Path(__file__).parents[2] / "docs" / "platform.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
(SETTINGS,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
UPGRADE = next(number for number, block in enumerate(BLOCKS) if "rlm-server backup before.backup" in block)
"""The block that begins the upgrade; the next one starts the new version, and the one after it goes back."""
END = "__end__"


class Shell:
    """A shell that somebody types into."""

    def __init__(self, process: asyncio.subprocess.Process, typed: Path) -> None:
        self._process, self._typed = process, typed

    @classmethod
    @asynccontextmanager
    async def opened(cls, folder: Path) -> AsyncIterator[Shell]:
        """Open one in a folder, with the project's programs on its path. What it started ends with it."""
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        process = await asyncio.create_subprocess_exec(
            "bash",
            cwd=folder,
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        shell = cls(process, folder / "typed.sh")
        try:
            yield shell
        finally:
            await shell.types("kill $(jobs -p) || true\nwait")
            process.kill()
            await process.wait()

    async def types(self, commands: str) -> str:
        """Type commands, see each succeed, and return what all of them printed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._typed.write_text(commands)
        self._process.stdin.write(
            f"failed=; trap 'failed=$?' ERR; . {self._typed} </dev/null; echo {END}$failed\n".encode()
        )
        printed = ""
        async with asyncio.timeout(120):
            async for line in self._process.stdout:
                text = line.decode()
                if text.startswith(END):
                    assert text.strip() == END, f"{commands}\n{printed}"
                    return printed
                printed += text
        raise AssertionError(printed)


def port() -> int:
    """A port that is free."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def spent(printed: str) -> dict[str, str]:
    """What `rlm usage --by account` tells of each account."""
    lines = [line.split() for line in printed.splitlines()]
    return {words[0]: " ".join(words[1:]) for words in lines if words and words[0] in {"ann", "bob"}}


async def test_the_page_leads_from_nothing_to_customers_that_pay_to_a_copy_elsewhere_and_to_a_new_version(
    postgres: str, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        listened = str(port())
        urls = {name: stack.enter_context(postgres_database(postgres)) for name in ("rlm", "restored", "back", "old")}

        def typed(block: str) -> str:
            there = re.sub(r"postgresql://rlm:PASSWORD@db.example.org/(\w+)", lambda url: f"'{urls[url[1]]}'", block)
            return there.replace("7400", listened)

        (tmp_path / "server.toml").write_text(typed(SETTINGS))
        async with Shell.opened(tmp_path) as shell:
            printed = list[str]()
            for number, block in enumerate(BLOCKS):
                if number == UPGRADE:  # from here on, what there is was left by a former version
                    told = await shell.types("RLM_API_KEY=$(cat globex.key) rlm --tls usage --by account")
                    await shell.types(
                        f"export RLM_DATABASE_URL='{urls['old']}' RLM_DATA_DIR=$PWD/old\n"
                        f"export RLM_API_KEY={RECENT.told['acme']['key']}\nrlm-server restore {RECENT.backup}"
                    )
                key_id = ""
                if "KEY_ID" in block:
                    known = json.loads(await shell.types("rlm-server key list acme --json"))
                    key_id = min(known, key=lambda key: key["create_time"])["key_id"]
                printed.append(await shell.types(typed(block).replace("KEY_ID", key_id)))
                if key_id:
                    refused = await shell.types("RLM_API_KEY=$(cat acme.key) rlm --tls quota || true")
                    assert "not valid" in refused
            back = await shell.types("rlm-server migrate --check || true")
    first, elsewhere, upgraded = (
        spent(text) for text, block in zip(printed, BLOCKS, strict=True) if "rlm --tls usage --by account" in block
    )
    assert first == elsewhere
    assert first.keys() == upgraded.keys() == {"ann", "bob"}
    assert not spent(told), "another tenant's customers are not there"
    former = f"schema version {RECENT.schema} of {len(MIGRATIONS)}"
    assert f"ok  database: {former}; back it up" in printed[UPGRADE + 1]
    assert f"the database has schema version {len(MIGRATIONS)}\n" in printed[UPGRADE + 1]
    assert back == f"the database has {former}\n"
