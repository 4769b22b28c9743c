"""A server that is killed, again and again, while contexts are uploaded, read and deleted, loses nothing that was
finished and leaves nothing behind: no file, no folder and no row.

RLM_TEST_KILLS sets how often.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from rlm.v1 import context_pb2

from tests.fake_provider.server import FakeProvider
from tests.system.context_calls import ContextCalls, Documents, Message, header, in_order, of_documents, of_text
from tests.system.stage import Caller, eventually
from tests.system.test_process import address, process

KILLS = int(os.environ.get("RLM_TEST_KILLS", "5"))
WORDS = ["plain ", "größer ", "東京 ", "🎉 ", "\n"]


@dataclass
class Sent:
    """An upload that a worker makes: `documents` is None for one text."""

    name: str
    documents: Documents | None
    text: str

    def messages(self) -> list[Message]:
        if self.documents is None:
            return of_text(self.text, request_id=self.name)
        return of_documents(self.documents, request_id=self.name, chunk=100_000)

    def expected(self, number: int) -> str:
        return self.text if self.documents is None else str(self.documents[number][1])


@dataclass
class Work:
    """What the workers have done, over all lives of the server."""

    rng: random.Random
    sent: dict[str, Sent] = field(default_factory=dict)
    """By SHA-256 of the text, which is another for each."""
    kept: dict[str, Sent] = field(default_factory=dict)
    """What the server said it keeps, by context."""
    deleting: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    """What the server said it deleted."""
    begun: dict[str, Sent] = field(default_factory=dict)
    """Uploads with a request id that were not answered."""
    killed: bool = False
    """Whether the server was, in its present life."""
    attached: int = 0
    went_on: int = 0

    def something(self) -> Sent:
        rng, number = self.rng, len(self.sent)
        text = f"{number} " + "".join(rng.choices(WORDS[: rng.choice((1, 2, 5))], k=rng.choice((1, 100, 300_000))))
        documents = None
        if rng.random() < 0.5:
            size = rng.choice((len(text), 1_000))
            pieces = [text[at : at + size] for at in range(0, len(text), size)]
            documents = [(f"{place}.txt", piece) for place, piece in enumerate(pieces)]
        sent = Sent(rng.choice(("", f"upload {number}")), documents, text)
        self.sent[header(text.encode()).header.sha256] = sent
        return sent

    async def upload(self, caller: Caller) -> None:
        sent = self.something()
        try:
            context = await ContextCalls(caller).send(sent.messages())
        except grpc.RpcError:
            if sent.name:
                self.begun[sent.name] = sent
            raise
        self.kept[context.context_id] = sent

    async def go_on(self, caller: Caller) -> None:
        """Go on with an upload from where the server says."""
        if not self.begun:
            return await self.upload(caller)
        name, sent = self.begun.popitem()
        calls = ContextCalls(caller)
        try:
            known = await calls.known(name) or context_pb2.GetUploadStatusResponse()
            if known.HasField("context"):  # and its answer was lost
                self.kept[known.context.context_id] = sent
                return None
            received, announced = known.received_bytes, known.received_document_count
            self.went_on += received > 0
            first, *others = sent.messages()
            rest = [first]
            for other in others:
                if other.HasField("documents"):
                    del other.documents.documents[:announced]
                    other.documents.first_document = announced
                    rest += [other] * bool(other.documents.documents)
                elif other.chunk.offset + len(other.chunk.data) > received:
                    skipped = max(0, received - other.chunk.offset)
                    chunk = context_pb2.UploadChunk(
                        offset=other.chunk.offset + skipped, data=other.chunk.data[skipped:]
                    )
                    rest.append(Message(chunk=chunk))
            self.kept[(await calls.go_on(rest)).context_id] = sent
        except BaseException:
            self.begun[name] = sent
            raise
        return None

    async def attach(self, caller: Caller) -> None:
        context_id, sent = self.some_context()
        if sent is None or sent.documents is not None:
            return
        try:
            session = await caller.open_session(context_id=context_id)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND and context_id in self.deleting:
                return
            raise
        assert (await caller.turn(session, "print(len(context))")).printed == f"{len(sent.text)}\n"
        self.attached += 1
        await caller.delete(session)

    async def delete(self, caller: Caller) -> None:
        context_id, sent = self.some_context()
        if sent is not None and len(self.kept) > 10 and self.rng.random() < len(self.kept) / 100:
            self.deleting.add(context_id)
            await ContextCalls(caller).delete(context_id)
            self.deleted.add(context_id)

    def some_context(self) -> tuple[str, Sent | None]:
        kept = sorted(self.kept.keys() - self.deleting)
        context_id = self.rng.choice(kept) if kept else ""
        return context_id, self.kept.get(context_id)

    async def until_killed(self, act: Callable[[Caller], Awaitable[None]], caller: Caller) -> None:
        """Do the same again and again, until the server is gone."""
        while True:
            try:
                await act(caller)
                await ContextCalls(caller).list(page_size=1)
            except grpc.RpcError:
                if not self.killed:
                    raise
                return

    async def check(self, caller: Caller, data_dir: Path) -> None:
        """All that was kept is there and whole, what was deleted is not, and there is nothing else."""
        await eventually(lambda: in_order(data_dir))
        calls = ContextCalls(caller)
        page = await calls.list(page_size=1_000)
        there = {context.context_id: context for context in page.contexts}
        while page.next_page_token:
            page = await calls.list(page_size=1_000, page_token=page.next_page_token)
            there |= {context.context_id: context for context in page.contexts}
        assert not there.keys() & self.deleted
        assert self.kept.keys() - self.deleting <= there.keys()
        for context_id, context in there.items():
            sent = self.kept.setdefault(context_id, self.sent[context.sha256])  # one whose answer was lost, too
            number = self.rng.randrange(context.document_count)
            text, expected = "", sent.expected(number)
            while len(text) < len(expected):
                text += (await calls.read(context_id, number, len(text), len(text) + (1 << 18))).text
            assert text == expected
        self.kept = {context_id: self.kept[context_id] for context_id in there}
        self.deleting.clear()


async def test_a_server_that_is_killed_loses_no_finished_upload_and_leaves_nothing_behind(tmp_path: Path) -> None:
    data_dir, work = tmp_path / "data", Work(random.Random(KILLS))
    async with FakeProvider(answer="").serving() as provider:
        for life in range(KILLS + 1):
            async with process(data_dir, provider) as server:
                caller = Caller(await address(server), (data_dir / "development-key").read_text().strip())
                work.killed = False
                await work.check(caller, data_dir)
                if life < KILLS:
                    acts = (work.upload, work.upload, work.upload, work.go_on, work.attach, work.delete)
                    workers = [asyncio.create_task(work.until_killed(act, caller)) for act in acts]
                    await asyncio.sleep(work.rng.uniform(0.01, 1.0))
                    if life == KILLS - 1:
                        await eventually(lambda: work.kept and work.deleted and work.attached)
                    work.killed = True
                    server.send_signal(signal.SIGKILL)
                    await server.wait()
                    await asyncio.gather(*workers)
                await caller.channel.close(None)
    assert work.kept, "something was finished"
    assert work.deleted
    assert work.attached
    print(f"{len(work.sent)} uploads, {len(work.kept)} kept, {work.went_on} gone on with, {len(work.deleted)} deleted")
