"""The README's Python does what it says, against a server."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

from tests.servers import Served
from tests.system.stage import Play, code

README = Path(__file__).parents[2] / "README.md"


async def test_the_readmes_python_asks_and_prints_the_answer(server: Served, tmp_path: Path) -> None:
    example = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(example) == 1
    (tmp_path / "corpus.txt").write_text("Acme now wants payment in 30 days.")
    async with server(Play(code("FINAL(context[:4])"))) as served:
        environment = {**os.environ, "RLM_SERVER": served.running.address, "RLM_API_KEY": served.running.key}
        done = await asyncio.create_subprocess_exec(
            sys.executable, "-c", example[0], cwd=tmp_path, env=environment, stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await done.communicate()
    assert done.returncode == 0
    lines = printed.decode().splitlines()
    assert lines[0] == "1 run_started"
    assert lines[-2].endswith("run_finished")
    assert lines[-1] == "Acme"
