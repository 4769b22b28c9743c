"""The operator's client: tenants, what each may do and spend, and keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from rlm.v1 import tenant_pb2, tenant_pb2_grpc

from rlm_client.caller import Caller
from rlm_client.connection import connect, find_target
from rlm_client.errors import NoKey
from rlm_client.pages import pages
from rlm_client.retry import Retry, named

_DELETE_SECONDS = 300.0  # returns only when nothing is left of the tenant
_PAGE = 1_000  # the most that one call gives


class Operator(Caller):
    """A connection to one rlm-server with an operator's key, safe to share between threads; a context manager.

    Tenants and keys are the protocol's own messages. Every call may be repeated, and is, as `retry` says, while the
    server is unavailable: those that change something carry a request id.

    Every method raises an RlmError subclass for what the server answers.

    Raises:
        NoKey: no key was given.
        PlaintextRefused: the key would leave this machine unencrypted (see `connection.connect`).
    """

    def __init__(
        self,
        key: str,
        target: str | None = None,
        *,
        tls: bool = False,
        root_certificates: bytes | None = None,
        allow_plaintext: bool = False,
        retry: Retry | None = None,
    ) -> None:
        if not key:
            raise NoKey("an operator's key is needed: `rlm-server key create --operator` makes one on the machine")
        connection = connect(
            find_target(target), key, tls=tls, root_certificates=root_certificates, allow_plaintext=allow_plaintext
        )
        super().__init__(connection, retry)
        self._tenants = tenant_pb2_grpc.TenantServiceStub(connection.channel)

    def create_tenant(self, tenant: tenant_pb2.Tenant) -> tenant_pb2.Tenant:
        """Make a tenant, which has no key yet.

        Raises:
            AlreadyExists: the name is taken, or was once.
            InvalidArgument: something that is said of it may not be.
        """
        request = tenant_pb2.CreateTenantRequest(tenant=tenant, request_id=named())
        return self._unary(self._tenants.CreateTenant, request).tenant

    def get_tenant(self, tenant_id: str) -> tenant_pb2.GetTenantResponse:
        """Give a tenant, where its budgets stand, and every limit that is in force for it.

        Raises:
            NotFound: there is none.
        """
        return self._unary(self._tenants.GetTenant, tenant_pb2.GetTenantRequest(tenant_id=tenant_id))

    def list_tenants(self, *, show_deleted: bool = False) -> Iterator[tenant_pb2.Tenant]:
        """Give all tenants in the order of their names, asking for more as they are taken."""
        request = tenant_pb2.ListTenantsRequest(page_size=_PAGE, show_deleted=show_deleted)
        for page in pages(partial(self._unary, self._tenants.ListTenants), request):
            yield from page.tenants

    def update_tenant(self, tenant: tenant_pb2.Tenant, fields: Iterable[str] = ()) -> tenant_pb2.Tenant:
        """Change the fields that are named, or all that are set. One that is named and not set is as configured again.

        Raises:
            NotFound: there is no such tenant.
            InvalidArgument: something that is said of it may not be.
        """
        mask = FieldMask(paths=fields)
        request = tenant_pb2.UpdateTenantRequest(tenant=tenant, update_mask=mask, request_id=named())
        return self._unary(self._tenants.UpdateTenant, request).tenant

    def delete_tenant(self, tenant_id: str, *, force: bool = False) -> tenant_pb2.Tenant:
        """Delete a tenant, with `force` also what it has. What it spent stays in the ledger.

        Raises:
            NotFound: there is none.
            FailedPrecondition: without `force`, it has something.
        """
        request = tenant_pb2.DeleteTenantRequest(tenant_id=tenant_id, force=force, request_id=named())
        return self._unary(self._tenants.DeleteTenant, request, _DELETE_SECONDS).tenant

    def create_key(
        self,
        tenant_id: str = "",
        *,
        account_id: str = "",
        labels: Mapping[str, str] | None = None,
        expire_time: Timestamp | None = None,
    ) -> tenant_pb2.CreateApiKeyResponse:
        """Make a key of a tenant, or without one an operator's. Its `secret` is told this once.

        With `account_id` it is bound to that customer's account of the tenant. It works until `expire_time`, or until
        it is revoked. Where an answer was lost on the way, the secret is lost with it: `repeated` is true, and the key
        is of no use.

        Raises:
            NotFound: there is no such tenant, or account.
            InvalidArgument: it would have expired already.
        """
        request = tenant_pb2.CreateApiKeyRequest(
            kind=_kind(tenant_id),
            tenant_id=tenant_id,
            labels=labels,
            expire_time=expire_time,
            account_id=account_id,
            request_id=named(),
        )
        return self._unary(self._tenants.CreateApiKey, request)

    def list_keys(self, tenant_id: str = "", *, show_inactive: bool = False) -> Iterator[tenant_pb2.ApiKey]:
        """Give the keys of a tenant, or without one those of operators, in the order in which they were made.

        Raises:
            NotFound: there is no such tenant.
        """
        request = tenant_pb2.ListApiKeysRequest(
            kind=_kind(tenant_id),
            tenant_id=tenant_id,
            page_size=_PAGE,
            show_inactive=show_inactive,
        )
        for page in pages(partial(self._unary, self._tenants.ListApiKeys), request):
            yield from page.keys

    def revoke_key(self, key_id: str) -> tenant_pb2.ApiKey:
        """Revoke a key at once, by its id; calls under way with it end.

        Raises:
            NotFound: there is none.
        """
        request = tenant_pb2.RevokeApiKeyRequest(key_id=key_id, request_id=named())
        return self._unary(self._tenants.RevokeApiKey, request).key


def _kind(tenant_id: str) -> tenant_pb2.ApiKeyKind.ValueType:
    """Tell whose a key is: a tenant's, or where none is named an operator's."""
    return tenant_pb2.API_KEY_KIND_TENANT if tenant_id else tenant_pb2.API_KEY_KIND_OPERATOR
