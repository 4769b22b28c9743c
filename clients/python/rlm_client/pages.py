"""Lists that a server gives page by page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar


class _Asked(Protocol):
    page_token: str


class _Page(Protocol):
    next_page_token: str


Asked = TypeVar("Asked", bound=_Asked)
Page = TypeVar("Page", bound=_Page)


def pages(ask: Callable[[Asked], Page], request: Asked) -> Iterator[Page]:
    """Give every page, asking for each as the one before is taken; `request` is changed to ask for the next."""
    while True:
        page = ask(request)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token
