"""What a node's model is shown."""

from __future__ import annotations

from pathlib import Path

from rlm_server.repl.functions import FUNCTIONS
from rlm_server.runs import prompt


def test_the_system_prompt_is_this_one() -> None:
    assert prompt.system(FUNCTIONS) == (Path(__file__).parent / "system_prompt.txt").read_text()
