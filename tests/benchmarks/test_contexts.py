from __future__ import annotations

import os
from pathlib import Path

from benchmarks.contexts import MIB, Findings, of_documents, of_one_text, uploads
from sandbox.vm.image import Loaded


async def test_everything_is_measured_and_every_answer_is_right(loaded: Loaded, tmp_path: Path) -> None:
    found, said = Findings(), list[str]()
    await of_one_text(loaded, tmp_path, 4 * MIB, found, said.append)
    await of_documents(loaded, tmp_path, 1500, 8 * MIB, found, said.append)
    assert {"attach_1gib_ms", "shared_rss_ratio", "scan_ratio", "search_gb_s", "corpus_aggregate_s"} <= set(
        found.figures
    )
    assert all(value >= 0 for name, value in found.figures.items() if "growth" not in name)
    assert "attach_1gib_ms" in found.table()
    assert not {"text", "documents"} & set(os.listdir(tmp_path)), "what was written is removed"


def test_uploads_are_compared_with_an_empty_stream() -> None:
    found = Findings()
    uploads(2 * MIB, 3, MIB, found, lambda _: None)
    assert found.figures["upload_mb_s"] > 0
    assert found.figures["upload_ratio"] == found.figures["upload_mb_s"] / found.figures["empty_stream_mb_s"]
