"""The usual tools of other languages make stubs from proto/, with no options, and the stubs call a server.

Run by `make test-stubs`, which needs these languages and what their registries have; no ordinary test run collects this
module. Each language has its folder here: a program that asks for the server's version, and `run`, which does with it
what somebody would type. grpcurl needs no stubs.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from rlm.v1 import server_pb2, server_pb2_grpc

from sandbox.vm.image import cache_folder
from tests.servers import Served
from tests.system.stage import Play

HERE, PROTO = Path(__file__).parent, Path(__file__).parents[2] / "proto"


@pytest.fixture
def path(tmp_path: Path) -> str:
    """The PATH, with a protoc: the one that comes with the requirements."""
    (tmp_path / "bin").mkdir()
    protoc = tmp_path / "bin" / "protoc"
    protoc.write_text(f'#!/bin/sh\nexec {sys.executable} -m grpc_tools.protoc "$@"\n')
    protoc.chmod(0o755)
    return f"{protoc.parent}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize("language", sorted(found.parent.name for found in HERE.glob("*/run")))
async def test_its_usual_tools_make_stubs_that_compile_and_call_a_server(
    server: Served, tmp_path: Path, path: str, language: str
) -> None:
    folder = tmp_path / language
    shutil.copytree(HERE / language, folder)
    async with server(Play("")) as served:
        environment = {
            **os.environ,
            "PATH": path,
            "PROTO": str(PROTO),
            "RLM_SERVER": served.running.address,
            "RLM_API_KEY": served.running.key,
            "CARGO_TARGET_DIR": str(cache_folder().parent / "stubs"),  # the others keep what they compiled themselves
        }
        ran = await asyncio.create_subprocess_exec(
            "./run", cwd=folder, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        told, complaint = await ran.communicate()
        stub: Any = server_pb2_grpc.ServerServiceStub(served.caller.channel)
        info = await stub.GetServerInfo(server_pb2.GetServerInfoRequest(), metadata=served.caller.metadata)
    assert ran.returncode == 0, (told + complaint).decode()
    assert told.decode().splitlines()[-1] == info.version
