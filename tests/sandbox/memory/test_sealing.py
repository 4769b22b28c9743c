"""Files in memory are sealed, also where the kernel has their pages in use for a moment."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Any

import pytest

from sandbox.memory import memory


class Busy:
    """Seals that are refused so often before the kernel takes them."""

    def __init__(self, times: int, number: int = errno.EBUSY) -> None:
        self.left, self.number, self._real = times, number, fcntl.fcntl

    def __call__(self, fd: int, command: int, *argument: Any) -> Any:
        if command == fcntl.F_ADD_SEALS and argument != (fcntl.F_SEAL_SHRINK,) and self.left:
            self.left -= 1
            raise OSError(self.number, os.strerror(self.number))
        return self._real(fd, command, *argument)


def test_a_file_whose_pages_are_in_use_is_sealed_once_they_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Busy(3)
    monkeypatch.setattr(fcntl, "fcntl", busy)
    fd = memory.sealed(b"contents", "busy")
    try:
        assert busy.left == 0
        with pytest.raises(PermissionError):
            os.write(fd, b"others")
    finally:
        os.close(fd)


@pytest.mark.parametrize(("times", "number"), [(1, errno.EPERM), (10_000, errno.EBUSY)])
def test_a_file_that_cannot_be_sealed_is_an_error(times: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "fcntl", Busy(times, number))
    monkeypatch.setattr(memory, "SEAL_SECONDS", 0.05)
    with pytest.raises(OSError, match=os.strerror(number)):
        memory.sealed(b"contents", "never")
