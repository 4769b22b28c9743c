"""docs/api.md is what the .proto files and their comments make, and every part of the protocol is on it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.repository.api_page import PAGE, page
from tests.repository.proto_comments import ROOT

PROTOS = sorted((ROOT / "proto/rlm/v1").glob("*.proto"))


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make generate`"


@pytest.mark.parametrize("proto", [path for path in PROTOS if path.stem != "errors"], ids=lambda path: path.stem)
def test_every_service_call_message_and_enum_is_on_the_page(proto: Path) -> None:
    text, shown = proto.read_text(encoding="utf-8"), PAGE.read_text(encoding="utf-8")
    for name in re.findall(r"^(?:service|message|enum) (\w+)", text, re.MULTILINE):
        assert f"### {name}\n" in shown
    for name in re.findall(r"^  rpc (\w+)", text, re.MULTILINE):
        assert f"| `{name}` |" in shown


def test_every_link_within_the_page_leads_to_a_part_of_it() -> None:
    shown = PAGE.read_text(encoding="utf-8")
    parts = {title.lower() for title in re.findall(r"^### (\w+)$", shown, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(\w+)\)", shown)) <= parts
