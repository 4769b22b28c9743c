"""How quantities and long texts are told: in characters throughout, and money to the cent or to three digits."""

from __future__ import annotations

from rlm_server.ledger import NANO


def dollars(nano_usd: int) -> str:
    """Format nano-US-dollars: to the cent from a dollar on, to three significant digits below, rounded down.

    So what is left is never said to be more than it is.
    """
    if nano_usd < 0:
        return "-" + dollars(-nano_usd)
    if nano_usd >= NANO or nano_usd == 0:
        return f"${nano_usd // NANO:,}.{nano_usd % NANO // 10_000_000:02d}"
    digits = str(nano_usd)
    kept = digits[:3] + "0" * (len(digits) - 3)
    return "$0." + kept.rjust(9, "0").rstrip("0").ljust(2, "0")


def counted(number: int, one: str) -> str:
    """Say how many there are of a thing, as in `1 document` and `2,000 documents`."""
    return f"{number:,} {one}" if number == 1 else f"{number:,} {one}s"


def percent(fraction: float) -> str:
    """Say a fraction in percent, with 0 and 100 for none and all alone."""
    shown = f"{100 * fraction:.1f}".removesuffix(".0")
    if shown == "100" and fraction < 1:
        return "99.9%"
    return "under 0.1%" if shown == "0" and fraction > 0 else f"{shown}%"


def seconds(time: float) -> str:
    """Say a time: whole seconds from ten on, and below that to a hundredth."""
    return f"{time:,.0f} s" if time >= 10 else f"{time:.2f} s"


def cut(text: str, most: int, where: str = "") -> str:
    """Shorten a text to about `most` characters by cutting out its middle; say how much, and `where` the whole is."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters cut out{where} ...]\n{text[-half:]}"


def within(text: str, most: int) -> str:
    """Shorten a text to `most` bytes of UTF-8 by cutting out its middle; to nothing where there is no room for ends."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= most:
        return encoded.decode()
    half = (most - len(_GAP)) // 2
    if half <= 0:
        return ""
    return f"{encoded[:half].decode('utf-8', 'ignore')}{_GAP}{encoded[-half:].decode('utf-8', 'ignore')}"


_GAP = "\n[... cut out ...]\n"
