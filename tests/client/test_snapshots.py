"""Forks and snapshots by the client, against the real server, which is killed meanwhile."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from rlm_client import Client, NotFound, RlmError

from tests.client.real_server import RealServer
from tests.client.test_real_server import PATIENT


def printed(client: Client, session: str, code: str) -> str:
    done = client.execute_once(session, code)
    assert not done.result.HasField("error"), done
    return done.stdout.removesuffix("\n")


def test_a_session_is_forked_kept_carried_and_begun_again(real: RealServer, tmp_path: Path) -> None:
    with Client(real.target, real.key, retry=PATIENT) as client:
        session = client.create_session()
        printed(client, session.session_id, "x = 1")
        snapshot = client.create_snapshot(session.session_id, "one", labels={"a": "b"})
        forks = client.fork_session(session.session_id, 2)
        client.pause_session(session.session_id)
        printed(client, session.session_id, "x = 2")
        real.end(signal.SIGKILL)
        real.start()
        assert printed(client, session.session_id, "x") == "2"
        assert [printed(client, fork.session_id, "x") for fork in forks] == ["1", "1"]
        assert [one.name for one in client.list_snapshots(labels={"a": "b"})] == ["one"]
        file = tmp_path / "file"
        assert client.export_snapshot(snapshot.snapshot_id, file) == snapshot
        with pytest.raises(FileExistsError):
            client.export_snapshot(snapshot.snapshot_id, file)
        client.delete_snapshot(snapshot.snapshot_id)
        with pytest.raises(NotFound):
            client.export_snapshot(snapshot.snapshot_id, tmp_path / "gone")
        assert not (tmp_path / "gone").exists()
        back = client.import_snapshot(file, labels={"c": "d"})
        assert (back.name, dict(back.labels)) == ("one", {"c": "d"})
        assert printed(client, client.create_session(snapshot_id=back.snapshot_id).session_id, "x") == "1"
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(RlmError, match="cut"):
            client.import_snapshot(file)
