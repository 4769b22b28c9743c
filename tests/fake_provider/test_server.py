"""The fake provider, driven by hand over HTTP."""

from __future__ import annotations

import httpx2

from tests.fake_provider.server import FakeProvider


async def test_faults_are_ordered_and_the_bill_is_read_over_http() -> None:
    async with FakeProvider().serving() as fake, httpx2.AsyncClient(base_url=fake.url) as client:
        assert (await client.post("/faults", json=["529", "missing-usage"])).json() == ["529", "missing-usage"]
        ask = {"model": "fake", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}
        assert (await client.post("/v1/messages", json=ask)).status_code == 529
        assert "usage" not in (await client.post("/v1/messages", json=ask)).json()
        assert "usage" in (await client.post("/v1/chat/completions", json=ask)).json()
        bill = (await client.get("/bill")).json()
        assert [(entry["model"], entry["fault"]) for entry in bill] == [("fake", "missing-usage"), ("fake", None)]
        assert (await client.get("/elsewhere")).status_code == 404
