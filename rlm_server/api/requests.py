"""Reads the fields that requests have in common into checked values. A wrong one is refused by its name."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rlm.v1 import types_pb2
from rlm.v1.errors_pb2 import ErrorReason

from rlm_server.api import key_account
from rlm_server.api.errors import InvalidField, NotFound
from rlm_server.api.field_checks import FieldChecks
from rlm_server.broker.routes import Routes, UnknownModel
from rlm_server.contexts.context_table import Context
from rlm_server.contexts.contexts import Contexts
from rlm_server.database.labels import MAX_LABEL, MAX_LABELS
from rlm_server.database.listing import PLACE
from rlm_server.database.requests import Request
from rlm_server.ledger import MAX_BUDGET, AccountConflict, AccountUnknown, Limit, names
from rlm_server.ledger.customer_book import CustomerBook
from rlm_server.ledger.customers import Customer
from rlm_server.repl.bounds import MAX_NAME

MAX_REQUEST_ID = 128
"""Characters of a request id."""
MAX_CONTEXT_NAME = 200
"""Characters of a context's name."""
MAX_TOKEN = 2_000
"""Characters of a page token."""
MAX_SECONDS = 253_402_300_799
"""Seconds since 1970 of a time: the last of the year 9999, where the protocol's times end."""
MAX_DURATION = 315_576_000_000
"""Seconds of a duration: the most that the protocol's durations have."""
E = TypeVar("E", bound=int)
T = TypeVar("T")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ACCOUNT_ID = re.compile(r"[A-Za-z0-9._-]{1,63}")


def request_id(value: str, field: str = "request_id") -> str | None:
    """Return a request id, or None where the caller gave none."""
    if len(value) > MAX_REQUEST_ID:
        raise InvalidField(field, f"may have {MAX_REQUEST_ID} characters, not {len(value)}")
    return value or None


def page_size(value: int, usual: int, most: int) -> int:
    """Return how many items a page may have: `usual` where the request has 0, and never more than `most`."""
    if value < 0:
        raise InvalidField("page_size", f"must not be negative; it is {value}")
    return min(value, most) or usual


def page_token(value: str, list_name: str, numbers: int) -> tuple[int, ...] | None:
    """Return the numbers that `responses.page_token` put into a token of this list, or None for the first page."""
    if not value:
        return None
    match _token(value):
        case [str(name), *places] if name == list_name and len(places) == numbers:
            checked = [place for place in places if type(place) is int and 0 <= place < 1 << 62]
            if len(checked) == numbers:
                return tuple(checked)
    raise InvalidField("page_token", "is not one of this list")


def page_key(value: str, list_name: str) -> str | None:
    """Return the key that `responses.page_token` put into a token of this list, or None for the first page."""
    if not value:
        return None
    match _token(value):
        case [str(name), str(key)] if name == list_name:
            return key
    raise InvalidField("page_token", "is not one of this list")


def page_place(value: str, list_name: str) -> str | None:
    """Return the place in a list, the newest first, that a token of it has, or None for the first page."""
    place = page_key(value, list_name)
    if place is not None and PLACE.fullmatch(place) is None:
        raise InvalidField("page_token", "is not one of this list")
    return place


def _token(value: str) -> object:
    found: object
    try:
        found = json.loads(base64.b64decode(value, altchars=b"-_", validate=True)) if len(value) <= MAX_TOKEN else None
        json.dumps(found, ensure_ascii=False).encode()  # half of a pair of surrogates is no text
    except (ValueError, RecursionError):
        return None
    return found


def time(value: Timestamp, field: str) -> int:
    """Return a time in Unix milliseconds, rounded up."""
    return _milliseconds(value, MAX_SECONDS, field, "must be a time from 1970 to 9999")


def check_not_negative(field: str, value: int) -> None:
    """Refuse a number below 0."""
    if value < 0:
        raise InvalidField(field, f"must not be negative; it is {value}")


def time_if_set(message: Message, name: str, field: str) -> int | None:
    """Return a message's time in Unix milliseconds, rounded up; None where it has none."""
    return time(getattr(message, name), field) if message.HasField(name) else None


