"""The calls of `BudgetService` on the events of budgets, and on where they are sent."""

from __future__ import annotations

from typing import Any

from rlm.v1 import budget_pb2, budget_pb2_grpc, types_pb2

from rlm_server.api import key_account, requests, responses
from rlm_server.api.accounts import SPANS
from rlm_server.api.auth import tenant
from rlm_server.api.errors import KeyBound, NotFound
from rlm_server.api.field_checks import FieldChecks
from rlm_server.ledger import BudgetEvent, Delivery, EventFilter, Ledger, names
from rlm_server.ledger.customer_book import CustomerBook
from rlm_server.webhooks.deliveries import Deliveries
from rlm_server.webhooks.hosts import WrongUrl
from rlm_server.webhooks.webhooks import Webhook, Webhooks, WebhookUnknown

_DELIVERIES = {
    Delivery.NONE: budget_pb2.DELIVERY_STATE_NONE,
    Delivery.PENDING: budget_pb2.DELIVERY_STATE_PENDING,
    Delivery.DELIVERED: budget_pb2.DELIVERY_STATE_DELIVERED,
    Delivery.GIVEN_UP: budget_pb2.DELIVERY_STATE_GIVEN_UP,
}


class WebhookCalls(budget_pb2_grpc.BudgetServiceServicer):
    """Lists events, and keeps where they are sent."""

    def __init__(self, ledger: Ledger, book: CustomerBook, webhooks: Webhooks, deliveries: Deliveries) -> None:
        self._ledger, self._book, self._webhooks, self._deliveries = ledger, book, webhooks, deliveries

    async def ListBudgetEvents(
        self, request: budget_pb2.ListBudgetEventsRequest, context: Any
    ) -> budget_pb2.ListBudgetEventsResponse:
        """List soft limits that were crossed."""
        account, customer = request.account_id or key_account.own(), ""
        with FieldChecks() as check:
            since, until = (check(requests.time_if_set, request, name, name) for name in ("since", "until"))
            size = check(requests.page_size, request.page_size, 100, 1_000)
            list_name = requests.list_name("events", (tenant(), account, since, until))
            place = check(requests.page_token, request.page_token, list_name, 1)
        if account:
            customer = await requests.customer_path(self._book, tenant(), account, "account_id")
        asked = EventFilter(tenant(), customer, own=account == tenant(), since=since, until=until)
        found = await self._ledger.events(asked, 0 if place is None else place[0], size + 1)
        written = [_event(one) for one in found[:size]]
        page, token = responses.page(list_name, written, len(found), lambda shown: found[shown - 1].number)
        return budget_pb2.ListBudgetEventsResponse(events=page, next_page_token=token)

    async def SetWebhook(self, request: budget_pb2.SetWebhookRequest, context: Any) -> budget_pb2.SetWebhookResponse:
        """Have events sent to a URL."""
        _check_whole_tenant()
        with FieldChecks() as check:
            asked = check(requests.repeatable, tenant(), request)
            try:
                self._webhooks.check(request.url)
            except WrongUrl as error:
                check.wrong("url", str(error))
        made, secret = await self._webhooks.set(tenant(), request.url, rotate=request.rotate_secret, request=asked)
        return budget_pb2.SetWebhookResponse(webhook=_webhook(made), secret=secret)

    async def GetWebhook(self, request: budget_pb2.GetWebhookRequest, context: Any) -> budget_pb2.GetWebhookResponse:
        """Tell where events are sent."""
        _check_whole_tenant()
        try:
            return budget_pb2.GetWebhookResponse(webhook=_webhook(await self._webhooks.get(tenant())))
        except WebhookUnknown:
            raise NotFound("webhook", tenant()) from None

    async def TestWebhook(self, request: budget_pb2.TestWebhookRequest, context: Any) -> budget_pb2.TestWebhookResponse:
        """Send an event that says nothing."""
        _check_whole_tenant()
        try:
            failure = await self._deliveries.test(tenant())
        except WebhookUnknown:
            raise NotFound("webhook", tenant()) from None
        return budget_pb2.TestWebhookResponse(taken=not failure, failure=failure)

    async def DisableWebhook(
        self, request: budget_pb2.DisableWebhookRequest, context: Any
    ) -> budget_pb2.DisableWebhookResponse:
        """Send nothing more."""
        _check_whole_tenant()
        try:
            disabled = await self._webhooks.disable(tenant(), requests.repeatable(tenant(), request))
        except WebhookUnknown:
            raise NotFound("webhook", tenant()) from None
        return budget_pb2.DisableWebhookResponse(webhook=_webhook(disabled))


def _check_whole_tenant() -> None:
    if key_account.path():
        raise KeyBound(key_account.own(), "has nothing to do with the tenant's webhook")


def _webhook(value: Webhook) -> budget_pb2.Webhook:
    return budget_pb2.Webhook(
        url=value.url,
        enabled=value.enabled,
        create_time=responses.time(value.created_at),
        update_time=responses.time(value.changed_at),
    )


def _event(value: BudgetEvent) -> budget_pb2.BudgetEvent:
    return budget_pb2.BudgetEvent(
        event_id=value.id,
        number=value.number,
        time=responses.time(value.at),
        account_id=names.public(value.account),
        model=value.scope.model,
        span=SPANS[value.scope.span],
        window_label=value.label,
        unit=types_pb2.BudgetUnit.Value(f"BUDGET_UNIT_{value.unit.upper()}"),
        percent=value.percent or 0,
        threshold=value.threshold,
        limit=value.limited,
        used=value.used,
        delivery_state=_DELIVERIES[value.delivery],
        attempt_count=value.attempts,
        failure=value.failure,
    )
