"""What is sent is signed as Standard Webhooks has it, and the example in the docs verifies it."""

from __future__ import annotations

import pytest

from examples.webhook_receiver import NotSigned, verified
from rlm_server.webhooks.signature import headers, new_secret

ID, BODY, AT = "evt_1", b'{"type":"x"}', 1_795_780_800_000


def test_a_signature_is_that_of_the_specifications_example() -> None:
    """https://github.com/standard-webhooks/standard-webhooks/blob/main/libraries/python/tests/test_webhooks.py"""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    signed = headers([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330_000, b'{"test": 2432232314}')
    assert signed["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_example_takes_what_is_signed_with_its_secret_and_nothing_else() -> None:
    secret, other = new_secret(), new_secret()
    assert secret != other
    sent, now = headers([secret], ID, AT, BODY), AT / 1000
    assert verified(secret, sent, BODY, now) == ID
    assert verified(other, headers([secret, other], ID, AT, BODY), BODY, now) == ID
    later = {**sent, "webhook-timestamp": str(AT // 1000 + 1)}
    for key, told, body, at in (
        (other, sent, BODY, now),
        (secret, sent, BODY + b" ", now),
        (secret, {**sent, "webhook-id": "evt_2"}, BODY, now),
        (secret, later, BODY, now),
        (secret, sent, BODY, now + 301),
        (secret, {}, BODY, now),
    ):
        with pytest.raises(NotSigned):
            verified(key, told, body, at)
