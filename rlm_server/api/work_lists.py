"""Lists of runs and of sessions, as they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from rlm.v1 import run_pb2, session_pb2

from rlm_server.api import key_account, requests
from rlm_server.api.auth import tenant
from rlm_server.api.field_checks import FieldChecks
from rlm_server.ledger.customer_book import CustomerBook
from rlm_server.ledger.work_filter import WorkFilter

Filter = TypeVar("Filter", bound=WorkFilter[Any])


@dataclass(frozen=True, slots=True)
class Asked(Generic[Filter]):
    """A page of a list: of what, from after which `place` on, and how much. `name` is the list's, for its tokens."""

    filter: Filter
    place: str | None
    size: int
    name: str


async def asked(
    request: run_pb2.ListRunsRequest | session_pb2.ListSessionsRequest,
    filter_of: Callable[..., Filter],
    book: CustomerBook,
    kind: str,
    states: Mapping[Any, Any],
) -> Asked[Filter]:
    """Read which page of the caller's runs, or sessions, is asked for. `kind` is what one is called."""
    with FieldChecks() as check:
        size = check(requests.page_size, request.page_size, 100, 1_000)
        wanted = check(requests.choices, "states", request.states, states, f"a state of a {kind}")
        since, until = (check(requests.time_if_set, request, name, name) for name in ("since", "until"))
        labels = check(requests.labels, request.labels)
        found = filter_of(tenant(), wanted, labels, since, until, within=key_account.path())
        name = requests.list_name(f"{kind}s", (found, request.account_id))
        place = check(requests.page_place, request.page_token, name)
    if request.account_id:
        customer = await requests.customer_path(book, tenant(), request.account_id, "account_id")
        found = replace(found, customer=customer)
    return Asked(found, place, size, name)
