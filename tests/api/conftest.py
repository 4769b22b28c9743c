"""What requests name and responses show."""

from __future__ import annotations

import pytest

from rlm_server.contexts.context_table import Content, Context
from rlm_server.contexts.local_files import WrittenFile, WrittenFiles
from sandbox.corpora.corpus import Kind


@pytest.fixture
def context() -> Context:
    """A context of two documents."""
    file = WrittenFile(9, 1, "0" * 64)
    return Context(
        "ctx_1",
        "ann",
        "name",
        {"team": "red"},
        1_700_000_000_123,
        Content("ctx_0", "ann", "identity", Kind.DOCUMENTS, "a" * 64, 9, 7, 2, WrittenFiles(file, file)),
        4,
    )
