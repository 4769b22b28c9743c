"""`rlm-server health`: what the server on this machine says of itself, for probes."""

from __future__ import annotations

from typing import Any

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rlm_server.commands.console import explained
from rlm_server.config.settings import Settings

ANSWER_SECONDS = 3.0
"""How long the server may take to answer."""


def report_health() -> bool:
    """Print what the server says, and return whether it serves. It is asked at `health_listen`, else at `listen`.

    Raises:
        ClickException: a setting is wrong, or the server asks for clients' certificates and has no `health_listen`.
    """
    with explained():
        settings = Settings.load()
    if settings.tls_client_ca is not None and not settings.health_listen:
        raise click.ClickException("the server asks for clients' certificates: set health_listen")
    with _channel(settings) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=ANSWER_SECONDS)
        except grpc.RpcError as error:
            click.echo(f"the server does not answer: {error.code().name}")
            return False
    click.echo(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _channel(settings: Settings) -> grpc.Channel:
    address = _reached(settings.health_listen or settings.listen)
    if settings.tls_cert is None or settings.health_listen:
        return grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
    return grpc.secure_channel(*_own_certificate(settings, address))


def _reached(address: str) -> str:
    """Where one that listens on every address of this machine is reached."""
    host, _, port = address.rpartition(":")
    return f"{_LOOPBACK.get(host, host)}:{port}"


_LOOPBACK = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104


def _own_certificate(settings: Settings, address: str) -> tuple[str, grpc.ChannelCredentials, list[tuple[str, object]]]:
    """What a client needs that knows the server by its certificate itself."""
    from rlm_server.api.certificates import read_certificate

    with explained():
        found = read_certificate(settings)
    assert found is not None  # noqa: S101
    options: list[tuple[str, object]] = [("grpc.enable_http_proxy", 0)]
    if found.names:
        options.append(("grpc.ssl_target_name_override", found.names[0]))
    return address, grpc.ssl_channel_credentials(found.chain), options