def duration(value: Duration, field: str) -> int:
    """Return a duration in milliseconds, rounded up."""
    return _milliseconds(value, MAX_DURATION, field, f"must be a duration from 0 to {MAX_DURATION} s")


def _milliseconds(value: Timestamp | Duration, most: int, field: str, allowed: str) -> int:
    if not (0 <= value.seconds <= most and 0 <= value.nanos < 1_000_000_000):
        raise InvalidField(field, allowed)
    return value.seconds * 1000 - (-value.nanos // 1_000_000)


def required(field: str, value: str, most: int) -> str:
    """Return a text that must be there and may have `most` characters."""
    if not value.strip():
        raise InvalidField(field, "must not be empty")
    if len(value) > most:
        raise InvalidField(field, f"may have {most} characters, not {len(value)}")
    return value


def required_bytes(field: str, value: str, most: int) -> str:
    """Return a text that must be there and may have `most` bytes of UTF-8."""
    size = len(value) if value.isascii() else len(value.encode())
    if size > most:
        raise InvalidField(field, f"may have {most} bytes of UTF-8, not {size}")
    return required(field, value, most)


def time_span(message: Message, name: str, field: str, most: int) -> int | None:
    """Return a message's duration in milliseconds, from 1 to `most`; None where it has none."""
    if not message.HasField(name):
        return None
    value = duration(getattr(message, name), field)
    if not 1 <= value <= most:
        raise InvalidField(field, f"must be from 0.001 to {most / 1000:.15g} s, not {value / 1000:.15g}")
    return value


def budget(value: types_pb2.Budget, field: str = "budget") -> Limit:
    """Return a budget. Every amount that is set must be more than 0."""
    with FieldChecks() as check:
        asked = {
            "nano_usd": ("nano_usd", value.nano_usd if value.HasField("nano_usd") else None),
            "tokens": ("token_count", value.token_count if value.HasField("token_count") else None),
            "calls": ("call_count", value.call_count if value.HasField("call_count") else None),
            "cpu_ms": (
                "cpu_time",
                check(duration, value.cpu_time, f"{field}.cpu_time") if value.HasField("cpu_time") else None,
            ),
        }
        for name, amount in asked.values():
            if amount is not None and not 0 < amount <= MAX_BUDGET:
                check.wrong(f"{field}.{name}", f"must be from 1 to {MAX_BUDGET}, not {amount}")
    return Limit(**{unit: amount for unit, (_, amount) in asked.items()})


def check_offered(routes: Routes, field: str, model: str) -> None:
    """Refuse a model that this server does not offer."""
    check_name(field, model)
    try:
        routes.route(model)
    except UnknownModel as error:
        raise InvalidField(field, str(error), ErrorReason.ERROR_REASON_UNKNOWN_MODEL) from None


def image(value: str, known: tuple[str, ...]) -> str:
    """Return the name of an image that exists: the first where the request names none."""
    check_name("image", value)
    name = value or next(iter(known), "")
    if name not in known:
        offered = ", ".join(known) or "none"
        raise InvalidField("image", f"there is no image {name[:100]!r}; the images are: {offered}")
    return name


def labels(value: Mapping[str, str], field: str = "labels") -> dict[str, str]:
    """Return the labels of a thing, or those that it must have."""
    if len(value) > MAX_LABELS:
        raise InvalidField(field, f"may have {MAX_LABELS} labels, not {len(value)}")
    for key, text in value.items():
        if not key:
            raise InvalidField(field, "a key must not be empty")
        for part in (key, text):
            if len(part) > MAX_LABEL:
                raise InvalidField(field, f"keys and values may have {MAX_LABEL} characters, not {len(part)}")
    return dict(sorted(value.items()))


def sha256(field: str, value: str) -> str:
    """Return a SHA-256, as it is written."""
    if _SHA256.fullmatch(value) is None:
        raise InvalidField(field, "must be 64 lower-case hex digits")
    return value


def repeatable(tenant: str, request: Message, field: str = "request_id") -> Request | None:
    """Return a request that may come again, by its `request_id`; None where the caller gave none."""
    id = request_id(getattr(request, "request_id", ""), field)
    if id is None:
        return None
    method = type(request).__name__.removesuffix("Request")
    content = request.SerializeToString(deterministic=True) + key_account.path().encode()  # which says who pays
    return Request(tenant, method, id, hashlib.sha256(content).hexdigest())


def account_id(value: str, tenant: str, field: str = "account_id") -> str:
    """Return the id of a customer's account, as its tenant may choose it."""
    if _ACCOUNT_ID.fullmatch(value) is None:
        raise InvalidField(field, "must be 1 to 63 letters, digits, '.', '_' and '-'")
    if value == tenant or value.startswith((names.RUN, names.SESSION, names.NODE)):
        raise InvalidField(field, "must not be the tenant's own, nor begin with run_, ses_ or node_")
    return value


async def payer(book: CustomerBook, tenant: str, account: str) -> Customer | None:
    """Return the customer that is to pay for a new run or session; None where it is the tenant itself."""
    account = account or key_account.own()
    if account in ("", tenant):
        key_account.check("")
        return None
    try:
        account_id(account, tenant)
    except InvalidField as error:
        raise NotFound("account", account, "account_id", f"an account's id {error}") from None
    if key_account.path():
        await customer_path(book, tenant, account, "account_id")
    try:
        return await book.payer(tenant, account)
    except AccountUnknown:
        raise NotFound("account", account, "account_id") from None
    except AccountConflict as error:
        raise InvalidField("account_id", str(error)) from None


async def customer_path(book: CustomerBook, tenant: str, account: str, field: str) -> str:
    """Return the path of a customer that is named; empty for the tenant itself."""
    found = (await book.find(tenant, [account])).get(account)
    path = found.path if found is not None else ""
    key_account.check(path)
    if found is None and account != tenant:
        raise NotFound("account", account, field)
    return path


def list_name(kind: str, asked: object) -> str:
    """Name a list by all that is asked of it, so that a page token of one list is not taken for another's."""
    return f"{kind} {hashlib.sha256(repr(asked).encode()).hexdigest()[:16]}"


def check_name(field: str, value: str) -> None:
    """Refuse a name that is longer than any may be."""
    if len(value) > MAX_NAME:
        raise InvalidField(field, f"may have {MAX_NAME} characters, not {len(value)}")


def changed_fields(
    mask: FieldMask, message: Message, settable: Collection[str], by_key: Collection[str] = ()
) -> list[str]:
    """Return the fields of a message that are to change: those of the mask, all for `*`, else those that are set.

    Of the maps `by_key`, one entry may be named as well: by the map's name, a point and the entry's key.
    """
    paths = list(mask.paths)
    if not paths:
        return [field.name for field, _ in message.ListFields() if field.name in settable]
    if paths == ["*"]:
        return list(settable)
    for path in paths:
        field, point, _ = path.partition(".")
        if field not in settable or (point and field not in by_key):
            known = ", ".join((*settable, *(f"{name}.NAME" for name in by_key)))
            raise InvalidField("update_mask", f"{path[:60]!r} cannot be changed; these can: {known}")
    return paths


def choices(field: str, values: Iterable[E], known: Mapping[E, T], what: str) -> frozenset[T]:
    """Return what some values of an enum stand for; `what` says what each must be."""
    with FieldChecks() as check:
        for place, value in enumerate(values):
            if value not in known:
                check.wrong(f"{field}[{place}]", f"must be {what}, not {value}")
    return frozenset(known[value] for value in values)


def context_name(value: str, field: str) -> str:
    """Return the name of a context."""
    if len(value) > MAX_CONTEXT_NAME:
        raise InvalidField(field, f"may have {MAX_CONTEXT_NAME} characters, not {len(value)}")
    return value


async def context(contexts: Contexts, tenant: str, context_id: str) -> Context | None:
    """Return the tenant's context, or None where the request names none."""
    if not context_id:
        return None
    stored = await contexts.get(tenant, context_id)
    if stored is None:
        raise NotFound("context", context_id)
    return stored
