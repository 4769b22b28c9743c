"""Only the server's own user may read what the server keeps: texts of tenants, their accounts, a key."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

from rlm_server.config.settings import ConfigError


def check_private(folder: Path) -> None:
    """Make the folder where it is missing, and refuse to start where others can read it or anything right in it.

    Raises:
        ConfigError: they can, or somebody else owns it, or it cannot be written to; the message says what to do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"data_dir: {folder} cannot be written to: {error.strerror}") from None
    for path in _kept(folder):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue  # it went away meanwhile
        if found.st_uid != os.geteuid():
            raise ConfigError(
                f"data_dir: {path} belongs to user {found.st_uid}, and the server runs as {os.geteuid()}: "
                f"run `chown -R {os.geteuid()} {folder}`, or serve as that user"
            )
        if found.st_mode & 0o077:
            raise ConfigError(
                f"data_dir: others than its owner may use {path} (mode {stat.S_IMODE(found.st_mode):o}): "
                f"run `chmod -R go= {folder}`"
            )


def _kept(folder: Path) -> Iterator[Path]:
    yield folder
    yield from sorted(folder.iterdir())
