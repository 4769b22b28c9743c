"""Messages of the protocol with hostile values, made from their descriptors: right in type, and wrong in all else."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import pkgutil
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import rlm.v1
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rlm.v1 import budget_pb2, context_pb2, session_pb2

from rlm_server.clock import now

NUMBERS = (0, 1, 2, 3, 64, 100, 1_000, 4_096, 1 << 18, 1 << 20, (1 << 31) - 1, 1 << 53, (1 << 62) - 1, (1 << 63) - 1)
TEXTS = (
    *("", " ", "\x00", "x", "ä" * 500, "\N{PILE OF POO}" * 70, "\u202e\u0000\ufeff", "\ud7ff\ue000", "' OR 1=1 --"),
    *("../../etc/passwd", "%s%n{0}", "[" * 1_000, "x" * 129, "\n" * 501, "a\r\nb: c", "x" * 100_001),
)
CODES = (
    *("1+1", "print('x' * 100)", "raise ValueError('\\ud800' * 1000)", "def", "\x00", "import os; os._exit(1)"),
    *("1 if True else " * 500 + "1", "open('/tmp/x', 'w')", "llm_query('x')", "answer['ready'] = True", "search('x')"),
)
MANY = 3_000
"""Of a repeated field of numbers."""


PATHS = (
    *("name", "labels", "idle_time", "life_time", "limit", "window_limits", "model_limits", "soft_limits", "weight"),
    *("limits", "limits.max_depth", "allowed_models", "allowed_images", "budget", "day_budget", "minute_budget", "*"),
)
"""What masks may name, of whichever message."""
NEEDED = (
    *("account", "tenant", "session", "run_id", "session_id", "tenant_id", "key_id", "request_id"),
    *("question", "code", "pattern"),
)
"""Fields without which not much comes of a request."""
KINDS = ("context", "run", "node", "session", "turn", "snapshot", "account", "tenant", "key")
"""Of things that have names."""


@dataclass(slots=True)
class Hostile:
    """Makes messages. `known` are names of things that there are, by kind, some of them another tenant's.

    `files` are those of snapshots, of which some are another tenant's.
    """

    random: random.Random
    known: Mapping[str, Sequence[str]]
    files: Sequence[bytes] = ()
    plausible: Mapping[str, Callable[[], Any]] = field(init=False)
    """Values by a field's name, that may be right."""
    entries: Mapping[str, tuple[Callable[[], str], Callable[[], Any]]] = field(init=False)
    """Keys and values of maps, by a field's name, that may be right."""
    times: Mapping[str, Callable[[], int]] = field(init=False)
    """Milliseconds, by the type of a time, that may be right."""
    mild: float = 0.5
    """How much of a message is plausible: another share in each, as what is all wrong does not come far."""
    full: float = 0.5
    """How many of its fields are set."""

    def __post_init__(self) -> None:
        pick = self.random.choice
        day = 86_400_000
        self.times = {
            Timestamp.DESCRIPTOR.full_name: lambda: pick([0, now() - day, now(), now() + 60_000, now() + day]),
            Duration.DESCRIPTOR.full_name: lambda: pick([1_000, 5_000, 30_000, 60_000]),
        }
        self.entries = {
            "labels": (lambda: pick(["team", "a"]), lambda: pick(["red", "blue", ""])),
            "limits": (lambda: pick(["tenant_sessions", "tenant_snapshots"]), lambda: pick([1.0, 2.0, 10.0])),
        }
        self.plausible = {
            **{f"{kind}_id": partial(self._name, kind) for kind in KINDS},
            "account_id": lambda: pick([*self.known["account"], self._name("run"), self._new()]),
            "parent_id": lambda: pick([self._name("account"), ""]),
            "node_id": lambda: pick([self._name("node"), self._name("run")]),
            "call_id": lambda: pick(["tool_" + "0" * 32, self._new()]),
            "continue_run_id": lambda: pick(["", "", self._name("run")]),
            "paths": lambda: pick(PATHS),
            "url": lambda: pick(["http://127.0.0.1:9/hook", "https://127.0.0.1/", "https://user@example.com/#x"]),
            "label": lambda: pick(["team", ""]),
            "span": lambda: pick(
                [budget_pb2.WINDOW_SPAN_HOUR, budget_pb2.WINDOW_SPAN_DAY, budget_pb2.WINDOW_SPAN_MONTH]
            ),
            "percent": lambda: pick([1, 50, 100]),
            "weight": lambda: pick([0.5, 1.0, 2.0]),
            "count": lambda: pick([0, 1, 2]),
            **dict.fromkeys(("allowed_models", "allowed_fallbacks"), lambda: pick(["play", "p*", "*"])),
            "allowed_images": lambda: pick(["core", "*"]),
            "request_id": lambda: f"request {self.random.randrange(50)}",
            "model": lambda: pick([*["play"] * 9, "nobody"]),
            "name": lambda: "a name",
            "sub_model": lambda: pick(["play", ""]),
            "image": lambda: pick(["core", "data", ""]),
            "question": lambda: "What?",
            "code": lambda: pick(CODES),
            "pattern": lambda: pick([*["t.xt"] * 8, "(", "a{1000}", r"\pL+", "[^a]" * 200, "", "(?i)(x+x+)+y", "\\C"]),
            "page_token": lambda: pick(["", "", "", self._page_token()]),
            "sha256": lambda: hashlib.sha256(b"").hexdigest(),
            "page_size": lambda: pick([0, 1, 2, 1_000]),
            "tenant_id": lambda: pick([*self.known["tenant"], "acme", self._new()]),
            **dict.fromkeys(("nano_usd", "token_count", "call_count"), lambda: pick([1, 1_000, 10_000_000])),
            "memory_bytes": lambda: 128 << 20,
            **dict.fromkeys(("max_depth", "max_turn_count", "door_call_count"), lambda: pick([1, 3])),
            **dict.fromkeys(("file_count", "door_waiting_count"), lambda: pick([10, 16])),
            **dict.fromkeys(("output_bytes", "door_bytes", "file_bytes"), lambda: pick([4_096, 100_000])),
            "seconds": lambda: pick([0, 0, 1, 10_000]),
            "nanos": lambda: pick([0, 1_000_000, 300_000_000]),
            **dict.fromkeys(("documents", "document"), lambda: pick([0, 0, 0, 1, 4])),
            "start": lambda: pick([0, 0, 1, 7, 100_000]),
            "end": lambda: pick([7, 500, 100_000]),
        }

    def message(self, of: Descriptor, depth: int = 0) -> Message:
        """Make a message of a type."""
        made: Any = message_factory.GetMessageClass(of)()
        if of.full_name in self.times and self.random.random() < self.mild:
            made.FromMilliseconds(self.times[of.full_name]())
            return made  # type: ignore[no-any-return]
        for one in of.fields:
            if self.random.random() > max(self.full, self.mild if one.name in NEEDED else 0):
                continue
            oneof = one.containing_oneof
            if oneof is not None and made.WhichOneof(oneof.name) and self.random.random() < 0.5:
                continue  # or the last of a oneof would always be the one
            if one.is_repeated:
                self._fill(getattr(made, one.name), one, depth)
            elif one.message_type is not None:
                if depth < 4:
                    getattr(made, one.name).CopyFrom(self.message(one.message_type, depth + 1))
            else:
                setattr(made, one.name, self._value(one))
        filled: Message = made
        return filled

    def sent(self, method: MethodDescriptor) -> list[bytes]:
        """Make what is sent to a method: one message, or a stream of them, some of which are no messages at all."""
        self.mild, self.full = self.random.choice([0.2, 0.6, 0.9, 0.98, 1, 1]), self.random.choice([0.3, 0.6, 0.9, 1])
        if method.client_streaming:
            stream = self._upload if method.name == "UploadContext" else self._import
            return [self._broken(part) for part in self._disturbed(list(stream()), method.input_type)]
        return [self._broken(self.message(method.input_type))]

    def _disturbed(self, parts: list[Message], of: Descriptor) -> list[Message]:
        """Return a stream as it is, or with parts that are wrong, missing, or in another order."""
        if self.random.random() < self.mild:
            return parts
        parts = [*parts, self.message(of)]
        self.random.shuffle(parts)
        return parts[: self.random.randrange(len(parts) + 1)]

    def _import(self) -> Iterator[Message]:
        """Yield the import of a snapshot's file, which may be altered."""
        data = self.random.choice([*self.files, b"RLMS"])
        if self.random.random() > self.mild:
            at = self.random.randrange(len(data))
            data = data[:at] + self.random.randbytes(1) + data[at + self.random.choice([0, 1, 100]) :]
        yield session_pb2.ImportSnapshotRequest(
            header=session_pb2.ImportSnapshotHeader(
                size_bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                request_id=self.random.choice(["", *(f"request {n}" for n in range(50))]),
            )
        )
        for at in range(0, len(data), 500_000):
            chunk = session_pb2.SnapshotChunk(offset=at, data=data[at : at + 500_000])
            yield session_pb2.ImportSnapshotRequest(chunk=chunk)

    def _upload(self) -> Iterator[Message]:
        """Yield an upload, which may not be what its header says."""
        data = self.random.choice([b"text", "äöü".encode(), b"x" * 10_000, b"", b"\xff\xfe", "ä".encode()[:1]])
        count = self.random.choice([0, 0, 1, 2, -1, 1 << 62])
        header = context_pb2.UploadHeader(
            name="n",
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            request_id=self.random.choice(["", *(f"request {n}" for n in range(50))]),
            document_count=count,
        )
        announced = [
            context_pb2.UploadDocument(name="d", size_bytes=len(data) * (n == 0)) for n in range(min(count, 2))
        ]
        yield context_pb2.UploadContextRequest(header=header)
        if announced or self.random.random() > self.mild:
            documents = context_pb2.UploadDocuments(documents=announced)
            yield context_pb2.UploadContextRequest(documents=documents)
        yield context_pb2.UploadContextRequest(chunk=context_pb2.UploadChunk(data=data))

    def _broken(self, made: Message) -> bytes:
        data = made.SerializeToString()
        match self.random.randrange(20) if self.random.random() > self.mild else -1:
            case 0:
                return data[: self.random.randrange(len(data) + 1)]
            case 1:
                return self.random.randbytes(self.random.randrange(200))
            case 2:
                flipped = bytearray(data)
                for _ in range(min(3, len(flipped))):
                    flipped[self.random.randrange(len(flipped))] = self.random.randrange(256)
                return bytes(flipped)
            case 3:
                return data + b"\xfa\x3f\x04none"  # a field that nobody knows
            case 4:
                return data + b"\x0b" * 2_000  # groups within groups
        return data

    def _fill(self, repeated: Any, one: FieldDescriptor, depth: int) -> None:
        count = self.random.choice([0, 1, 3])
        if one.message_type is not None and one.message_type.GetOptions().map_entry:
            key, value = (one.message_type.fields_by_name[name] for name in ("key", "value"))
            likely = self.entries[one.name] if self.random.random() < self.mild else None
            for _ in range(count):
                made = (likely[0](), likely[1]()) if likely else (self._value(key), self._value(value))
                repeated[made[0]] = made[1]
        elif one.message_type is not None:
            for _ in range(count if depth < 4 else 0):
                repeated.add().CopyFrom(self.message(one.message_type, depth + 1))
        else:
            many = count if one.cpp_type == FieldDescriptor.CPPTYPE_STRING else MANY
            repeated.extend(self._value(one) for _ in range(self.random.choice([count, count, count, many])))

    def _value(self, one: FieldDescriptor) -> Any:
        likely = self.plausible.get(one.name)
        if self.random.random() < self.mild:
            if likely is not None:
                return likely()
            if one.enum_type is not None:
                return self.random.choice(one.enum_type.values[1:]).number
        kinds: dict[int, Callable[[], Any]] = {
            FieldDescriptor.CPPTYPE_STRING: lambda: self._bytes() if _is_bytes(one) else self._text(),
            FieldDescriptor.CPPTYPE_BOOL: lambda: self.random.random() < 0.5,
            FieldDescriptor.CPPTYPE_ENUM: lambda: self.random.choice([0, 1, 1, 2, 2, 3, 99, -1, (1 << 31) - 1]),
            FieldDescriptor.CPPTYPE_INT32: lambda: self._number(31),
            FieldDescriptor.CPPTYPE_INT64: lambda: self._number(63),
            FieldDescriptor.CPPTYPE_DOUBLE: lambda: self.random.choice([0.0, -1.0, sys.float_info.max, float("nan")]),
        }
        return kinds[one.cpp_type]()

    def _number(self, bits: int) -> int:
        if self.random.random() < self.mild:
            return self.random.choice([0, 0, 1, 2, 50])
        value = self.random.choice(NUMBERS) % (1 << bits)
        return self.random.choice([value, value, -value, -(1 << bits)])

    def _text(self) -> str:
        others = [name for names in self.known.values() for name in names]
        return self.random.choice([*TEXTS, self.random.choice(others)])

    def _bytes(self) -> bytes:
        return self.random.choice([b"", b"text", b"\xff", self.random.randbytes(100), b"x" * 100_000])

    def _name(self, kind: str) -> str:
        return self.random.choice(self.known[kind])

    def _new(self) -> str:
        return f"new-{self.random.randrange(1_000)}"

    def _page_token(self) -> str:
        run = self._name("run")
        names = ["tenants False", "keys acme False", "models", f"events {run}", f"nodes {run}", self._name("context")]
        name = self.random.choice(names)
        numbers = [self._number(63) for _ in range(self.random.randrange(3))]
        forged: list[object] = [[name, *numbers], [name, "key"], [name, 1.5, None], {"a": 1}, [[name]], name]
        return base64.b64encode(json.dumps(self.random.choice(forged)).encode(), altchars=b"-_").decode()


def _is_bytes(one: FieldDescriptor) -> bool:
    return bool(one.type == FieldDescriptor.TYPE_BYTES)


def field_names(of: Descriptor, depth: int = 0) -> set[str]:
    """Return the names of all fields of a type's messages, and of those within, as deep as they are made."""
    within = [one.message_type for one in of.fields if one.message_type is not None and depth < 4]
    return {one.name for one in of.fields}.union(*(field_names(one, depth + 1) for one in within))


def methods() -> list[MethodDescriptor]:
    """Return every call of the protocol."""
    files = [importlib.import_module(f"rlm.v1.{one.name}") for one in pkgutil.iter_modules(rlm.v1.__path__)]
    return [
        method
        for file in files
        if file.__name__.endswith("_pb2")
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
