"""The most that names and texts may have which enter an event, the answer of a slot, or a row.

A text of the guest's or a caller's is never multiplied. What names a thing is looked up before anything happens, and
what is only told is cut.
"""

from __future__ import annotations

MAX_NAME = 200
"""Characters of the name of a model, an image or a tool in a request. A longer one is refused, and not looked up."""

MAX_ERROR = 500
"""Bytes of UTF-8 of the error of a slot, and of the call that it tells of."""

MAX_REASON = 1_000
"""Bytes of UTF-8 of a reason, a detail or a refusal: what the server says to people and models."""

MAX_EVENT_TEXT = 64 * 1024
"""Bytes of UTF-8 of any other text of one event. Where there is more of it, it is told in several, or cut."""

_CUT = "…"


def cut(text: str, most: int) -> str:
    """Return a text of at most `most` bytes of UTF-8, which ends with "…" where it was longer.

    Surrogates, which no message and no row may hold, become question marks. `most` is at least 3. The work is bounded
    by `most`, however long the text is.
    """
    encoded = text[: most + 1].encode("utf-8", "replace")
    if len(encoded) <= most:
        return encoded.decode()
    return encoded[: most - len(_CUT.encode())].decode("utf-8", "ignore") + _CUT
