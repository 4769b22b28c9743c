"""The room that uploads leave on a disk, so that what else is there can be written: the database, stored sessions."""

from __future__ import annotations

import errno
import os
from pathlib import Path


class DiskRoom:
    """The disk of a folder. Uploads leave `reserve_bytes` of it free; 0 lets them fill it."""

    def __init__(self, folder: Path, reserve_bytes: int) -> None:
        self._folder, self._reserve_bytes = folder, reserve_bytes

    def check(self, size: int) -> None:
        """Refuse to write so many bytes where they would be of the reserve.

        Raises:
            OSError: with ENOSPC, as the disk itself would say.
        """
        disk = os.statvfs(self._folder)
        free = disk.f_bavail * disk.f_frsize
        if free < size + self._reserve_bytes:
            raise OSError(
                errno.ENOSPC, f"{size} bytes more would leave less than {self._reserve_bytes} (disk_reserve_bytes)"
            )
