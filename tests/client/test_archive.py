"""A .zip archive is read as documents, and a hostile one harms nobody."""

from __future__ import annotations

import io
import os
import stat
import struct
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rlm_client import ArchiveLimits, Client, SourceRefused
from rlm_client.archive import documents

from tests.client.fake_server import FakeServer

MIB = 1 << 20


def entry(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def packed(path: Path, *files: tuple[str | zipfile.ZipInfo, Any]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return path


def read(path: Path, limits: ArchiveLimits | None = None) -> dict[str, bytes]:
    return {one.name: b"".join(one.pieces()) for one in documents(str(path), "", limits or ArchiveLimits())}


def test_an_archive_is_its_files_sorted_by_their_paths(client: Client, fake: FakeServer, tmp_path: Path) -> None:
    files = {"b.txt": "b", "a/z.txt": "z", "a/": "", "a/b/c.txt": "c" * 3 * MIB, "a.txt": "ä", "./d": "d"}
    context = client.upload(packed(tmp_path / "corpus.zip", *files.items()))
    assert list(fake.documents.items()) == [
        ("a/b/c.txt", "c" * 3 * MIB),
        ("a/z.txt", "z"),
        ("a.txt", "ä"),
        ("b.txt", "b"),
        ("d", "d"),
    ]
    assert context.name == "corpus.zip"


def test_hidden_files_of_an_archive_are_left_out(client: Client, fake: FakeServer, tmp_path: Path) -> None:
    files = {"a.txt": "a", ".git/config": "", "x/.DS_Store": b"\xff", "__MACOSX/._a.txt": b"\xff"}
    client.upload(packed(tmp_path / "corpus.ZIP", *files.items()))
    assert fake.documents == {"a.txt": "a"}


def test_an_archive_among_others_gives_its_name_to_its_files(client: Client, fake: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("b")
    client.upload([packed(tmp_path / "corpus.zip", ("x/a.txt", "a")), tmp_path / "b.txt"])
    assert fake.documents == {"corpus.zip/x/a.txt": "a", "b.txt": "b"}


def test_a_file_of_an_archive_that_is_not_utf8_is_named_or_left_out(
    client: Client, fake: FakeServer, tmp_path: Path
) -> None:
    path = packed(tmp_path / "corpus.zip", ("a.txt", "a"), ("x/b.png", b"\x89PNG"))
    with pytest.raises(SourceRefused, match=r"corpus\.zip: 'x/b\.png' is not UTF-8"):
        client.upload(path)
    client.upload(path, skip_binary=True)
    assert fake.documents == {"a.txt": "a"}


def test_nothing_of_an_archive_is_written_to_disk(client: Client, tmp_path: Path) -> None:
    path = packed(tmp_path / "corpus.zip", ("a.txt", "a"))
    client.upload(path)
    assert os.listdir(tmp_path) == ["corpus.zip"]


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("../up.txt", "must not lead out of the archive"),
        ("a/../../up.txt", "must not lead out of the archive"),
        ("a\\..\\..\\up.txt", "must not lead out of the archive"),
        ("..", "must not lead out of the archive"),
        (".hidden/../../up.txt", "must not lead out of the archive"),
        ("/etc/passwd", "must not be absolute"),
        ("\\\\server\\share", "must not be absolute"),
        ("C:\\windows.txt", "must not be absolute"),
        ("c:windows.txt", "must not be absolute"),
        ("two\nlines.txt", "must be one line"),
        ("n" * 501, "may have 500 characters"),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(
    name: str, told: str, client: Client, fake: FakeServer, tmp_path: Path
) -> None:
    with pytest.raises(SourceRefused, match=rf"evil\.zip: .*{told}"):
        client.upload(packed(tmp_path / "evil.zip", ("fine.txt", "fine"), (entry(name), "text")))
    assert fake.metadata == []


def test_a_name_with_a_zero_character_is_refused(client: Client, tmp_path: Path) -> None:
    path = packed(tmp_path / "evil.zip", ("seen.txtX../up", "text"))
    path.write_bytes(path.read_bytes().replace(b"txtX", b"txt\0"))
    with pytest.raises(SourceRefused, match=r"'seen\.txt\\x00\.\./up'.* must not have a zero character"):
        client.upload(path)


@pytest.mark.parametrize("name", ["link.txt", ".hidden"])
def test_a_link_is_refused(name: str, client: Client, tmp_path: Path) -> None:
    path = packed(tmp_path / "evil.zip", (entry(name, stat.S_IFLNK | 0o777), "/etc/passwd"))
    with pytest.raises(SourceRefused, match=rf"evil\.zip: '{name}': an entry must not be a link"):
        client.upload(path)


# ---- bombs -----------------------------------------------------------------------------------------------------------


def test_what_unpacks_to_too_many_bytes_is_refused_while_it_is_unpacked(tmp_path: Path) -> None:
    path = packed(tmp_path / "bomb.zip", *((f"{number}.txt", b"x" * MIB) for number in range(8)))
    with pytest.raises(SourceRefused, match=r"bomb\.zip: an archive may unpack to 3,145,728 bytes; this one has more"):
        read(path, ArchiveLimits(unpacked_bytes=3 * MIB))
    assert len(read(path, ArchiveLimits(unpacked_bytes=8 * MIB))) == 8


def test_what_unpacks_to_far_more_than_its_size_is_refused(client: Client, fake: FakeServer, tmp_path: Path) -> None:
    path = packed(tmp_path / "bomb.zip", ("zeros.txt", bytes(64 * MIB)))
    tracemalloc.start()
    try:
        with pytest.raises(SourceRefused, match=r"bomb\.zip: an archive may unpack to 200 times its size of"):
            client.upload(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * MIB
    assert fake.metadata == []
    client.upload(path, archive_limits=ArchiveLimits(ratio=2_000))


def test_text_that_packs_well_is_no_bomb(tmp_path: Path) -> None:
    path = packed(tmp_path / "log.zip", ("log.txt", b"the same line\n" * MIB))
    assert path.stat().st_size * 200 < 14 * MIB
    assert len(read(path)["log.txt"]) == 14 * MIB


def test_entries_that_share_their_bytes_are_counted_each(tmp_path: Path) -> None:
    path = overlapping(tmp_path / "bomb.zip", entries=400, content=os.urandom(MIB // 4))
    with pytest.raises(SourceRefused, match="an archive may unpack to 200 times its size"):
        read(path)


def overlapping(path: Path, entries: int, content: bytes) -> Path:
    """Write an archive whose entries are all one and the same file of it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("same", content)
        one = archive.infolist()[0]
        archive.filelist.extend([one] * (entries - 1))
        archive._didModify = True  # type: ignore[attr-defined]
    return path


def test_a_header_that_lies_about_the_size_gains_nothing(tmp_path: Path) -> None:
    path = packed(tmp_path / "bomb.zip", ("zeros.txt", bytes(64 * MIB)))
    data = path.read_bytes()
    assert data.count(struct.pack("<L", 64 * MIB)) == 2
    path.write_bytes(data.replace(struct.pack("<L", 64 * MIB), struct.pack("<L", 10)))
    with pytest.raises(SourceRefused, match=r"'zeros\.txt' is damaged"):
        read(path)


def test_too_many_entries_are_refused_before_they_are_listed(tmp_path: Path) -> None:
    path = packed(tmp_path / "many.zip", *((f"{number}", "") for number in range(101)))
    with pytest.raises(SourceRefused, match=r"many\.zip: an archive may have 100 entries; this one has more"):
        read(path, ArchiveLimits(entries=100))
    assert len(read(path, ArchiveLimits(entries=101))) == 101


def test_a_list_of_contents_of_any_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "long.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(10):
            info = zipfile.ZipInfo(f"{number}")
            info.comment = b"x" * 60_000
            archive.writestr(info, "")
    with pytest.raises(SourceRefused, match=r"its list of contents has \d{3},\d{3} bytes; 141,312 are allowed"):
        read(path, ArchiveLimits(entries=10))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_packing_that_unpacks_without_bounds_is_refused(method: int, client: Client, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "odd.zip", "w", method) as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(SourceRefused, match=rf"must be stored or deflated, not packed by method {method}"):
        client.upload(tmp_path / "odd.zip")


# ---- damage ----------------------------------------------------------------------------------------------------------


def test_an_encrypted_archive_is_refused(client: Client, tmp_path: Path) -> None:
    path = packed(tmp_path / "secret.zip", ("a.txt", "text"))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(SourceRefused, match=r"secret\.zip: 'a\.txt': an entry must not be encrypted"):
        client.upload(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"plain text"])
def test_what_is_no_archive_is_refused(content: bytes, client: Client, tmp_path: Path) -> None:
    (tmp_path / "not.zip").write_bytes(content)
    with pytest.raises(SourceRefused, match=r"not\.zip is not a zip archive, or is damaged"):
        client.upload(tmp_path / "not.zip")


def whole() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"folder/{number}.txt", f"text {number} " * 50)
    return buffer.getvalue()


WHOLE = whole()


@given(
    changes=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=8),
    end=st.integers(0, len(WHOLE)) | st.none(),
)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_of_any_kind_is_refused_or_does_no_harm(
    changes: list[tuple[int, int]], end: int | None, tmp_path: Path
) -> None:
    data = bytearray(WHOLE)
    for place, value in changes:
        data[place] = value
    path = tmp_path / "damaged.zip"
    path.write_bytes(data[:end])
    with suppress(SourceRefused):
        assert len(read(path)) <= 3
