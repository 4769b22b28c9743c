"""A tenant that has one thing of each kind, for the tests of what others find of it."""

from __future__ import annotations

import hashlib
from typing import Any

from rlm.v1 import budget_pb2, context_pb2, session_pb2, types_pb2

from tests.system.accountant import Accountant
from tests.system.context_calls import of_documents
from tests.system.operator import Operator
from tests.system.stage import Caller, Play, code, part, refusal
from tests.system.test_customers import Keeper

TEXT = "Nothing of this is yours. " * 100
DOCUMENTS = [("first", TEXT), ("second", TEXT)]
DATA = (TEXT * 2).encode()
SHA256 = hashlib.sha256(DATA).hexdigest()
LABELS = {"team": "of-A"}
CUSTOMER = "customer-of-A"
REQUESTS = ("of-A upload", "of-A run", "of-A session", "of-A fork", "of-A snapshot", "of-A turn", "of-A account")
"""Request ids that others know."""
CHILD: dict[str, Any] = {"A child question": code("FINAL(1)")}
PLAY = Play(code("llm_query('x'); rlm_query('A child question', 'a text')"), code("FINAL('of-A')"), **CHILD)


class Owner:
    """The tenant. `things` are the names of what it has, by kind; `secrets` is what nobody else is to read."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.things: dict[str, str] = {}
        self.snapshot_file = b""
        self.token = ""
        self._key_secret = ""

    @property
    def secrets(self) -> list[bytes]:
        """What no answer to another may hold."""
        texts = (*self.things.values(), "A's question", "of-A", SHA256, "127.0.0.1")
        return [text.encode() for text in texts]

    async def have(self, operator: Operator, url: str) -> None:
        """Make the things: two of each that is listed, so that there is a second page."""
        caller, things = self.caller, self.things
        keeper = Keeper(caller)
        limits = [budget_pb2.SoftLimit(amount=types_pb2.Budget(call_count=count)) for count in (1, 2)]
        await keeper.create(CUSTOMER, "of-A account", labels=LABELS, soft_limits=limits)
        await keeper.create(f"{CUSTOMER}.2", labels=LABELS)
        await keeper.create(f"{CUSTOMER}.under", parent_id=CUSTOMER)
        things["account"] = CUSTOMER
        key = await operator.key("development", account_id=CUSTOMER, labels=LABELS)
        things["key"], self._key_secret = key.key.key_id, key.secret
        request = budget_pb2.SetWebhookRequest(url=url)
        await Accountant(caller).stub.SetWebhook(request, metadata=caller.metadata)
        things["context"] = (await caller.send_parts(of_documents(DOCUMENTS, labels=LABELS))).context_id
        await caller.send_parts(of_documents([("other", "text")], labels=LABELS))
        await self._half_an_upload()
        paid: dict[str, Any] = {"labels": LABELS, "account_id": CUSTOMER}
        run = (await caller.ask("A's question", context_id=things["context"], request_id="of-A run", **paid)).run
        await caller.ask("A's question", **paid)
        child = next(node.node_id for node in await caller.nodes(run.run_id) if node.node_id != run.run_id)
        things |= {"run": run.run_id, "node": child}
        await self._sessions(paid)

    async def _half_an_upload(self) -> None:
        header = context_pb2.UploadHeader(name="half", size_bytes=100, sha256="0" * 64, request_id="of-A upload")
        upload = self.caller.contexts.UploadContext(metadata=self.caller.metadata)
        await upload.write(context_pb2.UploadContextRequest(header=header))
        await upload.write(part(0, b"a part"))
        await upload.done_writing()
        await refusal(upload)

    async def _sessions(self, paid: dict[str, Any]) -> None:
        caller, things = self.caller, self.things
        session = await caller.open_session(context_id=things["context"], request_id="of-A session", **paid)
        await caller.turn(session, "secret = 'of-A'")
        asked = session_pb2.ExecuteRequest(session_id=session, code="1", detached=True, request_id="of-A turn")
        async for response in caller.sessions.Execute(asked, metadata=caller.metadata):
            if response.HasField("accepted"):
                things["turn"] = response.accepted.turn_id
        fork = session_pb2.ForkSessionRequest(session_id=session, labels=LABELS, request_id="of-A fork")
        (forked,) = (await caller.sessions.ForkSession(fork, metadata=caller.metadata)).sessions
        for request_id in ("of-A snapshot", ""):
            request = session_pb2.CreateSnapshotRequest(session_id=session, labels=LABELS, request_id=request_id)
            made = await caller.sessions.CreateSnapshot(request, metadata=caller.metadata)
            things["snapshot"] = made.snapshot.snapshot_id
        things |= {"session": session, "fork": forked.session_id}
        export = session_pb2.ExportSnapshotRequest(snapshot_id=things["snapshot"])
        parts = [one async for one in caller.sessions.ExportSnapshot(export, metadata=caller.metadata)]
        self.snapshot_file = b"".join(one.chunk.data for one in parts)

    async def state(self) -> list[bytes]:
        """All that can be seen of the things, for a comparison."""
        caller, things = self.caller, self.things
        found: list[Any] = [await caller.get(things["run"])]
        status = context_pb2.GetUploadStatusRequest(request_id="of-A upload")
        contexts = context_pb2.ListContextsRequest()
        budgets = Accountant(caller)
        accounts = await budgets.stub.ListAccounts(budget_pb2.ListAccountsRequest(), metadata=caller.metadata)
        for account in accounts.accounts:  # and what looking here costs is not compared
            for field in ("posted", "pending", "carved", "overrun", "left"):
                account.ClearField(field)
        found += [
            accounts,
            await caller.contexts.GetUploadStatus(status, metadata=caller.metadata),
            await caller.contexts.ListContexts(contexts, metadata=caller.metadata),
            await budgets.stub.GetWebhook(budget_pb2.GetWebhookRequest(), metadata=caller.metadata),
        ]
        snapshots = session_pb2.ListSnapshotsRequest()
        found.append(await caller.sessions.ListSnapshots(snapshots, metadata=caller.metadata))
        printed = [(await caller.turn(things[one], "print(secret)")).printed for one in ("session", "fork")]
        return [one.SerializeToString(deterministic=True) for one in found] + [one.encode() for one in printed]
