"""`rlm quota`: what a tenant may have of the server, and has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from rlm.v1 import server_pb2, server_pb2_grpc
from rlm_client.cli import main


class Asked(server_pb2_grpc.ServerServiceServicer):
    """A server that tells its quotas."""

    quotas = (
        server_pb2.Quota(name="tenant_streams", unit="streams", limit=128, used=3),
        server_pb2.Quota(name="context_bytes\x1b[31m", unit="bytes", limit=1_000_000, used=800_000),
        server_pb2.Quota(name="none", unit="things", limit=0, used=0),
    )

    def GetServerInfo(self, request: Any, context: Any) -> server_pb2.GetServerInfoResponse:
        return server_pb2.GetServerInfoResponse(version="0.1.0")

    def ListModels(self, request: Any, context: Any) -> server_pb2.ListModelsResponse:
        return server_pb2.ListModelsResponse()

    def ListImages(self, request: Any, context: Any) -> server_pb2.ListImagesResponse:
        return server_pb2.ListImagesResponse()

    def GetQuota(self, request: Any, context: Any) -> server_pb2.GetQuotaResponse:
        return server_pb2.GetQuotaResponse(quotas=self.quotas)


@pytest.fixture
def target() -> Iterator[str]:
    with ThreadPoolExecutor(max_workers=2) as threads:
        server = grpc.server(threads)
        server_pb2_grpc.add_ServerServiceServicer_to_server(Asked(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(grace=None).wait()


def rlm(target: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--server", target, "--key", "rlm_x", "quota", *arguments])


def test_quotas_are_lines_and_what_is_nearly_used_up_is_said(target: str) -> None:
    result = rlm(target)
    first, second, third = result.stdout.splitlines()
    assert first.split() == ["tenant_streams", "3", "of", "128", "streams"]
    assert second.split()[1:] == ["800,000", "of", "1,000,000", "bytes"]
    assert third.split() == ["none", "0", "of", "0", "things"]
    assert "\x1b[31m" not in result.stdout
    assert "80 % are in use" in result.stderr


def test_quotas_are_json_where_that_is_asked_for(target: str) -> None:
    first, *_ = map(json.loads, rlm(target, "--json").stdout.splitlines())
    assert (first["name"], int(first["limit"])) == ("tenant_streams", 128)
