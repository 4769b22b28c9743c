"""What a wheel installs is there in the sessions and runs of a server whose settings name it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from rlm.v1 import server_pb2, server_pb2_grpc

from rlm_server.commands.cli import main
from tests.sandbox.vm.wheel_maker import made
from tests.servers import Served
from tests.system.stage import Play, code


async def test_code_imports_what_a_wheel_has_in_sessions_and_runs(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = made(tmp_path)
    images = {"greets": {"imports": ["greeting"], "wheels": [str(wheel)]}}
    play = Play(code("import greeting\nFINAL(greeting.greet())"))
    async with server(play, images=images) as served:
        session = await served.caller.open_session(image="greets")
        turn = await served.caller.turn(session, "import greeting; print(greeting.greet(), greeting.__file__)")
        assert turn.printed == "hello /usr/local/lib/python3.15/site-packages/greeting.py\n"
        assert (await served.caller.ask(image="greets")).run.answer == "hello"
        stub = server_pb2_grpc.ServerServiceStub(served.caller.channel)
        listed = await stub.ListImages(server_pb2.ListImagesRequest(), metadata=served.caller.metadata)
        assert {image.name: list(image.modules) for image in listed.images}["greets"] == ["greeting"]

    monkeypatch.setenv("RLM_IMAGES", json.dumps(images))
    told = CliRunner().invoke(main, ["image", "list"]).stdout
    assert told.startswith("core: built, ")
    assert told.endswith(" MiB\n  imports: greeting\n  wheels:  greeting 1.2\n")
    in_json = json.loads(CliRunner().invoke(main, ["image", "list", "--json"]).stdout)
    assert [(image["name"], image["built"]) for image in in_json] == [("core", True), ("data", True), ("greets", True)]
    assert in_json[2]["wheels"] == [{"name": "greeting", "version": "1.2"}]
    made(tmp_path, files={"greeting.py": "def greet(): return 'another'"})
    assert "greets: not built\n" in CliRunner().invoke(main, ["image", "list"]).stdout
