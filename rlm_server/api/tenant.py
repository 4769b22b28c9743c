"""The servicer of `TenantService`, which is for operators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from google.protobuf.message import Message
from rlm.v1 import tenant_pb2, tenant_pb2_grpc

from rlm_server.api import accounts, requests, responses
from rlm_server.api.errors import InvalidField, NotFound, Violation
from rlm_server.api.field_checks import FieldChecks
from rlm_server.ledger import AccountConflict, AccountUnknown, Ledger, Limit, LimitTooLow, Span, names
from rlm_server.tenants.checks import Offered, WrongTerm, check_labels, check_name, check_terms
from rlm_server.tenants.keys import Key, Keys
from rlm_server.tenants.removal import Removal
from rlm_server.tenants.tenants import Tenant, Tenants
from rlm_server.tenants.terms import NO_LIMIT, InForce, OwnTerms, Source, Terms
from rlm_server.tenants.watch import Watch

OPERATORS = ""
"""Under whose name request ids of operators are kept: no tenant has this name."""

_SOURCES = {
    Source.SERVER: tenant_pb2.LIMIT_SOURCE_SERVER,
    Source.CONFIGURATION: tenant_pb2.LIMIT_SOURCE_CONFIGURATION,
    Source.TENANT: tenant_pb2.LIMIT_SOURCE_TENANT,
}
_KINDS = {
    tenant_pb2.API_KEY_KIND_UNSPECIFIED: False,
    tenant_pb2.API_KEY_KIND_TENANT: False,
    tenant_pb2.API_KEY_KIND_OPERATOR: True,
}
"""Whether a kind of key is an operator's."""
_BUDGETS: Mapping[str, Span | None] = {"budget": None, **{f"{span}_budget": span for span in Span}}
"""The fields of a tenant that are budgets, and of which windows."""
_LISTS = {"allowed_models": "models", "allowed_images": "images", "allowed_fallbacks": "fallbacks"}
_WHOLE = ("weight", "model_limits", "soft_limits", "redact_contents")
"""The fields of a tenant that are one term, of the same name."""
_SETTABLE = ("labels", *_LISTS, "limits", *_BUDGETS, *_WHOLE)
"""The fields of a tenant that a call may change."""


