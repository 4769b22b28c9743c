"""What becomes of sessions: the part of the client that forks, pauses and keeps them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO

from rlm.v1 import session_pb2, session_pb2_grpc

from rlm_client import errors
from rlm_client.caller import Caller
from rlm_client.durations import seconds, stamp
from rlm_client.money import Budget
from rlm_client.pages import pages
from rlm_client.retry import named

_CHUNK_BYTES = 256 << 10
_WAITING_SECONDS = 3_600.0
"""What calls wait for a turn that is under way, and for those before it."""


class SnapshotCalls(Caller):
    """The calls of `SessionService` about forks and snapshots."""

    _sessions: session_pb2_grpc.SessionServiceStub

    def fork_session(
        self,
        session_id: str,
        count: int = 1,
        *,
        labels: Mapping[str, str] | None = None,
        budget: Budget | None = None,
        idle_seconds: float | None = None,
        life_seconds: float | None = None,
        request_id: str | None = None,
    ) -> list[session_pb2.Session]:
        """Make sessions that begin as this one is after its last finished turn: so many, or none.

        Each has an account of its own. What is left out is as of the session, but for the labels.
        """
        request = session_pb2.ForkSessionRequest(
            request_id=named(request_id),
            session_id=session_id,
            count=count,
            labels=labels,
            budget=None if budget is None else budget.message(),
            idle_time=None if idle_seconds is None else seconds(idle_seconds),
            life_time=None if life_seconds is None else seconds(life_seconds),
        )
        return list(self._unary(self._sessions.ForkSession, request, _WAITING_SECONDS).sessions)

    def pause_session(self, session_id: str, *, request_id: str | None = None) -> session_pb2.Session:
        """Store a session and give back its memory, after a turn that is under way. Its next turn wakes it."""
        request = session_pb2.PauseSessionRequest(session_id=session_id, request_id=named(request_id))
        return self._unary(self._sessions.PauseSession, request, _WAITING_SECONDS).session

    def create_snapshot(
        self,
        session_id: str,
        name: str = "",
        *,
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> session_pb2.Snapshot:
        """Keep a session as it is after its last finished turn, also beyond its end."""
        request = session_pb2.CreateSnapshotRequest(
            request_id=named(request_id), session_id=session_id, name=name, labels=labels
        )
        return self._unary(self._sessions.CreateSnapshot, request, _WAITING_SECONDS).snapshot

    def list_snapshots(
        self,
        session_id: str = "",
        *,
        labels: Mapping[str, str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Iterator[session_pb2.Snapshot]:
        """Give your snapshots, the newest first, asking for more as they are taken; of one session where it is named.

        They have all `labels`, and were made at `since` or later and before `until`. A time without a zone is UTC.
        """
        request = session_pb2.ListSnapshotsRequest(
            session_id=session_id, labels=labels, since=stamp(since), until=stamp(until)
        )
        for page in pages(partial(self._unary, self._sessions.ListSnapshots), request):
            yield from page.snapshots

    def delete_snapshot(self, snapshot_id: str, *, request_id: str | None = None) -> None:
        """Remove a snapshot. Sessions that began from it stay."""
        request = session_pb2.DeleteSnapshotRequest(snapshot_id=snapshot_id, request_id=named(request_id))
        self._unary(self._sessions.DeleteSnapshot, request)

    def export_snapshot(self, snapshot_id: str, path: str | os.PathLike[str]) -> session_pb2.Snapshot:
        """Write a snapshot into a new file, which only `import_snapshot` reads. A file that is not whole is removed.

        Raises:
            FileExistsError: there is something at the path already.
            OSError: it cannot be written, or what came is not what was announced.
        """
        request = session_pb2.ExportSnapshotRequest(snapshot_id=snapshot_id)
        with Path(path).open("xb") as file:
            try:
                return _received(self._streamed(self._sessions.ExportSnapshot, request), file)
            except BaseException:
                Path(path).unlink()
                raise

    def import_snapshot(
        self,
        path: str | os.PathLike[str],
        name: str = "",
        *,
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> session_pb2.Snapshot:
        """Take a file that `export_snapshot` wrote, for the same tenant of a server with the same secret.

        Raises:
            OSError: the file cannot be read.
        """
        with Path(path).open("rb") as file:
            header = session_pb2.ImportSnapshotHeader(
                request_id=named(request_id),
                name=name,
                labels=labels,
                size_bytes=file.seek(0, os.SEEK_END),
                sha256=_hash(file),
            )

            def send() -> session_pb2.Snapshot:
                return self._sessions.ImportSnapshot(_messages(header, file), metadata=self._metadata).snapshot

            return self._retry.call(errors.typed()(send))


def _received(messages: Iterator[session_pb2.ExportSnapshotResponse], file: BinaryIO) -> session_pb2.Snapshot:
    announced, digest = session_pb2.SnapshotFile(), hashlib.sha256()
    for message in messages:
        if message.HasField("header"):
            announced = message.header
        else:
            file.write(message.chunk.data)
            digest.update(message.chunk.data)
    if digest.hexdigest() != announced.sha256:
        raise OSError("the snapshot that came is not the one that was announced: export it again")
    return announced.snapshot


def _hash(file: BinaryIO) -> str:
    file.seek(0)
    digest = hashlib.sha256()
    while piece := file.read(_CHUNK_BYTES):
        digest.update(piece)
    return digest.hexdigest()


def _messages(header: session_pb2.ImportSnapshotHeader, file: BinaryIO) -> Iterator[session_pb2.ImportSnapshotRequest]:
    yield session_pb2.ImportSnapshotRequest(header=header)
    file.seek(0)
    offset = 0
    while data := file.read(_CHUNK_BYTES):
        yield session_pb2.ImportSnapshotRequest(chunk=session_pb2.SnapshotChunk(offset=offset, data=data))
        offset += len(data)
