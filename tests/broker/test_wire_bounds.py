"""What comes is bounded: a provider that goes on and on costs a call its hold, and the server no memory."""

from __future__ import annotations

import pytest

from rlm_server.broker.provider import Failure, Provider, ProviderError
from rlm_server.broker.providers import http
from rlm_server.broker.providers.faults import STREAM_ABOVE
from tests.broker.conftest import APIS
from tests.broker.priced import ask
from tests.fake_provider.server import FakeProvider, Fault
from tests.fake_provider.speech import SPEECHES

ON_THE_WAY = 16 * 1_048_576
"""No more than this is in the buffers between the fake and its client."""

MODES = pytest.mark.parametrize("max_tokens", [100, STREAM_ABOVE + 1], ids=["whole", "streamed"])


@MODES
@pytest.mark.parametrize("fault", [Fault.ENDLESS, Fault.ENDLESS_EVENT])
@pytest.mark.parametrize("api", SPEECHES)
async def test_an_answer_without_end_is_cut_in_proportion_to_what_was_asked_for(
    api: str, fake: FakeProvider, fault: Fault, max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "ANSWER_BYTES_PER_TOKEN", 100)
    provider = APIS[api](fake.url)
    fake.faults.append(fault)
    with pytest.raises(ProviderError, match="far larger than asked for") as caught:
        await provider.complete(ask(max_tokens))
    assert (caught.value.failure, caught.value.billed) == (Failure.GONE, True)
    await fake.idle()
    most = http.ANSWER_BYTES + 100 * max_tokens
    assert most < fake.sent < most + ON_THE_WAY
    await provider.close()


@MODES
async def test_of_an_error_only_the_beginning_is_read_and_it_stays_what_it_is(
    provider: Provider, fake: FakeProvider, max_tokens: int
) -> None:
    fake.faults.append(Fault.RATE_LIMITED_ENDLESS)
    with pytest.raises(ProviderError) as caught:
        await provider.complete(ask(max_tokens))
    assert (caught.value.failure, caught.value.billed) == (Failure.RATE_LIMITED, False)
    await fake.idle()
    assert fake.sent < http.ERROR_BYTES + ON_THE_WAY


@MODES
async def test_headers_without_end_are_an_answer_cut_off(
    provider: Provider, fake: FakeProvider, max_tokens: int
) -> None:
    fake.faults.append(Fault.ENDLESS_HEAD)
    with pytest.raises(ProviderError, match="cut off") as caught:
        await provider.complete(ask(max_tokens))
    assert caught.value.billed
    await fake.idle()
    assert fake.sent < ON_THE_WAY


async def test_an_answer_as_long_as_was_asked_for_is_whole(
    provider: Provider, fake: FakeProvider, max_tokens: int
) -> None:
    """Every character of it is escaped, six bytes for one."""
    fake.answer = "\x01\x02\x03\x04" * max_tokens
    reply = await provider.complete(ask(max_tokens))
    assert (reply.text, reply.stopped) == (fake.answer, "end")


async def test_the_bound_stays_here_and_compression_is_ruled_out(
    provider: Provider, fake: FakeProvider, max_tokens: int
) -> None:
    await provider.complete(ask(max_tokens))
    headers = fake.received.get_nowait().headers
    assert headers["accept-encoding"] == "identity"
    assert not [name for name in headers if name.startswith("x-rlm")]
