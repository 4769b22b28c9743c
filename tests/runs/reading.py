"""Reads replies as a server does, but for the guest: these texts are the tests' own, and are compiled here."""

from __future__ import annotations

import ast
import asyncio
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from rlm_server.runs.reply import reader
from rlm_server.runs.reply.finals import Final
from rlm_server.runs.reply.reader import Choice, Reply


@dataclass(frozen=True)
class Read:
    """What a reply is taken for: the code to run, or an answer in prose."""

    codes: tuple[str, ...]
    final: Final | None = None


def reply(text: str) -> Reply:
    return asyncio.run(reader.read(text, _choose))


def read(text: str) -> Read:
    found = reply(text)
    return Read(found.codes, None if found.codes else found.finals.final)


async def _choose(programs: Sequence[str]) -> Choice:
    return Choice(next((number for number, program in enumerate(programs) if _compiles(program)), 0))


def _compiles(program: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(program, "<reply>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except (SyntaxError, ValueError):
        return False
    return True
