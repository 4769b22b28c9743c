"""The calls about forks and snapshots, answered from memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import grpc
from rlm.v1 import session_pb2, session_pb2_grpc

from tests.client.fake_contexts import FakeContexts

FILE = bytes(range(256)) * 3000
"""What every snapshot's file holds."""


class FakeSnapshots(FakeContexts, session_pb2_grpc.SessionServiceServicer):
    """Knows three snapshots, and forgets none."""

    sha256 = hashlib.sha256(FILE).hexdigest()

    def ForkSession(
        self, request: session_pb2.ForkSessionRequest, context: grpc.ServicerContext
    ) -> session_pb2.ForkSessionResponse:
        self.enter("ForkSession", request, context)
        made = [session_pb2.Session(session_id=f"fork-{number}") for number in range(request.count)]
        return session_pb2.ForkSessionResponse(sessions=made)

    def PauseSession(
        self, request: session_pb2.PauseSessionRequest, context: grpc.ServicerContext
    ) -> session_pb2.PauseSessionResponse:
        self.enter("PauseSession", request, context)
        paused = session_pb2.Session(session_id=request.session_id, state=session_pb2.SESSION_STATE_PAUSED)
        return session_pb2.PauseSessionResponse(session=paused)

    def CreateSnapshot(
        self, request: session_pb2.CreateSnapshotRequest, context: grpc.ServicerContext
    ) -> session_pb2.CreateSnapshotResponse:
        self.enter("CreateSnapshot", request, context)
        made = session_pb2.Snapshot(snapshot_id="snapshot-1", name=request.name, labels=request.labels)
        return session_pb2.CreateSnapshotResponse(snapshot=made)

    def ListSnapshots(
        self, request: session_pb2.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> session_pb2.ListSnapshotsResponse:
        self.enter("ListSnapshots", request, context)
        number = len(request.page_token) + 1
        one = session_pb2.Snapshot(snapshot_id=f"snapshot-{number}")
        return session_pb2.ListSnapshotsResponse(snapshots=[one], next_page_token="x" * number if number < 3 else "")

    def DeleteSnapshot(
        self, request: session_pb2.DeleteSnapshotRequest, context: grpc.ServicerContext
    ) -> session_pb2.DeleteSnapshotResponse:
        self.enter("DeleteSnapshot", request, context)
        return session_pb2.DeleteSnapshotResponse()

    def ExportSnapshot(
        self, request: session_pb2.ExportSnapshotRequest, context: grpc.ServicerContext
    ) -> Iterator[session_pb2.ExportSnapshotResponse]:
        self.enter("ExportSnapshot", request, context)
        snapshot = session_pb2.Snapshot(snapshot_id=request.snapshot_id)
        header = session_pb2.SnapshotFile(snapshot=snapshot, size_bytes=len(FILE), sha256=self.sha256)
        yield session_pb2.ExportSnapshotResponse(header=header)
        for at in range(0, len(FILE), 100_000):
            chunk = session_pb2.SnapshotChunk(offset=at, data=FILE[at : at + 100_000])
            yield session_pb2.ExportSnapshotResponse(chunk=chunk)

    def ImportSnapshot(
        self, request_iterator: Iterator[session_pb2.ImportSnapshotRequest], context: grpc.ServicerContext
    ) -> session_pb2.ImportSnapshotResponse:
        header = next(request_iterator).header
        self.enter("ImportSnapshot", header, context)
        data = b"".join(message.chunk.data for message in request_iterator)
        whole = (len(data), hashlib.sha256(data).hexdigest()) == (header.size_bytes, header.sha256)
        made = session_pb2.Snapshot(snapshot_id="snapshot-1" if whole else "", name=header.name)
        return session_pb2.ImportSnapshotResponse(snapshot=made)
