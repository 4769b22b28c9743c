"""The hashes of files: remembered for as long as the file is the same, and read anew whenever it may not be."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path

import pytest

from sandbox.vm import file_hashes
from sandbox.vm.file_hashes import BELIEVED_SECONDS, FileHashes

DAY = 86_400.0


class Clock:
    """The time of day, as far as these hashes are told."""

    def __init__(self, now: float) -> None:
        self.now = now

    def time(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"as it was")
    return path


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    return tmp_path / "hashes.json"


@pytest.fixture
def clock(file: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """An hour after the file was written."""
    clock = Clock(file.stat().st_ctime + 3600)
    monkeypatch.setattr(file_hashes, "time", clock)
    return clock


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read, as often as they were."""
    names: list[str] = []
    honest = file_hashes.file_hash

    def noted(file: BufferedReader) -> str:
        names.append(Path(file.name).name)
        return honest(file)

    monkeypatch.setattr(file_hashes, "file_hash", noted)
    return names


def true_hash(file: Path) -> str:
    return hashlib.blake2b(file.read_bytes()).hexdigest()


def start(memory: Path, file: Path, expected: str | None = None) -> bool:
    """Verify a file twice, as a program that starts would, and write down what was found."""
    hashes = FileHashes(memory)
    expected = expected or true_hash(file)
    verified = hashes.verify(file, expected)
    assert hashes.verify(file, expected) is verified
    hashes.keep()
    return verified


def in_place_with_its_times(file: Path) -> None:
    status = file.stat()
    with file.open("r+b") as out:
        out.write(b"x")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced_with_its_times(file: Path) -> None:
    status = file.stat()
    new = file.with_name("new")
    new.write_bytes(b"xs it was")
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.rename(file)


@pytest.mark.parametrize(
    "change",
    [
        in_place_with_its_times,
        replaced_with_its_times,
        lambda file: file.write_bytes(b"longer than it was"),
        lambda file: os.truncate(file, 3),
    ],
    ids=["one byte, and the time put back", "another file with its time", "longer", "shorter"],
)
def test_a_file_that_was_changed_is_read_again(
    memory: Path, file: Path, clock: Clock, change: Callable[[Path], object]
) -> None:
    before = true_hash(file)
    assert start(memory, file)
    change(file)
    assert not start(memory, file, before)
    assert start(memory, file)


def test_a_file_that_was_changed_just_now_is_not_remembered(
    memory: Path, file: Path, clock: Clock, read: list[str]
) -> None:
    clock.now = file.stat().st_ctime + 1
    start(memory, file)
    assert set(read) == {"file"}
    assert len(read) == 2
    assert not memory.exists()


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    memory: Path, file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = file_hashes.file_hash

    def changed_meanwhile(opened: BufferedReader) -> str:
        found = honest(opened)
        in_place_with_its_times(file)
        return found

    hashes, before = FileHashes(memory), true_hash(file)
    with monkeypatch.context() as patched:
        patched.setattr(file_hashes, "file_hash", changed_meanwhile)
        assert hashes.verify(file, before)
    assert not hashes.verify(file, before)


@pytest.mark.parametrize("later", [BELIEVED_SECONDS, 10 * DAY, -1800.0], ids=["a day", "ten days", "a clock put back"])
def test_a_hash_is_believed_for_a_day(memory: Path, file: Path, clock: Clock, read: list[str], later: float) -> None:
    start(memory, file)
    clock.now += later
    assert start(memory, file)
    assert len(read) == 2


def test_a_hash_that_is_too_old_is_forgotten(memory: Path, file: Path, clock: Clock) -> None:
    start(memory, file)
    other = file.with_name("other")
    other.write_bytes(b"")
    clock.now += 2 * DAY
    start(memory, other)
    assert list(json.loads(memory.read_text())) == [str(other)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda memory: memory.write_text(""),
        lambda memory: memory.write_text("[]"),
        lambda memory: memory.write_bytes(b"\xff"),
        lambda memory: memory.write_text(memory.read_text()[:-9]),
        lambda memory: memory.write_text(memory.read_text().replace("[[", "[[[")),
        lambda memory: memory.write_text(json.dumps(dict.fromkeys(json.loads(memory.read_text())))),
        lambda memory: memory.write_text(json.dumps({name: [[1], "0", 0] for name in json.loads(memory.read_text())})),
        lambda memory: memory.chmod(0o620),
        lambda memory: memory.chmod(0o602),
        lambda memory: (memory.rename(memory.with_name("elsewhere")), memory.symlink_to("elsewhere")),
        lambda memory: (memory.unlink(), memory.mkdir()),
    ],
    ids=[
        *("empty", "a list", "no text", "cut", "another form", "nulls", "no identity", "writable by the group"),
        *("writable by others", "a link", "a folder"),
    ],
)
def test_a_memory_that_is_damaged_or_others_can_write_is_not_believed(
    memory: Path, file: Path, clock: Clock, read: list[str], damage: Callable[[Path], object]
) -> None:
    start(memory, file)
    damage(memory)
    assert start(memory, file)
    assert len(read) == 2


def test_a_memory_that_has_it_wrong_condemns_no_file(memory: Path, file: Path, clock: Clock, read: list[str]) -> None:
    start(memory, file)
    memory.write_text(memory.read_text().replace(true_hash(file), "0" * 128))
    assert start(memory, file)
    assert len(read) == 2


def test_a_memory_of_another_user_is_not_believed(
    memory: Path, file: Path, clock: Clock, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(memory, file)
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    assert start(memory, file)
    assert len(read) == 2


def test_a_file_that_is_not_there_is_an_error(memory: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileHashes(memory).verify(tmp_path / "nothing", "")
