"""Forks and snapshots by the client: each call says what was asked, and the real server, killed meanwhile, does it."""

from __future__ import annotations

import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rlm.v1 import session_pb2
from rlm_client import Budget, Client, NotFound, RlmError, SessionState

from tests.client.fake_server import FakeServer
from tests.client.fake_snapshots import FILE
from tests.client.real_server import RealServer
from tests.client.test_real_server import PATIENT


def printed(client: Client, session: str, code: str) -> str:
    done = client.execute_once(session, code)
    assert not done.result.HasField("error"), done
    return done.stdout.removesuffix("\n")


def test_each_call_says_what_was_asked(client: Client, fake: FakeServer, tmp_path: Path) -> None:
    budget = Budget(usd=1)
    forks = client.fork_session("s", 2, labels={"a": "b"}, budget=budget, idle_seconds=1.5, request_id="f")
    assert [fork.session_id for fork in forks] == ["fork-0", "fork-1"]
    (asked,) = fake.asked(session_pb2.ForkSessionRequest)
    assert (asked.session_id, dict(asked.labels), asked.budget) == ("s", {"a": "b"}, budget.message())
    assert (asked.idle_time.ToMilliseconds(), asked.HasField("life_time"), asked.request_id) == (1_500, False, "f")
    assert client.pause_session("s").state == SessionState.SESSION_STATE_PAUSED
    assert client.create_snapshot("s", "name", labels={"c": "d"}).name == "name"
    since = datetime(2025, 1, 2, tzinfo=UTC)
    assert [one.snapshot_id for one in client.list_snapshots("s", since=since)] == [f"snapshot-{n}" for n in (1, 2, 3)]
    listed = fake.asked(session_pb2.ListSnapshotsRequest)[0]
    assert (listed.session_id, listed.since.ToDatetime(UTC), listed.HasField("until")) == ("s", since, False)
    client.delete_snapshot("snapshot-1")
    client.create_session(snapshot_id="snapshot-1")
    assert fake.asked(session_pb2.CreateSessionRequest)[0].snapshot_id == "snapshot-1"
    assert client.export_snapshot("snapshot-1", tmp_path / "file").snapshot_id == "snapshot-1"
    assert (tmp_path / "file").read_bytes() == FILE
    back = client.import_snapshot(tmp_path / "file", "new")
    assert (back.snapshot_id, back.name) == ("snapshot-1", "new")


def test_an_export_that_is_not_what_was_announced_leaves_no_file(
    client: Client, fake: FakeServer, tmp_path: Path
) -> None:
    fake.sha256 = "0" * 64
    with pytest.raises(OSError, match="export it again"):
        client.export_snapshot("snapshot-1", tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


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