class TenantServicer(tenant_pb2_grpc.TenantServiceServicer):
    """Makes, changes and deletes tenants and keys."""

    def __init__(
        self,
        tenants: Tenants,
        keys: Keys,
        terms: Terms,
        watch: Watch,
        removal: Removal,
        ledger: Ledger,
        offered: Offered,
    ) -> None:
        self._tenants, self._keys, self._terms, self._watch = tenants, keys, terms, watch
        self._removal, self._ledger, self._offered = removal, ledger, offered

    # ---- tenants -------------------------------------------------------------------------------------------------

    async def CreateTenant(
        self, request: tenant_pb2.CreateTenantRequest, context: Any
    ) -> tenant_pb2.CreateTenantResponse:
        """Make a tenant."""
        asked = request.tenant
        with FieldChecks() as check:
            check(_named("tenant")(check_name), asked.tenant_id)
            terms = self._said(check, asked)
            repeatable = check(requests.repeatable, OPERATORS, request)
        made = await self._tenants.create(asked.tenant_id, terms, dict(asked.labels), repeatable)
        await self._watch.look()
        return tenant_pb2.CreateTenantResponse(tenant=_tenant(made))

    async def GetTenant(self, request: tenant_pb2.GetTenantRequest, context: Any) -> tenant_pb2.GetTenantResponse:
        """Describe a tenant."""
        found = await self._tenants.get(request.tenant_id)
        windows = await self._ledger.windows(found.id)
        return tenant_pb2.GetTenantResponse(
            tenant=_tenant(found),
            limits=map(_limit, self._terms.in_force(found.id)),
            budget=responses.budget(self._terms.of(found.id).budget),
            windows=map(accounts.window, windows),
            redact_contents=self._terms.redacts_contents(found.id),
        )

    async def ListTenants(self, request: tenant_pb2.ListTenantsRequest, context: Any) -> tenant_pb2.ListTenantsResponse:
        """List tenants."""
        list_name = f"tenants {request.show_deleted}"
        with FieldChecks() as check:
            size = check(requests.page_size, request.page_size, 100, 1_000)
            place = check(requests.page_key, request.page_token, list_name)
        after = "" if place is None else place
        found = await self._tenants.page(after, size + 1, deleted=request.show_deleted)
        written = list(map(_tenant, found[:size]))
        page, token = responses.page(list_name, written, len(found), lambda shown: found[shown - 1].id)
        return tenant_pb2.ListTenantsResponse(tenants=page, next_page_token=token)

    async def UpdateTenant(
        self, request: tenant_pb2.UpdateTenantRequest, context: Any
    ) -> tenant_pb2.UpdateTenantResponse:
        """Change a tenant."""
        with FieldChecks() as check:
            paths = check(requests.changed_fields, request.update_mask, request.tenant, _SETTABLE, ("limits",))
            said = self._said(check, request.tenant)
            repeatable = check(requests.repeatable, OPERATORS, request)
        with _named("tenant"):
            changed = await self._tenants.update(
                request.tenant.tenant_id, partial(self._changed, request.tenant, said, paths), repeatable
            )
        await self._watch.look()
        return tenant_pb2.UpdateTenantResponse(tenant=_tenant(changed))

    def _said(self, check: FieldChecks, asked: tenant_pb2.Tenant) -> OwnTerms:
        """Read what is said of a tenant."""
        named = _named("tenant")
        check(named(check_labels), dict(asked.labels))
        terms = self._terms_of(check, asked)
        check(named(check_terms), terms, self._terms, self._offered)
        return terms

    def _terms_of(self, check: FieldChecks, asked: tenant_pb2.Tenant) -> OwnTerms:
        budgets = check(_budgets, asked) or {}
        return OwnTerms(
            tuple(asked.allowed_models),
            tuple(asked.allowed_images),
            tuple(asked.allowed_fallbacks),
            asked.weight if asked.HasField("weight") else None,
            dict(asked.limits),
            budgets.get(None, NO_LIMIT),
            {span: limit for span, limit in budgets.items() if span is not None},
            check(accounts.model_limits, asked.model_limits, "tenant.model_limits", self._offered) or (),
            check(accounts.soft_limits, asked.soft_limits, "tenant.soft_limits", self._offered) or (),
            asked.redact_contents if asked.HasField("redact_contents") else None,
        )

    def _changed(self, asked: tenant_pb2.Tenant, said: OwnTerms, paths: list[str], before: Tenant) -> Tenant:
        terms, labels = before.terms, before.labels
        for path in paths:
            field, _, name = path.partition(".")
            if field == "labels":
                labels = dict(asked.labels)
            elif field in _LISTS:
                terms = replace(terms, **{_LISTS[field]: getattr(said, _LISTS[field])})
            elif field in _WHOLE:
                terms = replace(terms, **{field: getattr(said, field)})
            elif field == "limits":
                kept = {one: value for one, value in terms.limits.items() if name and one != name}
                new = {one: value for one, value in said.limits.items() if not name or one == name}
                terms = replace(terms, limits={**kept, **new})
            else:
                terms = terms.with_limit(_BUDGETS[field], said.limit(_BUDGETS[field]))
        named = _named("tenant")
        with FieldChecks() as check:
            check(named(check_labels), labels)
            check(named(check_terms), terms, self._terms, self._offered)
        return replace(before, terms=terms, labels=labels)

    async def DeleteTenant(
        self, request: tenant_pb2.DeleteTenantRequest, context: Any
    ) -> tenant_pb2.DeleteTenantResponse:
        """Delete a tenant, and return when nothing is left of what it had."""
        deleted = await self._tenants.delete(
            request.tenant_id, force=request.force, request=requests.repeatable(OPERATORS, request)
        )
        await self._watch.look()
        await self._removal.ended(request.tenant_id)
        return tenant_pb2.DeleteTenantResponse(tenant=_tenant(deleted))

    # ---- keys ----------------------------------------------------------------------------------------------------

    async def CreateApiKey(
        self, request: tenant_pb2.CreateApiKeyRequest, context: Any
    ) -> tenant_pb2.CreateApiKeyResponse:
        """Make a key."""
        labels = dict(request.labels)
        with FieldChecks() as check:
            asked = check(requests.repeatable, OPERATORS, request)
            check(_named("")(check_labels), labels)
            expires_at = check(requests.time_if_set, request, "expire_time", "expire_time")
            whose = check(_whose, request.kind, request.tenant_id)
            if request.account_id and _KINDS.get(request.kind, False):
                check.wrong("account_id", "must be empty, as an operator's key is of no tenant")
        with _named(""):
            key, secret = await self._keys.create(
                whose, account=request.account_id, labels=labels, expires_at=expires_at, request=asked
            )
        await self._watch.look()
        return tenant_pb2.CreateApiKeyResponse(key=_key(key), secret=secret, repeated=not secret)

    async def ListApiKeys(self, request: tenant_pb2.ListApiKeysRequest, context: Any) -> tenant_pb2.ListApiKeysResponse:
        """List keys."""
        with FieldChecks() as check:
            size = check(requests.page_size, request.page_size, 100, 1_000)
            whose = check(_whose, request.kind, request.tenant_id)
            list_name = f"keys {whose or ''} {request.show_inactive}"
            place = check(requests.page_token, request.page_token, list_name, 1)
        if whose is not None:
            await self._tenants.get(whose)
        after = 0 if place is None else place[0]
        found = await self._keys.page(whose, after, size + 1, inactive=request.show_inactive)
        written = list(map(_key, found[:size]))
        page, token = responses.page(list_name, written, len(found), lambda shown: found[shown - 1].number)
        return tenant_pb2.ListApiKeysResponse(keys=page, next_page_token=token)

    async def RevokeApiKey(
        self, request: tenant_pb2.RevokeApiKeyRequest, context: Any
    ) -> tenant_pb2.RevokeApiKeyResponse:
        """Revoke a key."""
        revoked = await self._keys.revoke(request.key_id, requests.repeatable(OPERATORS, request))
        await self._watch.look()
        return tenant_pb2.RevokeApiKeyResponse(key=_key(revoked))


