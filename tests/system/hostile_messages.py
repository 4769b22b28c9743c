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
from typing import Any

import rlm.v1
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from rlm.v1 import context_pb2

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


@dataclass(slots=True)
class Hostile:
    """Makes messages. `known` are names of things that there are, by kind, some of them another tenant's."""

    random: random.Random
    known: Mapping[str, Sequence[str]]
    plausible: Mapping[str, Callable[[], Any]] = field(init=False)
    """Values by a field's name, that may be right."""
    mild: float = 0.5
    """How much of a message is plausible: another share in each, as what is all wrong does not come far."""

    def __post_init__(self) -> None:
        pick = self.random.choice
        self.plausible = {
            "context_id": lambda: pick(self.known["context"]),
            "run_id": lambda: pick(self.known["run"]),
            "session_id": lambda: pick(self.known["session"]),
            "account_id": lambda: pick([name for names in self.known.values() for name in names]),
            "node_id": lambda: pick(self.known["run"]),
            "request_id": lambda: f"request {self.random.randrange(50)}",
            "model": lambda: pick(["play", "play", "nobody"]),
            "sub_model": lambda: pick(["play", ""]),
            "image": lambda: pick(["core", "data", ""]),
            "question": lambda: "What?",
            "code": lambda: pick(CODES),
            "pattern": lambda: pick(["t.xt", "(", "a{1000}", r"\pL+", "[^a]" * 200, "", "(?i)(x+x+)+y", "\\C"]),
            "page_token": self._page_token,
            "sha256": lambda: hashlib.sha256(b"").hexdigest(),
            "page_size": lambda: pick([0, 1, 2, 1_000]),
            "tenant_id": lambda: pick(["acme", "globex", "other"]),
            **dict.fromkeys(("nano_usd", "token_count", "call_count"), lambda: pick([1, 1_000, 10_000_000])),
            "memory_bytes": lambda: pick([0, 128 << 20]),
            **dict.fromkeys(("max_depth", "file_count", "door_call_count", "output_bytes"), lambda: pick([0, 1, 3])),
            "seconds": lambda: pick([0, 0, 1, 10_000]),
            "nanos": lambda: pick([0, 1_000_000, 300_000_000]),
            **dict.fromkeys(("documents", "document"), lambda: pick([0, 0, 0, 1, 4])),
            **dict.fromkeys(("start", "end"), lambda: pick([0, 1, 7, 500, 100_000])),
        }

    def message(self, of: Descriptor, depth: int = 0) -> Message:
        """Make a message of a type."""
        made: Any = message_factory.GetMessageClass(of)()
        for one in of.fields:
            if self.random.random() > max(self.mild, 0.6):
                continue
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
        self.mild = self.random.choice([0.2, 0.6, 0.9, 0.98])
        if method.name == "UploadContext":
            return [self._broken(part) for part in self._upload(method.input_type)]
        return [self._broken(self.message(method.input_type))]

    def _upload(self, of: Descriptor) -> Iterator[Message]:
        """Yield an upload, whose parts may be wrong, missing, or in another order."""
        data = self.random.choice([b"text", "äöü".encode(), b"x" * 10_000, b"", b"\xff\xfe", "ä".encode()[:1]])
        count = self.random.choice([0, 0, 1, 2, -1, 1 << 62])
        header = context_pb2.UploadHeader(
            name="n",
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            request_id=self.random.choice(["", *(f"upload {n}" for n in range(5))]),
            document_count=count,
        )
        announced = [
            context_pb2.UploadDocument(name="d", size_bytes=len(data) * (n == 0)) for n in range(min(count, 2))
        ]
        parts: list[Message] = [context_pb2.UploadContextRequest(header=header)]
        if announced or self.random.random() > self.mild:
            documents = context_pb2.UploadDocuments(documents=announced)
            parts.append(context_pb2.UploadContextRequest(documents=documents))
        parts.append(context_pb2.UploadContextRequest(chunk=context_pb2.UploadChunk(data=data)))
        if self.random.random() < self.mild:
            yield from parts
            return
        parts.append(self.message(of))
        self.random.shuffle(parts)
        yield from parts[: self.random.randrange(len(parts) + 1)]

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
            for _ in range(count):
                repeated[self._value(key)] = self._value(value)
        elif one.message_type is not None:
            for _ in range(count if depth < 4 else 0):
                repeated.add().CopyFrom(self.message(one.message_type, depth + 1))
        else:
            many = count if one.cpp_type == FieldDescriptor.CPPTYPE_STRING else MANY
            repeated.extend(self._value(one) for _ in range(self.random.choice([count, count, count, many])))

    def _value(self, one: FieldDescriptor) -> Any:
        likely = self.plausible.get(one.name)
        if likely is not None and self.random.random() < self.mild:
            return likely()
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

    def _page_token(self) -> str:
        name = self.random.choice(["contexts", "entries", "usage", "day", "documents", *self.known["context"]])
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