# ---- reading -----------------------------------------------------------------------------------------------------


@contextmanager
def _named(message: str) -> Iterator[None]:
    """Have what is wrong with a tenant, or a key, named as a field of the request."""
    above = f"{message}." if message else ""
    try:
        yield
    except WrongTerm as error:
        more = [Violation(f"{above}{one.field}", str(one)) for one in error.more]
        raise InvalidField(f"{above}{error.field}", str(error), more=more) from None
    except LimitTooLow as error:
        raise InvalidField(f"{above}budget", str(error)) from None
    except AccountConflict as error:
        raise InvalidField(f"{above}account_id", str(error)) from None
    except AccountUnknown as error:
        raise NotFound("account", error.account, f"{above}account_id") from None


def _whose(kind: tenant_pb2.ApiKeyKind.ValueType, tenant_id: str) -> str | None:
    """Return the tenant whose key is meant, None for an operator's."""
    with FieldChecks() as check:
        if kind not in _KINDS:
            check.wrong("kind", f"must be TENANT or OPERATOR, not {kind}")
        if not _KINDS.get(kind, False):
            return check(requests.required, "tenant_id", tenant_id, requests.MAX_REQUEST_ID)
        if tenant_id:
            check.wrong("tenant_id", "must be empty, as an operator's key is of no tenant")
        return None


def _budgets(asked: tenant_pb2.Tenant) -> dict[Span | None, Limit]:
    with FieldChecks() as check:
        return {
            _BUDGETS[field.name]: check(requests.budget, value, f"tenant.{field.name}")
            for field, value in asked.ListFields()
            if field.name in _BUDGETS
        }


# ---- writing -----------------------------------------------------------------------------------------------------


def _tenant(value: Tenant) -> tenant_pb2.Tenant:
    terms = value.terms
    message = tenant_pb2.Tenant(
        tenant_id=value.id,
        labels=value.labels,
        allowed_models=terms.models,
        allowed_images=terms.images,
        allowed_fallbacks=terms.fallbacks,
        weight=terms.weight,
        limits=terms.limits,
        model_limits=accounts.written_model_limits(terms.model_limits),
        soft_limits=accounts.written_soft_limits(terms.soft_limits),
        redact_contents=terms.redact_contents,
        spent=responses.amounts(value.spent),
    )
    for field, span in _BUDGETS.items():
        if (limit := terms.limit(span)) != NO_LIMIT:
            getattr(message, field).CopyFrom(responses.budget(limit))
    _stamp(message, {"create": value.created_at, "update": value.changed_at, "delete": value.deleted_at})
    return message


def _limit(one: InForce) -> tenant_pb2.TenantLimit:
    bounds = one.bounds
    return tenant_pb2.TenantLimit(
        name=one.name,
        value=one.value,
        unit=bounds.unit,
        minimum=bounds.least,
        maximum=bounds.most,
        description=bounds.doc,
        source=_SOURCES[one.source],
    )


def _key(value: Key) -> tenant_pb2.ApiKey:
    operators = value.tenant is None
    message = tenant_pb2.ApiKey(
        key_id=value.id,
        kind=tenant_pb2.API_KEY_KIND_OPERATOR if operators else tenant_pb2.API_KEY_KIND_TENANT,
        tenant_id=value.tenant or "",
        prefix=value.prefix,
        labels=value.labels,
        account_id=names.last_of(value.customer, ""),
    )
    times = {"create": value.created_at, "expire": value.expires_at, "last_use": value.used_at}
    _stamp(message, {**times, "revoke": value.revoked_at})
    return message


def _stamp(message: Message, times: Mapping[str, int | None]) -> None:
    for name, at in times.items():
        if at is not None:
            getattr(message, f"{name}_time").CopyFrom(responses.time(at))
